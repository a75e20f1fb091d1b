"""Errors as an artist should read them in ComfyUI's dialog."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_management

from ..trainer.errors import Cancelled, UserError


class AnimeLoRAError(Exception):
    """What happened and what to do about it, in plain words."""


@contextmanager
def readable() -> Iterator[None]:
    """Turn the trainer's errors into what ComfyUI shows: a message with its hint, or a cancelled prompt."""
    try:
        yield
    except UserError as error:
        raise AnimeLoRAError(str(error)) from error
    except Cancelled as error:
        raise comfy.model_management.InterruptProcessingException() from error
