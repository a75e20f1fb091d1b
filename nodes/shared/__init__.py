"""What the nodes share: schemas, sockets, folders, progress. The only other code that imports ComfyUI."""
