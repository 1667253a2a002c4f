"""Measurements of speed: programs to run on the machine they are about, each prints its numbers as JSON."""
