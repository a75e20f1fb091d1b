"""``[network]``: what LoRA adds to the model, and where."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ..setting import setting
from .section import Section

Targets = Literal["all-linear", "attention", "all-linear+conv"]

# a part of the model: down_blocks.1, mid_block, blocks.27.cross_attn, blocks.*.mlp; the plan checks that the model has it
BlockName = Annotated[str, Field(pattern=r"^[a-z]\w*(\.(\w+|\*))*$")]


class NetworkSection(Section):
    """Rank, alpha, targets and kind of the adapter."""

    rank: int = setting(
        16,
        "How much the LoRA can learn, and the size of its file. 16 is enough for a style; more is rarely better.",
        details="Inner width of every layer (kohya's `network_dim`).",
        why="Enough for the line, colour and shading of a style.",
        ge=1,
        le=1024,
    )
    alpha: float = setting(
        16.0,
        "Scales the LoRA by alpha / rank. The same value as rank means a scale of 1.",
        why="Equal to rank, the scale is 1 and the learning rate means what it says. Change both together.",
        gt=0,
        le=4096,
    )
    targets: Targets = setting(
        "all-linear",
        "Layers to train: all that kohya trains; attention only (a smaller file); or convolutions too (a larger file).",
        details="`all-linear`: all linear layers and 1×1 convolutions of the UNet's transformers, 192 on SD 1.x and 2.x, 722 on SDXL. "
        "`attention`: only the projections of the attention, 128, on SDXL 560. `all-linear+conv` (LoCon): the ResNet blocks and resamplers "
        "too, which learns texture better.",
        why="kohya's default set.",
    )
    modulation: bool = setting(
        False,
        "Also trains the layers that scale and shift a transformer's features by noise level (AdaLN). For Anima and Lumina 2.",
        details="Anima: 168 more modules in 28 blocks, `blocks.N.adaln_modulation_…`. Lumina 2: 28, one in each block but those for "
        "captions. UNets have none.",
        why="Off, as in kohya's trainer for Anima; its trainer for Lumina 2 trains them.",
    )
    final_layer: bool = setting(
        False,
        "Also trains a transformer's last layer, which turns features into latents. For Anima and Lumina 2.",
        details="Anima: 3 more modules, `final_layer.…`, of which two are modulation. Lumina 2: 2, of which one is.",
        why="Off, as in kohya's trainer for Anima; its trainer for Lumina 2 trains them.",
    )
    conv_rank: int = setting(
        0,
        "Rank of the 3x3 convolutions, with targets all-linear+conv. 0 uses the rank of the other layers.",
        details="kohya's `conv_dim`.",
        why="One rank everywhere.",
        ge=0,
        le=1024,
    )
    conv_alpha: float = setting(
        0.0,
        "Alpha of the 3x3 convolutions, with targets all-linear+conv. 0 uses the alpha of the other layers.",
        why="One alpha everywhere.",
        ge=0,
        le=4096,
    )
    block_ranks: dict[BlockName, Annotated[int, Field(ge=0, le=1024)]] = setting(
        {},
        "Different ranks for parts of the model, such as mid_block = 4, up_blocks.1 = 32 or blocks.*.mlp = 8. 0 leaves a part untrained.",
        details='In a file: `{"mid_block" = 4, "up_blocks.1" = 32}`. UNets have diffusers\' names: `down_blocks.N`, `mid_block`, '
        "`up_blocks.N`, and `….attentions.N` or `….resnets.N` inside them. Anima has kohya's: `blocks.N`, and `….self_attn`, "
        "`….cross_attn` or `….mlp` inside them. Lumina 2 has `layers.N`, `noise_refiner.N`, `context_refiner.N`, and `….attention` or "
        "`….feed_forward` inside them. `*` is any block. The name with the most parts wins, then the one without `*`.",
        why="One rank everywhere.",
    )
    block_alphas: dict[BlockName, Annotated[float, Field(gt=0, le=4096)]] = setting(
        {},
        "Different alphas for parts of the model, such as up_blocks.1 = 16. All other parts use the normal alpha.",
        why="One alpha everywhere.",
    )
    dropout: float = setting(
        0.0,
        "Hides this share of each layer's inputs in every step, so that a small dataset is not memorised. Try 0.1. 0 is off.",
        why="Off, as it slows learning down.",
        ge=0,
        lt=1,
    )
    rslora: bool = setting(
        False,
        "Divides alpha by the square root of the rank instead of the rank, so that high ranks keep learning (rsLoRA).",
        details="The file stores the alpha that gives this scale, so that every tool applies it (Kalajdzievski 2023).",
        why="Makes little difference at rank 16.",
    )
    dora: bool = setting(
        False,
        "Trains direction and strength of each layer separately (DoRA). Closer to full training, but slower.",
        details="Weight-decomposed LoRA (Liu et al. 2024). Magnitudes and norms are fp32 and have no weight decay. ComfyUI and diffusers "
        "read it; kohya's own tools do not, and A1111 and the Forge of 2024 [misread it](compatibility.md#known-limits).",
        why="About a third slower, and not every tool reads it.",
    )
    unet: bool = setting(
        True,
        "Trains the UNet, which paints the image. When off, only the text encoder is trained.",
        why="Styles and characters are learned there.",
    )
    text_encoder: bool = setting(
        False,
        "Also trains the text encoder, which reads the prompt. Helps with new names, but it may forget other words.",
        details="Both of SDXL's: queries, keys, values, outputs and MLP of every layer, kohya's modules, 72 on SD 1.x, 264 on SDXL, 196 of "
        "Anima's Qwen3; not Lumina 2's Gemma 2. Anima's adapter has a rate of its own, `optimizer.text_adapter_lr`.",
        why="The UNet learns a style without it, and each caption needs to be encoded only once.",
    )
    max_norm: float = setting(
        0.0,
        "Limits how much each layer may change, so that no layer dominates. 1 is usual. 0 is off.",
        details="Max-norm scaling, kohya's `scale_weight_norms`: after every step, a module whose norm of scale · up · down exceeds this "
        "is scaled down to it. Cannot be used with DoRA or schedule-free.",
        why="Off, as in kohya's trainer.",
        ge=0,
        le=1000,
    )

    @model_validator(mode="after")
    def _max_norm_without_magnitudes(self) -> NetworkSection:
        if self.max_norm and self.dora:
            raise ValueError("max_norm limits up times down, which DoRA rescales to a magnitude of its own: use only one of them")
        return self

    @model_validator(mode="after")
    def _conv_needs_targets(self) -> NetworkSection:
        if (self.conv_rank or self.conv_alpha) and self.targets != "all-linear+conv":
            raise ValueError('conv_rank and conv_alpha need targets = "all-linear+conv"')
        return self

    @property
    def beyond_targets(self) -> tuple[str, ...]:
        """The kinds of layers that are trained besides those of ``targets``, by their settings."""
        return tuple(name for name in ("modulation", "final_layer") if getattr(self, name))

    def size_of(self, module: str, kernel: Sequence[int]) -> tuple[int, float]:
        """Rank and alpha of ``module``; rank 0 leaves it untrained.

        ``module`` is the name that settings have for it (see ``lorafile.settings_name``), ``kernel`` its height and width, empty for a
        linear layer. Of the matching names of ``block_ranks`` and ``block_alphas``, the one with the most parts wins, then the one with the
        fewest ``*``.
        """
        conv = max(kernel, default=1) > 1
        rank = self.conv_rank or self.rank if conv else self.rank
        alpha = self.conv_alpha or self.alpha if conv else self.alpha
        matching = [name for name in (*self.block_ranks, *self.block_alphas) if covers(name, module)]
        for name in sorted(matching, key=lambda name: (name.count("."), -name.count("*"))):
            rank, alpha = self.block_ranks.get(name, rank), self.block_alphas.get(name, alpha)
        return rank, alpha


def covers(block: str, module: str) -> bool:
    """Whether ``block``, a name of ``block_ranks``, stands for ``module`` or something around it."""
    wanted, parts = block.split("."), module.split(".")
    return len(wanted) <= len(parts) and all(name in ("*", part) for name, part in zip(wanted, parts, strict=False))
