"""Describe LoRA files for people: information, cards, files beside them. May import reading and the files and folders beside it."""
