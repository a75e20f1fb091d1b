"""Captions: reading them, choosing one for each image, editing tags, and what training makes of them."""
