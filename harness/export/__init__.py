"""Checkpoints into the files that applications run."""
