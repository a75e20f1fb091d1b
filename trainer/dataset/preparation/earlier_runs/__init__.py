"""The folder of a dataset, and what earlier runs left in it: settings, results, edits. Imports manifest, images and the candidates."""
