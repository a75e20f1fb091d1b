"""Latents and prompt embeddings, encoded once and kept on disk."""
