"""AnimeLoRA: prepare a dataset, train a LoRA and use it, on ComfyUI's canvas."""

from __future__ import annotations

from typing import Any

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> Any:
    """The extension that ComfyUI asks for; ``nodes`` is imported here, so that tests without ComfyUI can import the rest."""
    from .nodes import AnimeLoRAExtension

    return AnimeLoRAExtension()


__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
