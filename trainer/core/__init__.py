"""Errors, files, devices, random seeds and failures: what every room uses. Imports nothing of the trainer."""
