"""Names in LoRA files: keys of every tool, module names of the UNets, what each family's files call things. May import algorithms."""
