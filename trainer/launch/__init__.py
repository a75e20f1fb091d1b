"""The parent's side: prepare a run, start, follow and stop its training child. May import all rooms below but training."""
