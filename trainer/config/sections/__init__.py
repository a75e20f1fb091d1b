"""The sections of the run configuration, one file each: every setting of a run, with its limits, default and texts. Imports core and the
files of ``config/`` that describe a setting."""
