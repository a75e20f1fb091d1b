"""Read LoRA files of every tool. May import the files and folders beside it except writing, changing and describing."""
