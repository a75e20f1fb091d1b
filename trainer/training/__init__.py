"""The training process: loop, batches, caches, validation, checkpoints, export. May import all rooms below."""
