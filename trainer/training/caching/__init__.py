"""Latents and prompt embeddings, encoded once and kept on disk. Imports nothing else of training."""
