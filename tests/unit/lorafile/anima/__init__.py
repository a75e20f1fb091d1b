"""LoRA files of Anima."""
