"""WER and CER as a Hugging Face `evaluate` metric: `evaluate.load(FOLDER)` with this folder, without a network."""
