"""Errors as an artist should read them in ComfyUI's dialog."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_management

from ...trainer.core.diagnosis import as_user_error
from ...trainer.core.errors import Cancelled
from .wording import on_canvas


class AnimeLoRAError(Exception):
    """What happened and what to do about it, in plain words."""


@contextmanager
def readable() -> Iterator[None]:
    """Turn the trainer's errors into what ComfyUI shows: a message with its hint, which names settings as the
    canvas does, or a cancelled prompt."""
    try:
        yield
    except Cancelled as error:
        raise comfy.model_management.InterruptProcessingException() from error
    except Exception as error:
        told = as_user_error(error)
        if told is None:
            raise
        raise AnimeLoRAError("\n".join(filter(None, map(on_canvas, (told.message, told.hint))))) from error
