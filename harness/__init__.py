"""Decide which fine-tuned Russian speech model to ship."""

__version__ = "0.1.0"
