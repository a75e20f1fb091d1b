"""Killing the pack at random points of its work: ``kill`` has the kills, ``works`` what is killed."""
