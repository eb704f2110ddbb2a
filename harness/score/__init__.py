"""Exported files into transcripts, transcripts into scores."""
