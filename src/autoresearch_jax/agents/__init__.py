"""Who can propose an experiment: clients, their prompt, and the built-in search."""
