"""Reading LoRA files of every tool."""
