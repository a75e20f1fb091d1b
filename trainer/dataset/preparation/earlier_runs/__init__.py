"""The folder of a dataset, and what earlier runs left in it: their settings, results and rows, and the edits of the user."""
