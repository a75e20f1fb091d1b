"""``[base]``: the model that the LoRA is trained on."""

from __future__ import annotations

from ..setting import required, setting
from .section import Section


class BaseModelSection(Section):
    """The checkpoint and what may replace or extend parts of it."""

    checkpoint: str = required(
        "The model to train on. The LoRA works best with this model and its relatives.",
        details="Any of [four families](#model-families): a single `.safetensors` file as ComfyUI has it, a diffusers folder, or a hub id "
        "when online. A `.ckpt` is opened with `weights_only=True` or refused. Plain and scaled fp8 and ComfyUI's int8 are read; other "
        "quantised files (GGUF, nf4, nvfp4) are refused.",
    )
    lora: str = setting(
        "",
        "Continues training this LoRA, made by any tool. Rank and targets must match it.",
        details="A file in any format that Load LoRA reads. Its layers and ranks must be those of `network`; its alpha may differ. "
        "A text encoder that is trained but missing in the file starts from zero. A part of the file that is not trained (the text encoder "
        "while `network.text_encoder` is off) acts during training and is copied unchanged into the new file; the log reports it.",
        why="A new LoRA starts from zero.",
    )
    vae: str = setting(
        "",
        "A VAE to use instead of the checkpoint's own, for a checkpoint without one or with a poor one.",
        details="A file as in ComfyUI's `models/vae`, or a diffusers folder. It encodes training images and decodes validation images.",
        why="Nearly every checkpoint has a good VAE.",
    )
    text_encoder: str = setting(
        "",
        "The text encoder of a model that has it in a file of its own, such as Anima. Empty searches the folders beside the model.",
        details="A file as in ComfyUI's `models/text_encoders`. Other models have their text encoders in the checkpoint.",
        why="Its tensors are recognised among the files in ComfyUI's folders.",
    )
