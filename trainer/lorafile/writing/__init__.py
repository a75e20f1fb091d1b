"""Writing LoRA files: naming schemes, metadata, hashes."""
