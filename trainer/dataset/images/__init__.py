"""One image from its bytes to the prepared PNG: decoding, cropping, buckets, heads, similarity. Imports settings only."""
