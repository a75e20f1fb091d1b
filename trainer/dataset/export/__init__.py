"""A prepared dataset in the formats of other trainers. Imports manifest, loading and captions."""
