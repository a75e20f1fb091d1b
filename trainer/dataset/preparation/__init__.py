"""Preparing a dataset: settings, the run from source to folder, and what earlier runs left."""
