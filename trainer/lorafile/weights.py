"""The form that every LoRA file is read into, whatever its naming: one object a module, tensors with LyCORIS' names."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch

from ..core.errors import UserError
from . import algorithms
from .models import layout_of
from .names import kohya_text_encoder_key, kohya_unet_key
from .unet_names import UNetLayout

_LARGEST_LAYER = 2**28  # entries, ten times those of SDXL's largest: a small file can name factors whose product fills any memory
Component = str  # "unet", "te1" (the only or first text encoder), "te2" (SDXL's second)


@dataclass(frozen=True)
class LoraModule:
    """The change of one layer.

    ``name`` is the layer's diffusers name (text encoders: from ``text_model.`` on); ``tensors`` are by LyCORIS name
    (``lora_up.weight``, ``hada_w1_a``, …) without ``alpha``, which is a one-element tensor or None (scale 1).
    """

    component: Component
    name: str
    algorithm: str
    tensors: Mapping[str, torch.Tensor]
    alpha: torch.Tensor | None = None

    @property
    def rank(self) -> int | None:
        """The rank; None for full weights and other forms that have none."""
        return algorithms.rank_of(self.algorithm, self.tensors)

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return algorithms.scale_of(self.algorithm, self.tensors, self.alpha)

    @property
    def is_dora(self) -> bool:
        """Whether the layer's weight is decomposed into direction and magnitude."""
        return "dora_scale" in self.tensors

    def delta(self) -> torch.Tensor:
        """The scaled weight change in fp32, ``(out, in[, kh, kw])``; for DoRA, the change before its normalisation.

        Raises UserError for factors whose product is larger than any model's layer.
        """
        if self.algorithm not in algorithms.PASSED_THROUGH:
            shape = algorithms.delta_shape(self.algorithm, self._summands)
            if math.prod(shape) > _LARGEST_LAYER:
                raise UserError(f"{self.name} would change {list(shape)} weights, more than any layer has.", "It is no LoRA.", kind="lora")
        return algorithms.unscaled_delta(self.algorithm, self._summands) * self.scale

    @property
    def _summands(self) -> dict[str, torch.Tensor]:
        return {name: tensor for name, tensor in self.tensors.items() if name != "dora_scale"}

    def norm(self) -> float | None:
        """The Frobenius norm of ``delta()``; None for an algorithm that changes the weight in another way than by addition, and for
        factors whose product is larger than any model's layer."""
        if self.algorithm in algorithms.PASSED_THROUGH:
            return None
        size, rank = math.prod(algorithms.delta_shape(self.algorithm, self._summands)), self.rank or 0
        if size > _LARGEST_LAYER:
            return None
        if self.algorithm == "lora" and "lora_mid.weight" not in self.tensors and rank * rank < size:
            up, down = self.tensors["lora_up.weight"].float(), self.tensors["lora_down.weight"].float()
            return abs(self.scale) * float(algorithms.product_norm(up, down))
        return float(self.delta().norm())

    def kohya_key(self, family: str, layout: UNetLayout | None = None) -> str:
        """The module's kohya key without suffix."""
        if self.component == "unet":
            return kohya_unet_key(family, self.name, layout)
        return kohya_text_encoder_key(family, self.component, self.name)


@dataclass(frozen=True)
class LoraWeights:
    """A whole file. ``modules`` is in file order; ``extra`` holds tensors that belong to no module (bundled embeddings).

    ``fatal`` faults make the file unusable; ``problems`` are these and lesser ones; ``notes`` are worth knowing.
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
    uses_ldm: bool = False

    def __iter__(self) -> Iterator[LoraModule]:
        return iter(self.modules)

    @property
    def unet_layout(self) -> UNetLayout:
        """The layout that LDM names are made with."""
        return self.layout or layout_of(self.family)

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
        """The number type of most weights."""
        kinds = Counter(tensor.dtype for module in self.modules for tensor in module.tensors.values())
        return kinds.most_common(1)[0][0] if kinds else None


def _is_convolution(module: LoraModule) -> bool:
    if "lora_mid.weight" in module.tensors:
        return True
    down = module.tensors.get("lora_down.weight")
    return down is not None and down.ndim == 4 and tuple(down.shape[2:]) != (1, 1)
