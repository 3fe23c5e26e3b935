"""One verb of the command line a file: what `demo`, `setup`, `doctor` and the others do."""
