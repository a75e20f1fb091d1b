"""How a run reads prompts, which follows from its configuration and the model's family."""

from __future__ import annotations

from dataclasses import replace

from ..config.run_config import RunConfig
from ..core.errors import UserError
from ..core.messages import Message, Setting
from ..families import Family, TextSettings


def prompt_settings(config: RunConfig, family: Family) -> TextSettings:
    """The text settings with which prompts are encoded before the training, if they are.

    They are those of the front part alone where only the adapter behind it is trained. Raises UserError for settings that the family cannot
    use.
    """
    training = config.training
    settings = family.text_settings(training.max_tokens, training.clip_skip, training.empty_prompt)
    if config.trains("te1") and "te1" not in family.text_components:
        raise UserError(
            Message(Setting("network.text_encoder"), f" is true, but this version does not train the text encoder of {family.title}."),
            Message("Set ", Setting("network.text_encoder", False), "."),
            kind="config",
        )
    if not config.trains("adapter"):
        return settings
    if "adapter" not in family.text_components:
        raise UserError(
            Message(Setting("optimizer.text_adapter_lr"), f" is set, but {family.title} models have no text adapter."),
            Message("Set ", Setting("optimizer.text_adapter_lr", 0), "."),
            kind="config",
        )
    return settings if config.trains("te1") else replace(settings, part="front")
