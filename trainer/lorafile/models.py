"""The models that LoRA files are made for here: what tells them apart, and what their files call things."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .unet_names import UNetLayout


@dataclass(frozen=True)
class Model:
    """A family of base models, as far as LoRA files know it.

    - ``text_width``: of the text that cross-attention reads, the inputs of ``attn2.to_k``.
    - ``channels``: of the UNet's levels, from the full resolution down.
    - ``prefixes``: what kohya writes before the modules of each component.
    - ``clips``: what ComfyUI calls each component's text encoder; by its size.
    - ``original_names``: whether kohya's keys have the names that the UNet's modules have in checkpoints, else diffusers'.
    - ``base_version``, ``architecture``, ``implementation``: ``ss_base_model_version`` and the ``modelspec`` keys of these names; the
      implementation is where the key layout comes from.
    - ``stated``: what one of the first two has in it, in any program's files.
    """

    family: str
    title: str
    text_width: int
    channels: tuple[int, ...]
    layout: UNetLayout
    prefixes: Mapping[str, str]
    clips: Mapping[str, str]
    base_version: str
    architecture: str
    stated: tuple[str, ...]
    implementation: str = "diffusers"
    original_names: bool = False


_ONE_ENCODER = {"unet": "lora_unet_", "te1": "lora_te_"}
MODELS = {
    model.family: model
    for model in (
        Model(
            family="sd1",
            title="Stable Diffusion 1.x",
            text_width=768,
            channels=(320, 640, 1280, 1280),
            layout=UNetLayout(),
            prefixes=_ONE_ENCODER,
            clips={"te1": "clip_l"},
            base_version="sd_v1",
            architecture="stable-diffusion-v1/lora",
            stated=("sd_v1", "diffusion-v1"),
        ),
        Model(
            family="sd2",
            title="Stable Diffusion 2.x",
            text_width=1024,
            channels=(320, 640, 1280, 1280),
            layout=UNetLayout(),
            prefixes=_ONE_ENCODER,
            clips={"te1": "clip_h"},
            base_version="sd_v2",
            architecture="stable-diffusion-v2-512/lora",
            stated=("sd_v2", "diffusion-v2"),
        ),
        Model(
            family="sdxl",
            title="Stable Diffusion XL",
            text_width=2048,
            channels=(320, 640, 1280),
            layout=UNetLayout(attention=(False, True, True)),
            prefixes={"unet": "lora_unet_", "te1": "lora_te1_", "te2": "lora_te2_"},
            clips={"te1": "clip_l", "te2": "clip_g"},
            base_version="sdxl_base_v1-0",
            architecture="stable-diffusion-xl-v1-base/lora",
            stated=("sdxl", "stable-diffusion-xl"),
            implementation="https://github.com/Stability-AI/generative-models",
            original_names=True,
        ),
    )
}

FAMILY_NAME = {
    **{model.family: model.title for model in MODELS.values()},
    "flux": "FLUX.1",
    "sd3": "Stable Diffusion 3",
    "cascade": "Stable Cascade",
    "video": "a video model (Wan, Hunyuan, LTX)",
    "dit": "a transformer (DiT) model",
    "unknown": "an unknown model",
}


def layout_of(family: str) -> UNetLayout:
    """The layout of a family's UNet; SD 1.x' for one that has none here."""
    return MODELS[family].layout if family in MODELS else UNetLayout()


def reading(text_width: int | None) -> str | None:
    """The family whose cross-attention reads text of that width."""
    return next((model.family for model in MODELS.values() if model.text_width == text_width), None)
