"""The run configuration and its presets: the one home of every setting of a run. May import core."""
