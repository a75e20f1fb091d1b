"""Tests of the family Lumina 2."""
