"""The training child: loop, batches, caches, validation, validation images, checkpoints, export."""
