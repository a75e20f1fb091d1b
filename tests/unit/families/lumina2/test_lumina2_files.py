"""Which files Lumina 2 is recognised in, which files belong to it, and what is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from random_checkpoints.lumina2 import DENOISER, TEXT_ENCODER, TOKENIZER, VAE
from trainer.core.errors import UserError
from trainer.families import family_of, is_base_model, open_checkpoint
from trainer.families.lumina2.lumina2_family import FAMILY

Tensors = dict[str, torch.Tensor]
CPU = torch.device("cpu")
_FILES = {
    DENOISER: "diffusion_models/lumina_2.safetensors",
    TEXT_ENCODER: "text_encoders/gemma_2_2b_fp16.safetensors",
    VAE: "vae/ae.safetensors",
}


@pytest.fixture
def changed(tiny_lumina2: Path, tmp_path: Path) -> Callable[[Callable[[Tensors], Tensors]], Path]:
    """Writes a checkpoint with changed tensors."""

    def change(function: Callable[[Tensors], Tensors]) -> Path:
        save_file(function(load_file(tiny_lumina2)), tmp_path / "changed.safetensors")
        return tmp_path / "changed.safetensors"

    return change


@pytest.fixture
def parts(tiny_lumina2: Path, tmp_path: Path) -> Path:
    """The models in three files, as ComfyUI's examples have them; the path of the transformer's."""
    tensors = load_file(tiny_lumina2)
    for prefix, name in _FILES.items():
        (tmp_path / name).parent.mkdir()
        part = {key[len(prefix) :].removeprefix("transformer."): value for key, value in tensors.items() if key.startswith(prefix)}
        if prefix == TEXT_ENCODER:
            part["spiece_model"] = tensors[TOKENIZER]
        save_file(part, tmp_path / name)
    return tmp_path / _FILES[DENOISER]


def refused(path: Path, **names: Any) -> str:
    """The message and the hint with which the model is refused."""
    with pytest.raises(UserError) as caught:
        family_of(open_checkpoint(str(path), **names))
    return f"{caught.value.message} {caught.value.hint}"


def without(prefix: str) -> Callable[[Tensors], Tensors]:
    """Leaves out tensors."""
    return lambda tensors: {name: value for name, value in tensors.items() if not name.startswith(prefix)}


def test_a_checkpoint_with_all_models_is_recognised_by_its_header(tiny_lumina2: Path) -> None:
    assert is_base_model(tiny_lumina2)
    assert family_of(open_checkpoint(str(tiny_lumina2))) is FAMILY


def test_models_in_three_files_are_found_and_are_the_same(tiny_lumina2: Path, parts: Path) -> None:
    separate, whole = open_checkpoint(str(parts)), open_checkpoint(str(tiny_lumina2))
    assert family_of(separate) is FAMILY
    assert separate.text_encoder is not None and separate.text_encoder.name == "gemma_2_2b_fp16.safetensors"
    assert separate.vae is not None and separate.vae.name == "ae.safetensors"
    texts = [FAMILY.load_text_encoder(each, torch.float32, CPU).encode(["a cat"])[0]["embeds"] for each in (separate, whole)]
    assert torch.equal(*texts)
    for load in (FAMILY.load_denoiser, FAMILY.load_vae):
        first, second = (load(each, torch.float32).state_dict() for each in (separate, whole))
        assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("prefix", "words"), [(TEXT_ENCODER, "gemma_2_2b_fp16.safetensors"), (VAE, "ae.safetensors"), (TOKENIZER, "spiece_model")]
)
def test_a_checkpoint_that_lacks_a_part_is_refused_with_the_file_to_get(changed: Callable[..., Path], prefix: str, words: str) -> None:
    assert words in refused(changed(without(prefix)))


def test_the_tokenizer_is_found_below_the_text_encoder_too(changed: Callable[..., Path]) -> None:
    path = changed(lambda tensors: {name.replace(TOKENIZER, f"{TEXT_ENCODER}spiece_model"): value for name, value in tensors.items()})
    assert FAMILY.token_counter(open_checkpoint(str(path)))("a cat") > 2


def test_a_damaged_tokenizer_is_refused(changed: Callable[..., Path]) -> None:
    path = changed(lambda tensors: {**tensors, TOKENIZER: tensors[TOKENIZER].flip(0).contiguous()})
    with pytest.raises(UserError, match=r"tokenizer in changed\.safetensors cannot be read"):
        FAMILY.token_counter(open_checkpoint(str(path)))


def test_a_missing_sentencepiece_is_refused_with_how_to_install_it(tiny_lumina2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    assert "python -m pip install sentencepiece" in refused(tiny_lumina2)


@pytest.mark.parametrize(("name", "model"), [("clip_text_pooled_proj.0.weight", "NewBie"), ("cap_pad_token", "Z-Image")])
def test_models_that_were_made_from_its_architecture_are_refused_by_name(changed: Callable[..., Path], name: str, model: str) -> None:
    path = changed(lambda tensors: {**tensors, f"{DENOISER}{name}": torch.zeros(8)})
    assert not is_base_model(path)
    assert model in refused(path)


def test_a_missing_block_is_refused(changed: Callable[..., Path]) -> None:
    path = changed(lambda tensors: {name.replace(f"{DENOISER}layers.0.", f"{DENOISER}layers.2."): value for name, value in tensors.items()})
    assert "cannot train" in refused(path)
    path = changed(lambda tensors: {name.replace(f"{DENOISER}layers.1.", f"{DENOISER}layers.2."): value for name, value in tensors.items()})
    assert "incomplete" in refused(path)
