"""The command line: parses flags, calls a command, prints what it returns."""
