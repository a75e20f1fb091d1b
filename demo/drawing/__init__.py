"""Portraits drawn from attributes, in four styles. Needs only Pillow and NumPy; the node Demo Pictures uses it."""
