"""What every stage shares: the core types, the two manifest formats, text normalisation and error counts."""
