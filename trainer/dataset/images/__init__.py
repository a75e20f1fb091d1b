"""From image bytes to what is trained: decoding, cropping, buckets, finding heads and duplicates."""
