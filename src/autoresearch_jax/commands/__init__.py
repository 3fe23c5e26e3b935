"""What the verbs of the command line do: `demo`, `setup`, `doctor` and the others."""
