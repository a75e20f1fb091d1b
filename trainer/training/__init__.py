"""The training child: loop, batches, caches, validation, preview images, checkpoints, export."""
