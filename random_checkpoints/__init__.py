"""Checkpoints of random weights in Stable Diffusion's original layout, for tests and benchmarks. Imports only ``trainer.core``."""
