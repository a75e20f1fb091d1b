"""Errors as an artist reads them in ComfyUI's dialog."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import comfy.model_management

from ...trainer.core.diagnosis import as_user_error
from ...trainer.core.errors import Cancelled
from .before_run.fixes import error_problem
from .browser import send_to_queuer
from .wording import on_canvas


class AnimeLoRAError(Exception):
    """What happened and what to do about it, in the words of the canvas."""


@contextmanager
def failures_reported(node_id: str | None, settings: Mapping[str, Any]) -> Iterator[None]:
    """Report the errors that a user can correct to the node, with the widgets that would correct them, on the page that queued it.

    By ``settings``, its widget values, the page recognises the node: another workflow may have one with the same id.
    """
    try:
        yield
    except Exception as error:
        user_error = None if isinstance(error, Cancelled) else as_user_error(error)
        if user_error is not None:
            send_to_queuer("animelora.failed", {"node_id": node_id, "settings": dict(settings), **error_problem(user_error)})
        raise


@contextmanager
def canvas_errors() -> Iterator[None]:
    """Raise the trainer's errors as ComfyUI shows them: AnimeLoRAError with message and hint, or ComfyUI's exception for Cancel.

    A bug keeps its exception and traceback.
    """
    try:
        yield
    except Cancelled as error:
        raise comfy.model_management.InterruptProcessingException() from error
    except Exception as error:
        user_error = as_user_error(error)
        if user_error is None:
            raise
        raise AnimeLoRAError("\n".join(filter(None, map(on_canvas, (user_error.message, user_error.hint))))) from error
