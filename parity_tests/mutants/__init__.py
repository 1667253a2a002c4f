"""Mutation testing of the ladder: small errors, generated, and how many of them turn a rung red."""
