"""Random models of Anima with two blocks, which ComfyUI knows, and graphs that load them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from random_checkpoints.anima import DENOISER, TEXT_ENCODER, VAE, make_anima
from tests.server.comfy_server import Server
from tests.server.files import link
from tests.server.graphs import Graph, node
from tests.tools.cache import cache_folder

_PARTS = {"unet": DENOISER, "clip": TEXT_ENCODER, "vae": VAE}  # by loader


@contextmanager
def wide_anima(server: Server) -> Iterator[dict[str, str]]:
    """The names of the three files by loader: in the server's folders, beside the smaller models that other tests have there.

    Skips on a ComfyUI that does not know Anima.
    """
    if not (server.comfyui / "comfy" / "ldm" / "anima").is_dir():
        pytest.skip("this ComfyUI does not know Anima")
    folder = cache_folder() / "anima-small"
    if not (folder / "complete").is_file():
        make_anima(folder, "small")
        (folder / "complete").touch()
    places = {}
    for loader, file in _PARTS.items():
        places[loader] = (server.base / "models" / file).with_name(f"wide-{Path(file).name}")
        places[loader].parent.mkdir(parents=True, exist_ok=True)
        link(folder / file, places[loader])
    yield {loader: place.name for loader, place in places.items()}
    for place in places.values():
        place.unlink()


def anima_loaders(models: dict[str, str]) -> Graph:
    """ComfyUI's loaders of the three files."""
    return {
        "unet": node("UNETLoader", unet_name=models["unet"], weight_dtype="default"),
        "clip": node("CLIPLoader", clip_name=models["clip"], type="stable_diffusion"),
        "vae": node("VAELoader", vae_name=models["vae"]),
    }
