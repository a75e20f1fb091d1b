"""The runs of this server for the history in the side bar: list, compare, settings, waiting trainings, deleting."""
