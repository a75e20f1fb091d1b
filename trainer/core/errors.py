"""The exceptions that are meant for users."""

from __future__ import annotations

from .messages import Part, mentions


class UserError(Exception):
    """Something the user can correct.

    ``message`` says what happened and where, ``hint`` what to do about it; ``about`` are the settings, files and actions that they name,
    if they are a ``Message``. ``kind`` is a short stable word (``"config"``, ``"dataset"``, ``"checkpoint"``, ``"memory"``, …) for
    programs that read the event stream.
    """

    def __init__(self, message: str, hint: str = "", *, kind: str = "input") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.kind = kind

    @property
    def about(self) -> tuple[Part, ...]:
        """The settings, files and actions that message and hint name."""
        return (*mentions(self.message), *mentions(self.hint))

    def __str__(self) -> str:
        return "\n".join(filter(None, (self.message, self.hint)))


class Cancelled(Exception):
    """The user asked to stop; finished work is kept."""
