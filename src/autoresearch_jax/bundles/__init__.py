"""One experiment as a file that others can check without trusting who made it."""
