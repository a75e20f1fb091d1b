"""What a run saves: states to resume from, LoRA files, and the checks around them."""
