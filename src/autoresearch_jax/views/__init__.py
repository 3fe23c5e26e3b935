"""What a person looks at: tables, plots, pages. Views only read the records."""
