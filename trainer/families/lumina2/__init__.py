"""Lumina Image 2.0: a transformer of image and text tokens, Gemma 2, Flux' VAE. Imported by the registry."""
