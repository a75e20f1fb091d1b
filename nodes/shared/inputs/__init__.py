"""What arrives in a node: sockets, menus, prompts and numbers. May import the schema helpers."""
