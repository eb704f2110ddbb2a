"""From what a user has to 16 kHz recordings with transcripts, split and checked."""
