"""Base checkpoints on disk: weight files, diffusers folders, identities. Imported by the families only; may import core."""
