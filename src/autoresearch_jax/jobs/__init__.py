"""Runs one training, scoring or compilation, on this machine or on a Ray cluster."""
