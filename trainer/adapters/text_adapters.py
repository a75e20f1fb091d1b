"""LoRA layers in text encoders and in the adapter behind one."""

from __future__ import annotations

from functools import partial

from ..config.run_config import RunConfig
from ..core import seeding
from ..families import Family, TextEncoder
from . import adapter


def adapt_text(encoder: TextEncoder, family: Family, config: RunConfig, seed: int) -> list[str]:
    """Put LoRA layers into every text model of ``encoder`` that ``config`` trains; returns the modules that have one, by component and
    name."""
    names = []
    for number, (component, model) in enumerate(encoder.modules.items()):
        if not config.trains(component):
            continue
        targets = family.text_targets(model, config.network.targets)
        model_seed = seeding.derive_seed(seed, "text weights", number) % 2**32
        in_settings = partial(adapter.standard_name, component)
        names += [f"{component}.{name}" for name in adapter.adapt(model, targets, config.network, model_seed, in_settings)]
    return names
