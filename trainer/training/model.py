"""The models of a run: the denoiser and the text encoders that are trained, with adapters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..adapters import adapter
from ..adapters.denoiser_adapters import adapt_denoiser
from ..adapters.frozen_lora import merge_into
from ..adapters.start_from import load_lora
from ..compute.acceleration import Inputs
from ..config.run_config import RunConfig
from ..core import seeding
from ..core.devices import return_memory
from ..families import Family, TextSettings
from ..objective.choose import make_noise_process
from ..objective.noise_process import NoiseProcess
from .caching.cache import CacheReader
from .micro_batch import MicroBatch
from .opened_run import BaseModel, Hardware
from .trained_text_encoders import TrainedTextEncoders

if TYPE_CHECKING:
    import torch
    from torch import nn


class TrainedModel:
    """The denoiser and, where they are trained, the text encoders, on ``hardware.device``.

    ``network`` is all of them as one model, ``parameters`` are those of its adapters.
    """

    def __init__(
        self,
        denoiser: Any,
        text: TrainedTextEncoders | None,
        family: Family,
        noise_process: NoiseProcess,
        accelerator: Any,
        hardware: Hardware,
    ) -> None:
        self.denoiser, self._text, self._family, self._hardware = denoiser, text, family, hardware
        self.noise_process, self._accelerator = noise_process, accelerator
        self.network = adapter.as_one_model(denoiser.to(hardware.device).train(), text.modules if text else {})
        self.pairs = list(adapter.pairs(self.network))
        self.parameters = adapter.parameters(self.network)

    @property
    def tokenize(self) -> Callable[[str], dict[str, torch.Tensor]] | None:
        """Turns a caption into token ids, where the text encoder is trained; None: batches have what is cached."""
        return None if self._text is None or self._text.reads_cache else self._text.tokens

    def conditioning(self, prompt: str, cache: CacheReader) -> dict[str, torch.Tensor]:
        """The conditioning of ``prompt`` (a ``prompt_key``), with the current weights of what is trained of the text encoder, in fp32 on
        the CPU."""
        return cache.prompt(prompt) if self._text is None else self._text.conditioning(prompt, cache, self._accelerator.autocast())

    def to_device(self, batch: MicroBatch, *, train_text: bool) -> Inputs:
        """``batch`` on the device, with the conditioning in the form that the denoiser takes. ``train_text``: prompts are
        encoded with gradients."""
        device = self._hardware.device
        names = ("latents", "noise", "input_noise", "timesteps", "weights", "masks")
        tensors = {name: getattr(batch, name) for name in names}
        conditions = batch.conditions
        if self._text is not None:
            with self._accelerator.autocast():
                conditions = self._text.conditions(batch.conditions, training=train_text)
        return {
            **{name: None if tensor is None else tensor.to(device, non_blocking=True) for name, tensor in tensors.items()},
            "conditioning": self._family.denoiser_inputs(conditions, batch.framings, device, self._hardware.dtype),
        }

    def predict(self, noisy_latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Mapping[str, Any]) -> torch.Tensor:
        """The denoiser's prediction, (batch, channels, h, w), for ``timesteps`` as it takes them."""
        with self._accelerator.autocast():
            inputs = noisy_latents.to(self._hardware.dtype)
            predicted: torch.Tensor = self.denoiser(inputs, timesteps, **conditioning, return_dict=False)[0]
        return predicted

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Inside, there is no dropout and no gradient."""
        import torch

        self.network.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.network.train()


def load_model(
    config: RunConfig,
    base: BaseModel,
    hardware: Hardware,
    text_settings: TextSettings,
    accelerator: Any,
    prepare: Callable[[nn.Module], None],
    *,
    starts_from_lora: bool,
) -> TrainedModel:
    """Load the models of ``base`` and put adapters in. ``prepare`` may change the frozen denoiser before that.

    ``starts_from_lora``: the adapters start with the weights of ``base.lora``.
    """
    network, training, family = config.network, config.training, base.family
    weights = base.denoiser_weights.take_result() if base.denoiser_weights else None
    denoiser = family.load_denoiser(base.checkpoint, hardware.dtype, weights)
    merge_into({"unet": denoiser}, base.frozen_denoiser_lora)
    prepare(denoiser)
    if network.unet:
        adapt_denoiser(denoiser, family, network, seeding.derive_seed(training.seed, "weights") % 2**32)
    text = _load_text_encoders(config, base, text_settings, hardware) if config.trains_text else None
    # gradients are averaged for all trained models at once (``average_over_processes``), so that DDP need not wrap any
    prepared = accelerator.prepare_model(denoiser.to(hardware.device), evaluation_mode=hardware.processes.world_size > 1)
    model = TrainedModel(prepared, text, family, make_noise_process(family, base.prediction), accelerator, hardware)
    return_memory(hardware.device)
    if starts_from_lora:
        load_lora(model.network, Path(config.base.lora))
    return model


def _load_text_encoders(config: RunConfig, base: BaseModel, settings: TextSettings, hardware: Hardware) -> TrainedTextEncoders:
    encoder = base.family.load_text_encoder(base.checkpoint, hardware.dtype, hardware.device, settings.in_training)
    merge_into(encoder.modules, [module for module in base.frozen_text_lora if module.component in encoder.modules])
    text = TrainedTextEncoders(encoder, base.family, config, reads_cache=settings.part == "front")
    for model in text.modules.values():
        model.to(hardware.device)  # adapters are made on the CPU, so that a seed means the same on every device
    return text
