"""Base weights and fine-tuning."""
