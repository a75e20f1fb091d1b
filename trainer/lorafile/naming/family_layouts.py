"""The model families of LoRA files: what distinguishes them, and the names that their files use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .anima_names import diffusers_to_anima
from .lumina2_names import lumina2_module
from .unet_names import UNetLayout, diffusers_to_ldm

_STABLE_DIFFUSION = {"unet": "unet.", "te1": "text_encoder.", "te2": "text_encoder_2."}


@dataclass(frozen=True)
class FamilyLayout:
    """A family of base models as it shows in LoRA files.

    - ``text_width``: width of the text embeddings, the number of inputs of ``attn2.to_k``.
    - ``channels``: of the UNet's levels, from the full resolution down; empty for a transformer.
    - ``layout``: which levels of the UNet have attention; of no meaning for a transformer.
    - ``prefixes``: kohya's prefix for the modules of each component.
    - ``comfyui_prefixes``, ``diffusers_prefixes``: those of ComfyUI and diffusers; no prefix where diffusers' layers are other ones.
    - ``rename``: from the name of a module of the denoiser in ``LoraModule``, diffusers' where diffusers has the layer, to the original
      one; None for a module that cannot exist.
    - ``original_names``: whether kohya's keys use the denoiser's original module names instead of diffusers'.
    - ``original_blocks``: whether ``network.block_ranks`` does.
    - ``folds_alpha``: whether ComfyUI's format has no alpha and PEFT's tensor names, so that diffusers reads it too.
    - ``has_clip``: whether the text encoders are CLIP models, whose module names start with ``text_model.``.
    - ``network_module``: the value of ``ss_network_module``.
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
    comfyui_prefixes: Mapping[str, str]
    base_version: str
    architecture: str
    stated: tuple[str, ...]
    diffusers_prefixes: Mapping[str, str] = field(default_factory=lambda: _STABLE_DIFFUSION)
    rename: Callable[[str, UNetLayout], str | None] = diffusers_to_ldm
    folds_alpha: bool = False
    has_clip: bool = True
    network_module: str = "networks.lora"
    implementation: str = "diffusers"
    velocity_architecture: str = ""
    is_v2: bool = False
    original_names: bool = False
    original_blocks: bool = False


def _in_comfyui(**clips: str) -> dict[str, str]:
    return {"unet": "diffusion_model.", **{component: f"text_encoders.{clip}.transformer." for component, clip in clips.items()}}


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
            comfyui_prefixes=_in_comfyui(te1="clip_l"),
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
            comfyui_prefixes=_in_comfyui(te1="clip_h"),
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
            comfyui_prefixes=_in_comfyui(te1="clip_l", te2="clip_g"),
            base_version="sdxl_base_v1-0",
            architecture="stable-diffusion-xl-v1-base/lora",
            stated=("sdxl", "stable-diffusion-xl"),
            implementation="https://github.com/Stability-AI/generative-models",
            original_names=True,
        ),
        FamilyLayout(
            family="anima",
            title="Anima",
            text_width=1024,
            channels=(),
            layout=UNetLayout(),
            prefixes={"unet": "lora_unet_", "adapter": "lora_unet_llm_adapter_", "te1": "lora_te_"},
            comfyui_prefixes={
                "unet": "diffusion_model.",
                "adapter": "diffusion_model.llm_adapter.",
                "te1": "text_encoders.qwen3_06b.transformer.model.",
            },
            diffusers_prefixes={"unet": "transformer.", "adapter": "text_conditioner."},
            rename=lambda module, _: diffusers_to_anima(module),
            folds_alpha=True,
            has_clip=False,
            network_module="networks.lora_anima",
            base_version="anima",
            architecture="anima-preview/lora",  # as kohya's trainer writes it, for every version of Anima
            stated=("anima",),
            implementation="https://huggingface.co/circlestone-labs/Anima",
            original_names=True,
            original_blocks=True,
        ),
        FamilyLayout(
            family="lumina2",
            title="Lumina 2",
            text_width=2304,
            channels=(),
            layout=UNetLayout(),
            prefixes=_ONE_ENCODER,
            comfyui_prefixes={"unet": "diffusion_model.", "te1": "text_encoders.gemma2_2b.transformer.model."},
            diffusers_prefixes={},
            rename=lambda module, _: lumina2_module("unet", module),
            has_clip=False,
            network_module="networks.lora_lumina",
            base_version="lumina2",
            architecture="lumina-2/lora",
            stated=("lumina",),
            implementation="https://github.com/Alpha-VLLM/Lumina-Image-2.0",
            original_names=True,
            original_blocks=True,
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
    """The layout of a family's UNet; SD 1.x' for transformers and unknown families."""
    return FAMILY_LAYOUTS[family].layout if family in FAMILY_LAYOUTS else UNetLayout()


def diffusers_prefixes_of(family: str) -> Mapping[str, str]:
    """diffusers' prefixes by component; Stable Diffusion's for unknown families."""
    return FAMILY_LAYOUTS[family].diffusers_prefixes if family in FAMILY_LAYOUTS else _STABLE_DIFFUSION


def family_with_text_width(text_width: int | None) -> str | None:
    """The family of UNets whose text embeddings have that width."""
    return next((model.family for model in FAMILY_LAYOUTS.values() if model.channels and model.text_width == text_width), None)
