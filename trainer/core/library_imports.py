"""Importing diffusers and transformers without their optional dependencies.

Both import whatever they find installed for models and quantisers that are not trained here: torchvision, SciPy, scikit-learn, attention
kernels, bitsandbytes, TensorFlow. diffusers also imports peft and transformers, which opens 1,900 files of the latter. On a slow disk this
is most of the start-up time (benchmarks/imports.py counts the files), and one of these packages that does not fit the installed torch would
break a training that does not need it. All are optional: diffusers and transformers work without them.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

UNUSED = (
    *("torchvision", "torchaudio", "scipy", "sklearn", "kornia", "timm"),  # images and audio, losses of detectors
    *("xformers", "flash_attn", "flash_attn_interface", "sageattention", "kernels"),  # attention, which attention.py chooses
    *("bitsandbytes", "torchao", "gguf", "optimum", "hqq", "aqlm"),  # quantised models; optimisers import their package themselves
    *("tensorflow", "jax", "flax"),
)


_lean: set[str] = set()  # packages that were imported while ``UNUSED`` was hidden
_PIPELINES = ("transformers", "peft")  # needed by diffusers' pipelines and its own LoRA loading, not for encoding prompts


def import_models(*, pipelines: bool = False) -> None:
    """Import diffusers' UNet without ``UNUSED``; without ``pipelines`` also without peft and transformers.

    Only for processes of the pack: diffusers stays without these packages as long as the process lives, which in ComfyUI's process would
    affect other packs.
    """
    logging.getLogger("transformers.utils.import_utils").setLevel(logging.ERROR)  # it warns about the hidden packages
    with _without("diffusers", UNUSED if pipelines else (*UNUSED, *_PIPELINES)):
        import diffusers.models.unets.unet_2d_condition  # noqa: F401
    if pipelines:
        import_peft()


def import_text_models() -> None:
    """Import transformers' CLIP without ``UNUSED``."""
    with _without("transformers", UNUSED):
        from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer  # noqa: F401


def import_peft() -> None:
    """Import peft, which diffusers' pipelines need for LoRA files, without ``UNUSED``."""
    with _without("transformers", UNUSED):
        import peft  # noqa: F401


@contextmanager
def _without(package: str, packages: Sequence[str]) -> Iterator[None]:
    """Hide ``packages``, unless ``package`` has been imported with them visible: it remembers that and would import them."""
    if package not in sys.modules:
        _lean.add(package)
    with hidden(packages if package in _lean else ()):
        yield


@contextmanager
def hidden(packages: Sequence[str]) -> Iterator[None]:
    """Hide ``packages`` that are not imported yet: ``find_spec`` returns None and importing raises ImportError."""
    names = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(names))  # type: ignore[arg-type]  # None makes Python raise ImportError
    try:
        yield
    finally:
        for name in names:
            if sys.modules.get(name) is None:
                sys.modules.pop(name, None)
