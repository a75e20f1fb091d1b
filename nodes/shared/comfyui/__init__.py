"""ComfyUI's own nodes and model classes, called as functions. May import the schema helpers."""
