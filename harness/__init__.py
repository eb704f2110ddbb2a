"""Decide which fine-tuned Russian speech model to ship."""

import os

# ONNX Runtime's own builds report to Microsoft what they run, and keep a database in the user's home for it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
