"""Describing LoRA files for people: information, cards, files beside them."""
