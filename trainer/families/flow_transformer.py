"""What families of transformers with a rectified flow share: Anima and Lumina 2, whose models may lie in files of their own."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from ..core.errors import UserError
from ..core.messages import Message, Setting
from .checkpoints.base_checkpoint import BaseCheckpoint
from .checkpoints.separate_parts import PartKind, SeparatePart, best_part, find_part, open_part
from .checkpoints.tensor_names import Shapes
from .checkpoints.weights_file import WeightsFile
from .flow_sampling import FlowEuler
from .interface import NOWHERE, PLAIN_TEXT, Flow, TextSettings
from .prediction import FLOW, Prediction

if TYPE_CHECKING:
    import torch
    from torch import nn

FLOWS = Prediction(FLOW)


class TensorLayout(Protocol):
    """A family's ``tensor_layout`` module: where its models are in a file."""

    def text_prefix(self, shapes: Shapes) -> str | None:
        """The prefix of the text encoder's tensors; None in files without it."""

    def vae_prefix(self, shapes: Shapes) -> str | None:
        """The prefix of the VAE's tensors; None in files without it."""

    def denoiser_keys(self, shapes: Shapes) -> set[str]:
        """The transformer's keys."""

    def text_encoder_kind(self, shapes: Shapes) -> PartKind:
        """How the text encoder of the model with these ``shapes`` is recognised."""

    def vae_kind(self) -> PartKind:
        """How the VAE is recognised."""


class FlowTransformer:
    """The part of a family that follows from its names, sizes and tables."""

    title: str
    flow: Flow | None
    layout: ClassVar[TensorLayout]
    text_rows: ClassVar[int]  # tokens that are always read
    examples: ClassVar[tuple[str, str]]  # published file names of text encoder and VAE
    targets: ClassVar[Mapping[str, tuple[str, ...]]]  # of network.targets: the last parts of the names of layers in blocks
    modulation: ClassVar[tuple[str, ...]]
    final_layer: ClassVar[tuple[str, ...]]
    blocks: ClassVar[tuple[str, ...]]  # how the names of layers in blocks begin

    def with_parts(
        self, checkpoint: BaseCheckpoint, vae: str, text_encoder: str, candidates: Mapping[str, Sequence[Path]] = NOWHERE
    ) -> BaseCheckpoint:
        """Text encoder and VAE are named, or in the checkpoint, or found."""
        shapes = checkpoint.shapes
        own_text, own_vae = self.layout.text_prefix(shapes) is not None, self.layout.vae_prefix(shapes) is not None
        text_kind, vae_kind = self.layout.text_encoder_kind(shapes), self.layout.vae_kind()
        text_part = _part(checkpoint, text_encoder, text_kind, candidates.get("text_encoder", ()), own=own_text)
        vae_part = _part(checkpoint, vae, vae_kind, candidates.get("vae", ()), own=own_vae)
        if text_part is None and vae_part is None:
            return checkpoint
        return replace(checkpoint, text_encoder=text_part, vae=vae_part)

    def require_text_encoder(self, checkpoint: BaseCheckpoint) -> None:
        """Raise UserError unless the text encoder is known."""
        if checkpoint.text_encoder is None and self.layout.text_prefix(checkpoint.shapes) is None:
            raise self._missing(checkpoint, self.layout.text_encoder_kind(checkpoint.shapes), self.examples[0])

    def require_vae(self, checkpoint: BaseCheckpoint) -> None:
        """Raise UserError unless the VAE is known."""
        if checkpoint.vae is None and self.layout.vae_prefix(checkpoint.shapes) is None:
            raise self._missing(checkpoint, self.layout.vae_kind(), self.examples[1])

    def prediction(self, checkpoint: BaseCheckpoint) -> Prediction:
        """The velocity of a rectified flow."""
        return FLOWS

    def states_prediction(self, checkpoint: BaseCheckpoint) -> bool:
        """The architecture states it: all models of this family flow."""
        return True

    def read_denoiser(self, checkpoint: BaseCheckpoint, dtype: torch.dtype, *, channels_last: bool = False) -> dict[str, torch.Tensor]:
        """The transformer's tensors alone."""
        wanted = self.layout.denoiser_keys(checkpoint.shapes)
        return checkpoint.tensors(lambda key: key in wanted, dtype)

    def text_settings(self, max_tokens: int, clip_skip: int, empty_prompt: str = "comfyui") -> TextSettings:
        """``text_rows`` tokens are always read: limits of CLIP have no meaning here. Raises UserError for a clip skip."""
        if clip_skip:
            raise UserError(
                Message(Setting("training.clip_skip"), f" is {clip_skip}, but {self.title}'s text encoder is not CLIP."),
                Message("Set ", Setting("training.clip_skip", 0), "."),
                kind="config",
            )
        return TextSettings(self.text_rows, 0, empty_prompt)

    def read_whole(self, settings: TextSettings) -> TextSettings:
        """``settings`` without the limits of CLIP."""
        return replace(settings, max_tokens=self.text_rows, clip_skip=0)

    def sampling_scheduler(self, prediction: Prediction = FLOWS, *, karras: bool = False, shift: float = 0.0) -> FlowEuler:
        """Euler with ComfyUI's noise levels."""
        assert self.flow is not None
        return FlowEuler(shift or self.flow.sampling_shift, self.flow.timestep_multiplier)

    def denoiser_targets(self, denoiser: nn.Module, targets: str, beyond: Collection[str] = ()) -> list[str]:
        """The layers of ``targets`` in every block; beyond these, the ``modulation`` of every block and the ``final_layer``."""
        from torch import nn

        if targets not in self.targets:
            raise UserError(
                Message(Setting("network.targets"), f" is {targets}, but {self.title} has no convolutions."),
                Message("Set ", Setting("network.targets", "all-linear"), " or attention."),
                kind="config",
            )
        in_blocks = self.targets[targets] + (self.modulation if "modulation" in beyond else ())
        outside = self.final_layer if "final_layer" in beyond else ()
        linear = (name for name, module in denoiser.named_modules() if isinstance(module, nn.Linear))
        return [name for name in linear if name in outside or (name.startswith(self.blocks) and name.endswith(in_blocks))]

    def pipeline(self, checkpoint: BaseCheckpoint, *, dtype: torch.dtype, settings: TextSettings = PLAIN_TEXT) -> None:
        """None: diffusers' pipelines for these families load no LoRA in kohya's format."""
        return

    def image_to_image(self, pipeline: Any) -> None:
        """None, as for ``pipeline``."""
        return

    def _missing(self, checkpoint: BaseCheckpoint, kind: PartKind, example: str) -> UserError:
        folder = kind.folders[0]
        return UserError(
            f"{checkpoint.name} does not hold the {kind.title} that {self.title} needs, and no file beside it does.",
            Message(f"Put {example} into ComfyUI's folder models/{folder}, or name the file in ", kind.setting, "."),
            kind="checkpoint",
        )


def file_of(checkpoint: BaseCheckpoint, part: SeparatePart | None) -> WeightsFile:
    """The file with the tensors of ``part``: its own, else the checkpoint."""
    return checkpoint.file if part is None else WeightsFile(part.path)


def _part(checkpoint: BaseCheckpoint, reference: str, kind: PartKind, candidates: Sequence[Path], *, own: bool) -> SeparatePart | None:
    if reference:
        return open_part(reference, kind)
    return None if own else best_part(candidates, kind) or find_part(checkpoint.path, kind)
