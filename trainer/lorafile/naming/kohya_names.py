"""kohya's key names: from underscores back to dotted module names, and from module names to keys."""

from __future__ import annotations

import re

from ...core.errors import UserError
from .family_layouts import FAMILY_LAYOUTS
from .unet_names import UNetLayout

# All names of modules and module lists in the UNets (diffusers and LDM) and CLIP text encoders of Stable Diffusion.
_DIFFUSERS = (
    "down_blocks mid_block up_blocks attentions resnets downsamplers upsamplers transformer_blocks attn1 attn2 to_q to_k to_v to_out "
    "ff net proj proj_in proj_out conv conv1 conv2 conv_in conv_out conv_shortcut conv_norm_out time_emb_proj time_embedding "
    "add_embedding linear_1 linear_2 norm norm1 norm2 norm3"
)
_LDM = "input_blocks middle_block output_blocks in_layers out_layers emb_layers skip_connection op time_embed label_emb out"
_CLIP = (
    "text_model encoder layers self_attn q_proj k_proj v_proj out_proj mlp fc1 fc2 layer_norm1 layer_norm2 final_layer_norm "
    "embeddings token_embedding position_embedding text_projection"
)
_SEGMENTS = f"{_DIFFUSERS} {_LDM} {_CLIP}".split()
_TOKEN = re.compile("(" + "|".join(sorted(_SEGMENTS, key=len, reverse=True)) + r"|\d+)(?:_|$)")


def dotted(name: str) -> str | None:
    """``down_blocks_0_attentions_1_proj_in`` as ``down_blocks.0.attentions.1.proj_in``; None when a part is not a known module name."""
    parts, position = [], 0
    while position < len(name):
        match = _TOKEN.match(name, position)
        if match is None:
            return None
        parts.append(match.group(1))
        position = match.end()
    return ".".join(parts) if parts and not name.endswith("_") else None


def kohya_unet_key(family: str, module: str, layout: UNetLayout | None = None) -> str:
    """The kohya key (without suffix) of a module of the denoiser given by its diffusers name.

    SD 1.x and 2.x keys use diffusers' names, SDXL's and Anima's the original ones; every tool reads these.
    Raises UserError for an unknown family or a module that the family's denoiser does not have.
    """
    model = FAMILY_LAYOUTS.get(family)
    if model is None:
        raise UserError(
            f"The kohya key names of the model family {family!r} are not known.", f"Known: {', '.join(FAMILY_LAYOUTS)}.", kind="lora"
        )
    name = original_name(family, module, layout) if model.original_names else module
    return model.prefixes["unet"] + name.replace(".", "_")


def original_name(family: str, module: str, layout: UNetLayout | None = None) -> str:
    """The original name of a module of the denoiser given by its diffusers name.

    Raises UserError for a module that the family's denoiser does not have.
    """
    model = FAMILY_LAYOUTS[family]
    name = model.rename(module, layout or model.layout)
    if not name:
        raise UserError(f"{model.title} has no module {module!r}.", "Was the file made for another model?", kind="lora")
    return name


def settings_name(family: str, module: str) -> str:
    """The name of a module, named as in ``adapters.adapter``, in ``network.block_ranks``: of a transformer's modules the original one."""
    model = FAMILY_LAYOUTS.get(family)
    name = model.rename(module, model.layout) if model is not None and model.original_blocks else None
    return name or module


def kohya_text_encoder_key(family: str, component: str, module: str) -> str:
    """The kohya key of a module of a text encoder (``te1``, ``te2``) or of Anima's ``adapter``.

    transformers 5.6 and newer leave out ``text_model.`` for CLIPTextModel. Every tool expects it, so it is added.
    """
    prefixes = FAMILY_LAYOUTS[family].prefixes if family in FAMILY_LAYOUTS else {}
    if component not in prefixes or component == "unet":
        raise UserError(f"The model family {family!r} has no text encoder {component!r}.", "", kind="lora")
    if FAMILY_LAYOUTS[family].has_clip and not module.startswith(("text_model.", "text_projection")):
        module = f"text_model.{module}"
    return prefixes[component] + module.replace(".", "_")
