"""Errors as an artist should read them in ComfyUI's dialog."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_management

from ...trainer.core.diagnosis import about_the_file, about_the_text
from ...trainer.core.errors import Cancelled, UserError
from .wording import on_the_canvas


class AnimeLoRAError(Exception):
    """What happened and what to do about it, in plain words."""


@contextmanager
def readable() -> Iterator[None]:
    """Turn the trainer's errors into what ComfyUI shows: a message with its hint, which names settings as the
    canvas does, or a cancelled prompt."""
    try:
        yield
    except UserError as error:
        raise AnimeLoRAError(on_the_canvas(str(error))) from error
    except OSError as error:
        told = about_the_file(error)
        if told is None:
            raise
        raise AnimeLoRAError(on_the_canvas(str(told))) from error
    except UnicodeEncodeError as error:
        half = about_the_text(error)
        if half is None:
            raise
        raise AnimeLoRAError(on_the_canvas(str(half))) from error
    except Cancelled as error:
        raise comfy.model_management.InterruptProcessingException() from error
