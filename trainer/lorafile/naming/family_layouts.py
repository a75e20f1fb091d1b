"""The model families of LoRA files: what distinguishes them, and the names that their files use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .unet_names import UNetLayout


@dataclass(frozen=True)
class FamilyLayout:
    """A family of base models as it shows in LoRA files.

    - ``text_width``: width of the text embeddings, the number of inputs of ``attn2.to_k``.
    - ``channels``: of the UNet's levels, from the full resolution down.
    - ``layout``: which levels of the UNet have attention.
    - ``prefixes``: kohya's prefix for the modules of each component.
    - ``clips``: ComfyUI's name for the text encoder of each component.
    - ``original_names``: whether kohya's keys use the UNet's module names from checkpoints (LDM) instead of diffusers'.
    - ``base_version``: the value of ``ss_base_model_version``.
    - ``is_v2``: the value of ``ss_v2``.
    - ``architecture``, ``velocity_architecture``: the value of ``modelspec.architecture``, and the one for v-prediction if it differs.
    - ``implementation``: the value of ``modelspec.implementation``, where the key layout comes from.
    - ``stated``: parts of base version or architecture by which files of any program are recognised.
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
    velocity_architecture: str = ""
    is_v2: bool = False
    original_names: bool = False


_ONE_ENCODER = {"unet": "lora_unet_", "te1": "lora_te_"}
FAMILY_LAYOUTS = {
    model.family: model
    for model in (
        FamilyLayout(
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
        FamilyLayout(
            family="sd2",
            title="Stable Diffusion 2.x",
            text_width=1024,
            channels=(320, 640, 1280, 1280),
            layout=UNetLayout(),
            prefixes=_ONE_ENCODER,
            clips={"te1": "clip_h"},
            base_version="sd_v2",
            architecture="stable-diffusion-v2-512/lora",
            velocity_architecture="stable-diffusion-v2-768-v/lora",
            is_v2=True,
            stated=("sd_v2", "diffusion-v2"),
        ),
        FamilyLayout(
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

FAMILY_TITLES = {
    **{model.family: model.title for model in FAMILY_LAYOUTS.values()},
    "flux": "FLUX.1",
    "sd3": "Stable Diffusion 3",
    "cascade": "Stable Cascade",
    "video": "a video model (Wan, Hunyuan, LTX)",
    "dit": "a transformer (DiT) model",
    "unknown": "an unknown model",
}


def unet_layout_of(family: str) -> UNetLayout:
    """The layout of a family's UNet; SD 1.x' for unknown families."""
    return FAMILY_LAYOUTS[family].layout if family in FAMILY_LAYOUTS else UNetLayout()


def family_with_text_width(text_width: int | None) -> str | None:
    """The family whose text embeddings have that width."""
    return next((model.family for model in FAMILY_LAYOUTS.values() if model.text_width == text_width), None)
