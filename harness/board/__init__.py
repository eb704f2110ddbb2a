"""Scores into a decision that people can read."""
