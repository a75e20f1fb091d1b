"""Tests of the family Anima."""
