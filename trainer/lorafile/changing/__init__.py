"""Change LoRA files: merge them, reduce their rank, merge them into checkpoints. May import all of lorafile but writing."""
