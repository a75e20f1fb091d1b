"""The algorithms of LoRA files: which tensors they consist of and what they do to a weight. Works on tensors only; may import core."""
