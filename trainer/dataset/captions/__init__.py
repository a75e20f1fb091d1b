"""Captions: files and encodings, captions of other tools, tags and their rules, the tagger. Imports images, layout and settings."""
