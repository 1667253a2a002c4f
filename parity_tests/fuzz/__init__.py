"""Hostile input for every reader: `python -m parity_tests.fuzz TARGET --runs N`."""
