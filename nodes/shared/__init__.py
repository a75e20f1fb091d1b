"""What the nodes share: schemas, sockets, folders, previews. The only other code that imports ComfyUI."""
