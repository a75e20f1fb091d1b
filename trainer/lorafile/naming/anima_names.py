"""Module names of Anima: the original ones (``blocks.0.self_attn.q_proj``) and diffusers' (``transformer_blocks.0.attn1.to_q``).

Names are those after the prefix of a part (``net.``, ``model.diffusion_model.``, ``llm_adapter.``, ``model.``). The adapter between Qwen3
and the denoiser (``llm_adapter``, diffusers' AnimaTextConditioner) and Qwen3 have the same names everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

# inside a block of the denoiser: original name, diffusers' name
_ATTENTION = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "output_proj": "to_out.0", "q_norm": "norm_q", "k_norm": "norm_k"}
_IN_BLOCK = {
    **{f"self_attn.{name}": f"attn1.{other}" for name, other in _ATTENTION.items()},
    **{f"cross_attn.{name}": f"attn2.{other}" for name, other in _ATTENTION.items()},
    "mlp.layer1": "ff.net.0.proj",
    "mlp.layer2": "ff.net.2",
    **{
        f"adaln_modulation_{part}.{index}": f"norm{place}.linear_{index}"
        for place, part in enumerate(("self_attn", "cross_attn", "mlp"), 1)
        for index in (1, 2)
    },
}
# outside its blocks
_FIXED = {
    "x_embedder.proj.1": "patch_embed.proj",
    "t_embedder.1.linear_1": "time_embed.t_embedder.linear_1",
    "t_embedder.1.linear_2": "time_embed.t_embedder.linear_2",
    "t_embedding_norm": "time_embed.norm",
    "final_layer.adaln_modulation.1": "norm_out.linear_1",
    "final_layer.adaln_modulation.2": "norm_out.linear_2",
    "final_layer.linear": "proj_out",
}
_IN_BLOCK_BACK = {other: name for name, other in _IN_BLOCK.items()}
_FIXED_BACK = {other: name for name, other in _FIXED.items()}

_HEADS = ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")
_ADAPTER_BLOCK = (
    *(f"{part}.{name}" for part in ("self_attn", "cross_attn") for name in _HEADS),
    "mlp.0", "mlp.2", "norm_self_attn", "norm_cross_attn", "norm_mlp",
)  # fmt: skip
_QWEN_LAYER = (
    *(f"self_attn.{name}" for name in _HEADS),
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm",
)  # fmt: skip

_NUMBERED = re.compile(r"(transformer_blocks|blocks|layers)([._])(0|[1-9]\d{0,3})\2(.+)")


def anima_to_diffusers(name: str) -> str | None:
    """diffusers' name of a module of the denoiser by its original name; None when Anima has no such module."""
    return _renamed(name, ("blocks", "transformer_blocks"), _IN_BLOCK, _FIXED)


def diffusers_to_anima(name: str) -> str | None:
    """The original name of a module of the denoiser by diffusers' name; None when Anima has no such module."""
    return _renamed(name, ("transformer_blocks", "blocks"), _IN_BLOCK_BACK, _FIXED_BACK)


def anima_module(component: str, name: str) -> str | None:
    """The module of one part of Anima that ``name`` stands for; None when that part has no such module.

    ``component`` is ``unet`` (the denoiser), ``adapter`` or ``te1`` (Qwen3). ``name`` may have underscores instead of dots, as in kohya's
    keys, and the denoiser's modules their original names or diffusers'. The result is diffusers' name.
    """
    if component == "unet":
        original = _with_dots(name, "blocks", _IN_BLOCK, _FIXED)
        return anima_to_diffusers(original) if original else _with_dots(name, "transformer_blocks", _IN_BLOCK_BACK, _FIXED_BACK)
    if component == "adapter":
        return _with_dots(name, "blocks", _ADAPTER_BLOCK, ("embed", "out_proj", "norm"))
    if component == "te1":
        return _with_dots(name, "layers", _QWEN_LAYER, ("embed_tokens", "norm"))
    return None


def block_of(module: str) -> int | None:
    """The index of the block (or Qwen3's layer) that a module is in; None outside the blocks."""
    match = _NUMBERED.fullmatch(module)
    return int(match[3]) if match else None


def in_block(module: str, index: int) -> str:
    """The same module of the block with that ``index``; ``module`` must be inside a block."""
    return _NUMBERED.sub(rf"\g<1>\g<2>{index}\g<2>\g<4>", module)


def _renamed(name: str, blocks: tuple[str, str], inside: Mapping[str, str], outside: Mapping[str, str]) -> str | None:
    if name in outside:
        return outside[name]
    match = _NUMBERED.fullmatch(name)
    if match is None or match[1] != blocks[0] or match[4] not in inside:
        return None
    return f"{blocks[1]}.{match[3]}.{inside[match[4]]}"


def _with_dots(name: str, blocks: str, inside: Iterable[str], outside: Iterable[str]) -> str | None:
    """``name``, which may have underscores instead of dots, with its dots; None when it is no known module."""
    match = _NUMBERED.fullmatch(name)
    if match is None:
        return _spelled(name, outside)
    rest = _spelled(match[4], inside) if match[1] == blocks else None
    return f"{blocks}.{match[3]}.{rest}" if rest else None


def _spelled(name: str, known: Iterable[str]) -> str | None:
    return next((other for other in known if name in (other, other.replace(".", "_"))), None)
