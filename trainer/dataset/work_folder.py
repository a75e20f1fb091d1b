"""Names of the hidden work folder of a prepared dataset and of the files in it."""

from __future__ import annotations

JOURNAL = "journal.jsonl"


WORK = ".prepare"  # hidden, so that no other tool takes it for pictures
