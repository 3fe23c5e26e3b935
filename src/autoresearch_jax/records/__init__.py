"""What happened: the journal of a tag, its experiments, their costs, results.tsv."""
