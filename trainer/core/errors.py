"""The one exception that the pack shows to users."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can put right.

    ``message`` says what happened and where, ``hint`` what to do about it. ``kind`` is a short stable
    word (``"config"``, ``"dataset"``, ``"checkpoint"``, ``"memory"``, …) for programs that read the event stream.
    """

    def __init__(self, message: str, hint: str = "", *, kind: str = "input") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.kind = kind

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class Cancelled(Exception):
    """The user asked to stop; what was done so far is kept."""
