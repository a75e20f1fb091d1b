"""Changing LoRA files: merging and lowering the rank."""
