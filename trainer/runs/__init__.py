"""Run folders: identity, events and their log, saved states, pruning. May import core and config."""
