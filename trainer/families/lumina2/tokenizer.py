"""Gemma's tokenizer, a sentencepiece model inside the checkpoint."""

from __future__ import annotations

from typing import Any

from ...core.errors import UserError
from ..checkpoints.weights_file import WeightsFile
from . import tensor_layout

START, PADDING = 2, 0


class GemmaTokenizer:
    """Tokens of prompts as ComfyUI and transformers read them: literally, without a space before the first word."""

    def __init__(self, model: bytes) -> None:
        self._processor = _sentencepiece().SentencePieceProcessor(model_proto=model)

    def tokens(self, text: str) -> list[int]:
        """The token ids of ``text``, without start and end tokens."""
        return list(self._processor.encode(text))


def load_tokenizer(file: WeightsFile) -> GemmaTokenizer:
    """The tokenizer in ``file``. Raises UserError when there is none, or when it cannot be read."""
    key = tensor_layout.tokenizer_key(file.shapes)
    if key is None:
        raise missing_tokenizer(file.path.name)
    model = bytes(file.tensors(lambda name: name == key)[key].numpy().tobytes())
    try:
        return GemmaTokenizer(model)
    except RuntimeError as error:  # sentencepiece's own errors
        raise UserError(
            f"The tokenizer in {file.path.name} cannot be read ({error}).", "Download the file again.", kind="checkpoint"
        ) from error


def missing_tokenizer(name: str) -> UserError:
    """The error for a file whose text encoder has no tokenizer."""
    return UserError(
        f"{name} holds Gemma 2 without its tokenizer (the tensor spiece_model).",
        "Use the file that ComfyUI's examples link: gemma_2_2b_fp16.safetensors, or a checkpoint that was saved by ComfyUI.",
        kind="checkpoint",
    )


def require_sentencepiece() -> None:
    """Raise UserError unless the library that reads the tokenizer is installed."""
    _sentencepiece()


def _sentencepiece() -> Any:
    try:
        import sentencepiece
    except ImportError as error:
        raise UserError(
            "Training Lumina 2 needs the package sentencepiece, which is not installed.",
            "Install it in the Python that runs ComfyUI: python -m pip install sentencepiece",
            kind="dependency",
        ) from error
    return sentencepiece
