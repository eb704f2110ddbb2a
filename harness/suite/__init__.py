"""What a suite may say, and how it is read."""
