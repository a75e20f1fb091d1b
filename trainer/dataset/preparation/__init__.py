"""Preparing a dataset: from source to folder, and what earlier runs left there. Imports all of dataset but loading and export."""
