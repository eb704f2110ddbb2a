"""What an exported model does where WER does not look: a file per kind of probe."""
