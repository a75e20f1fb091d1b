"""Run folders: identity, events and their log, saved states, pruning. May import lorafile, config and core."""
