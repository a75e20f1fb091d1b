"""The manifest of a prepared dataset: its schema, hash, reading, writing and integrity check. Imports captions and settings."""
