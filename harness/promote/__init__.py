"""The best model into the application."""
