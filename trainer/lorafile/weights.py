"""A LoRA in memory, whatever the naming of its file: one object for each module, with LyCORIS' tensor names."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch

from ..core.errors import UserError
from .algorithms.kinds import PASSED_THROUGH
from .algorithms.weight_change import delta_shape, product_norm, rank_of, scale_of, unscaled_delta
from .naming.anima_names import block_of
from .naming.family_layouts import unet_layout_of
from .naming.kohya_names import kohya_text_encoder_key, kohya_unet_key
from .naming.unet_names import UNetLayout

_LARGEST_LAYER = 2**28  # weights, ten times SDXL's largest layer: the product of small factors in a file could fill any memory
Component = str  # "unet" (the denoiser), "te1" (the first text encoder), "te2" (SDXL's second), "adapter" (Anima's llm_adapter)


@dataclass(frozen=True)
class LoraModule:
    """The change of one layer.

    ``name`` is the layer's diffusers name (for CLIP, from ``text_model.`` on; for Qwen3 and Gemma 2, from
    ``layers.`` on; for Lumina 2 the original one). ``tensors`` have LyCORIS
    names (``lora_up.weight``, ``hada_w1_a``, …). ``alpha`` is a one-element tensor, or None for scale 1.
    """

    component: Component
    name: str
    algorithm: str
    tensors: Mapping[str, torch.Tensor]
    alpha: torch.Tensor | None = None

    @property
    def rank(self) -> int | None:
        """The rank; None for full weights and other algorithms without one."""
        return rank_of(self.algorithm, self.tensors)

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return scale_of(self.algorithm, self.tensors, self.alpha)

    @property
    def is_dora(self) -> bool:
        """Whether the layer is DoRA: its weight is decomposed into direction and magnitude."""
        return "dora_scale" in self.tensors

    def delta(self) -> torch.Tensor:
        """The scaled weight change in fp32, ``(out, in[, kh, kw])``; for DoRA, the change before normalisation.

        Raises UserError for factors whose product is larger than the layers of any model.
        """
        if self.algorithm not in PASSED_THROUGH:
            shape = delta_shape(self.algorithm, self.tensors)
            if math.prod(shape) > _LARGEST_LAYER:
                raise UserError(
                    f"{self.name} would change {list(shape)} weights, more than any layer has.",
                    "The file is not a usable LoRA.",
                    kind="lora",
                )
        return unscaled_delta(self.algorithm, self.tensors) * self.scale

    def norm(self) -> float | None:
        """The Frobenius norm of ``delta()``; None for an algorithm that is not an addition to the weight, and for factors whose product is
        larger than the layers of any model."""
        if self.algorithm in PASSED_THROUGH:
            return None
        size, rank = math.prod(delta_shape(self.algorithm, self.tensors)), self.rank or 0
        if size > _LARGEST_LAYER:
            return None
        if self.algorithm == "lora" and "lora_mid.weight" not in self.tensors and rank * rank < size:
            up, down = self.tensors["lora_up.weight"].float(), self.tensors["lora_down.weight"].float()
            return abs(self.scale) * float(product_norm(up, down))
        return float(self.delta().norm())

    def kohya_key(self, family: str, layout: UNetLayout | None = None) -> str:
        """The module's kohya key without suffix."""
        if self.component == "unet":
            return kohya_unet_key(family, self.name, layout)
        return kohya_text_encoder_key(family, self.component, self.name)


@dataclass(frozen=True)
class LoraWeights:
    """A whole LoRA file. ``modules`` are in file order; ``extra`` holds tensors that belong to no module (bundled embeddings).

    ``fatal`` faults make the file unusable; ``problems`` are these and minor ones; ``notes`` are other remarks for the user.
    """

    modules: tuple[LoraModule, ...]
    family: str
    format: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    layout: UNetLayout | None = None
    extra: Mapping[str, torch.Tensor] = field(default_factory=dict)
    fatal: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    unknown_keys: tuple[str, ...] = ()
    family_reason: str = ""
    context_width: int | None = None
    uses_original_names: bool = False  # of the denoiser, not diffusers'

    def __iter__(self) -> Iterator[LoraModule]:
        return iter(self.modules)

    @property
    def unet_layout(self) -> UNetLayout:
        """The layout that determines LDM names."""
        return self.layout or unet_layout_of(self.family)

    @property
    def blocks(self) -> int:
        """How many blocks the denoiser must have at least, for a transformer; 0 for UNets and for files that change no block."""
        if self.family != "anima":
            return 0
        indices = [block_of(module.name) for module in self.modules if module.component == "unet"]
        return max((index + 1 for index in indices if index is not None), default=0)

    @property
    def algorithm(self) -> str:
        """The file's algorithm: ``lora``, ``locon`` (LoRA with 3x3 convolutions), ``dora``, ``loha``, …; mixes are joined with ``+``."""
        names = Counter(module.algorithm for module in self.modules)
        words = [name for name, _ in names.most_common() if name != "bias"] or ["bias"] * bool(names)
        if "lora" in words and any(_is_convolution(module) for module in self.modules):
            words[words.index("lora")] = "locon"
        if any(module.is_dora for module in self.modules):
            words = ["dora" if word == "lora" else f"dora-{word}" for word in words]
        return "+".join(words) or "none"

    @property
    def dtype(self) -> torch.dtype | None:
        """The most frequent number type of the weights."""
        kinds = Counter(tensor.dtype for module in self.modules for tensor in module.tensors.values())
        return kinds.most_common(1)[0][0] if kinds else None


def _is_convolution(module: LoraModule) -> bool:
    if "lora_mid.weight" in module.tensors:
        return True
    down = module.tensors.get("lora_down.weight")
    return down is not None and down.ndim == 4 and tuple(down.shape[2:]) != (1, 1)
