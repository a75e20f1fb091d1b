"""Importing diffusers, and of what it imports in turn only what training needs.

It and transformers import what they find installed for the sake of models and quantisers that nobody trains here: torchvision, SciPy and
scikit-learn, other people's attention kernels, bitsandbytes, TensorFlow; and diffusers imports peft and transformers, which opens 1,900 of
its files. Together that is most of a start where files are slow to read (benchmarks/imports.py counts them), and an installation of one of
them that does not fit its torch would end a training that has no use for it. All of them are optional there: what cannot be found is done
without.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

NEEDLESS = (
    *("torchvision", "torchaudio", "scipy", "sklearn", "kornia", "timm"),  # pictures and sound, losses of detectors
    *("xformers", "flash_attn", "flash_attn_interface", "sageattention", "kernels"),  # attention; ours is chosen in attention.py
    *("bitsandbytes", "torchao", "gguf", "optimum", "hqq", "aqlm"),  # quantised models; our optimisers import theirs themselves
    *("tensorflow", "jax", "flax"),
)


_lean: set[str] = set()  # packages that were imported without ``NEEDLESS``
_PIPELINES = ("transformers", "peft")  # what diffusers has pipelines from, and LoRA of its own; prompts are encoded without it


def import_models(*, pipelines: bool = False) -> None:
    """Import diffusers' UNet without ``NEEDLESS``, and unless its ``pipelines`` are wanted without peft and transformers, for a process
    of the pack's own.

    diffusers goes on without those for as long as the process lives. In one with other tenants, as ComfyUI's is, these would have to, too.
    """
    logging.getLogger("transformers.utils.import_utils").setLevel(logging.ERROR)  # it warns of what was hidden from it
    with _without("diffusers", NEEDLESS if pipelines else (*NEEDLESS, *_PIPELINES)):
        import diffusers.models.unets.unet_2d_condition  # noqa: F401
    if pipelines:
        import_peft()


def import_text_models() -> None:
    """Import transformers' CLIP without ``NEEDLESS``, likewise."""
    with _without("transformers", NEEDLESS):
        from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer  # noqa: F401


def import_peft() -> None:
    """Import peft, with which diffusers' pipelines use LoRA files, without ``NEEDLESS``, likewise."""
    with _without("transformers", NEEDLESS):
        import peft  # noqa: F401


@contextmanager
def _without(package: str, packages: Sequence[str]) -> Iterator[None]:
    """``hidden(packages)``, unless ``package`` was imported with them in sight: it remembers what it found, and would import it."""
    if package not in sys.modules:
        _lean.add(package)
    with hidden(packages if package in _lean else ()):
        yield


@contextmanager
def hidden(packages: Sequence[str]) -> Iterator[None]:
    """``packages`` that are not imported yet cannot be found for a while: ``find_spec`` gives None, importing raises ImportError."""
    kept = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(kept))  # type: ignore[arg-type]  # None is Python's own sign for "not to be had"
    try:
        yield
    finally:
        for name in kept:
            if sys.modules.get(name) is None:
                sys.modules.pop(name, None)
