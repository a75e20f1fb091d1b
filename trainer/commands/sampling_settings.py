"""How to use a LoRA, from the metadata of its training: clip skip, length of prompts, prediction type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..core.errors import UserError
from ..families import FLOW, TEXT_CHUNK, BaseCheckpoint, Family, Prediction, TextSettings, choose_kind, supported_predictions


@dataclass(frozen=True)
class SamplingSettings:
    """The settings to generate images with, and sentences that explain where they come from."""

    text: TextSettings
    prediction: Prediction
    remarks: tuple[str, ...]


def choose_sampling_settings(
    family: Family,
    checkpoint: BaseCheckpoint,
    loras: Sequence[tuple[Path, Mapping[str, str]]],
    *,
    clip_skip: int | None = None,
    prediction: str = "auto",
) -> SamplingSettings:
    """The user's settings; else those of the first of ``loras`` (file, metadata) that states them; else the checkpoint's.

    A checkpoint that states its prediction type is believed, as a LoRA can be used on another base model than its own. Raises UserError for
    a prediction type that is not supported and for a clip skip that the family does not have.
    """
    remarks = []
    tokens = max([TEXT_CHUNK, *(_number(metadata, "ss_max_token_length") // TEXT_CHUNK * TEXT_CHUNK for _, metadata in loras)])
    if clip_skip is None:
        clip_skip = 0
        for path, metadata in loras:
            stated = _number(metadata, "ss_clip_skip")
            try:
                text = family.text_settings(tokens, stated)
            except UserError:  # some trainers write one for families that have none
                continue
            if stated and text.clip_skip:
                clip_skip = stated
                remarks.append(f"clip skip {stated}, with which {path.name} was trained; --clip-skip 0 uses the model's own")
                break
    text = family.text_settings(tokens, clip_skip)
    of_file, supported = family.prediction(checkpoint), supported_predictions(family)
    kind = choose_kind(of_file, prediction, supported, name=checkpoint.name, title=family.title)
    chosen = Prediction(kind, of_file.zero_terminal_snr and kind == "v_prediction")
    if prediction != "auto":
        return SamplingSettings(text, chosen, tuple(remarks))
    for path, metadata in loras:
        trained = _prediction(metadata)
        if trained is None or trained.kind == chosen.kind or trained.kind not in supported:
            continue
        if family.states_prediction(checkpoint):
            remarks.append(
                f"{path.name} was trained for {trained.words}, but {checkpoint.name} states {chosen.words}, which is used; "
                "--prediction overrides it"
            )
        else:
            chosen = trained
            remarks.append(f"{trained.words}, for which {path.name} was trained; --prediction overrides it")
        break
    return SamplingSettings(text, chosen, tuple(remarks))


def _prediction(metadata: Mapping[str, str]) -> Prediction | None:
    stated = metadata.get("modelspec.prediction_type", "").lower()
    if stated in ("epsilon", "eps"):
        return Prediction()
    if stated in ("v", "v_prediction", "v-prediction"):
        return replace(Prediction("v_prediction"), zero_terminal_snr=metadata.get("ss_zero_terminal_snr") == "True")
    return Prediction(FLOW) if stated == FLOW else None


def _number(metadata: Mapping[str, str], key: str) -> int:
    text = metadata.get(key, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0
