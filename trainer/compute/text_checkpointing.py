"""Gradient checkpointing of text models, which are transformers' or diffusers'."""

from __future__ import annotations

from typing import Any


def set_text_checkpointing(model: Any, wanted: bool) -> None:
    """Recompute the layers of a text model in the backward pass, or keep what they need."""
    if hasattr(model, "gradient_checkpointing_enable"):  # transformers
        if wanted:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        else:
            model.gradient_checkpointing_disable()
    elif wanted:
        model.enable_gradient_checkpointing()
    else:
        model.disable_gradient_checkpointing()
