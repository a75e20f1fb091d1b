"""Checkpoints with missing parts, in variants or as Git LFS pointers, and separate VAEs: loaded, or refused before a run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file, save_file

from tests.unit.families.helpers import copy_folder, save_as_folder
from tests.unit.training_helpers import configuration, make_dataset, train_here
from trainer.cli import main
from trainer.core.errors import UserError
from trainer.families import family_named, family_of, open_checkpoint
from trainer.families.stable_diffusion.vae import open_vae
from trainer.lorafile import read_lora

CPU = torch.device("cpu")
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3438167534\n"
UNET, VAE, TEXT = "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"


@pytest.fixture(scope="module")
def whole(shallow_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shallow checkpoint as a diffusers folder."""
    return save_as_folder(shallow_checkpoint, tmp_path_factory.mktemp("whole") / "model")


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """A copy of the folder that a test may change; weights are hard links."""
    return copy_folder(whole, tmp_path / "model")


def weights(path: Path, vae: str = "") -> dict[str, torch.Tensor]:
    checkpoint, family = open_checkpoint(str(path), vae), family_named("sd1")
    assert family_of(checkpoint) is family
    text = family.load_text_encoder(checkpoint, torch.float32, CPU).modules["te1"]
    models = {"unet": family.load_denoiser(checkpoint, torch.float32), "vae": family.load_vae(checkpoint, torch.float32), "text": text}
    return {f"{name}.{key}": value for name, model in models.items() for key, value in model.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("variant", ["fp16", "non_ema"])
def test_folder_with_only_a_variant_is_loaded(whole: Path, copy: Path, variant: str) -> None:
    for name in (UNET, VAE, TEXT):
        (copy / f"{name}.safetensors").rename(copy / f"{name}.{variant}.safetensors")
    assert same(weights(copy), weights(whole))


def test_plain_weights_are_preferred_to_a_variant(whole: Path, copy: Path) -> None:
    unet = load_file(copy / f"{UNET}.safetensors")
    save_file({key: torch.zeros_like(value) for key, value in unet.items()}, copy / f"{UNET}.fp16.safetensors")
    assert same(weights(copy), weights(whole))


def dry_run(tmp_path: Path, checkpoint: Path, **changes: object) -> int:
    config = configuration(checkpoint, make_dataset(tmp_path / "data", 1), tmp_path / "runs", changes)
    (tmp_path / "run.json").write_text(config.to_json(), encoding="utf-8")
    return main(["train", str(tmp_path / "run.json"), "--dry-run", "--json"])


def unlinked(path: Path, text: str) -> None:
    path.unlink()
    path.write_text(text, encoding="utf-8")


def read_whole(path: Path) -> dict[str, torch.Tensor]:
    """Without mapping the file into memory, since Windows deletes no file that is mapped."""
    return load(path.read_bytes())


def quantised(path: Path) -> None:
    unet = read_whole(path / f"{UNET}.safetensors")
    (path / f"{UNET}.safetensors").unlink()
    save_file({**unet, "mid_block.attentions.0.proj_in.scale_weight": torch.ones(1)}, path / f"{UNET}.safetensors")


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pointer": (lambda path: unlinked(path / f"{UNET}.safetensors", POINTER), "Git LFS pointer"),
    "pointer of the VAE": (lambda path: unlinked(path / f"{VAE}.safetensors", POINTER), "Git LFS pointer"),
    "no vae": (lambda path: shutil.rmtree(path / "vae"), "has no vae"),
    "no text encoder": (lambda path: shutil.rmtree(path / "text_encoder"), "has no text_encoder"),
    "no weights": (lambda path: (path / f"{TEXT}.safetensors").unlink(), "holds no weights"),
    "scaled fp8": (quantised, "scale_weight"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_dry_run_refuses_an_incomplete_folder(copy: Path, tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    damage, words = DAMAGE[what]
    damage(copy)
    assert dry_run(tmp_path, copy) != 0
    printed = capsys.readouterr().err
    assert words in printed and "Traceback" not in printed


def test_missing_tensor_in_folder_is_refused(copy: Path) -> None:
    unet = read_whole(copy / f"{UNET}.safetensors")
    del unet["mid_block.attentions.0.proj_in.weight"]
    (copy / f"{UNET}.safetensors").unlink()
    save_file(unet, copy / f"{UNET}.safetensors")
    with pytest.raises(UserError, match="incomplete"):
        family_named("sd1").load_denoiser(open_checkpoint(str(copy)), torch.float32)


def test_git_lfs_pointer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text(POINTER, encoding="utf-8")
    with pytest.raises(UserError, match="Git LFS pointer"):
        open_checkpoint(str(tmp_path / "model.safetensors"))


@pytest.fixture(scope="module")
def without_vae(shallow_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint without its VAE."""
    path = tmp_path_factory.mktemp("without") / "no-vae.safetensors"
    save_file({key: value for key, value in load_file(shallow_checkpoint).items() if not key.startswith("first_stage_model.")}, path)
    return path


@pytest.fixture(scope="module")
def vaes(shallow_checkpoint: Path, whole: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The checkpoint's VAE in every supported form."""
    root = tmp_path_factory.mktemp("vaes")
    found = {key: value for key, value in load_file(shallow_checkpoint).items() if key.startswith("first_stage_model.")}
    save_file(found, root / "prefixed.safetensors")
    bare = {key.removeprefix("first_stage_model."): value for key, value in found.items()}
    save_file({**bare, "model_ema.decay": torch.zeros(1)}, root / "bare.safetensors")
    torch.save({"state_dict": bare}, root / "bare.ckpt")
    shutil.copyfile(whole / f"{VAE}.safetensors", root / "diffusers.safetensors")
    names = {"prefixed": "prefixed.safetensors", "bare": "bare.safetensors", "pickle": "bare.ckpt", "diffusers": "diffusers.safetensors"}
    return {**{name: root / file for name, file in names.items()}, "folder": whole / "vae", "model folder": whole}


@pytest.mark.seconds
@pytest.mark.parametrize("form", ["prefixed", "bare", "pickle", "diffusers", "folder", "model folder"])
def test_separate_vae_loads_from_every_form(without_vae: Path, vaes: dict[str, Path], shallow_checkpoint: Path, form: str) -> None:
    assert same(weights(without_vae, str(vaes[form])), weights(shallow_checkpoint))


def test_dry_run_refuses_a_file_without_vae_unless_one_is_set(
    without_vae: Path, vaes: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dry_run(tmp_path, without_vae) != 0
    assert "holds no VAE" in capsys.readouterr().err
    assert dry_run(tmp_path, without_vae, **{"base.vae": str(vaes["bare"])}) == 0


@pytest.mark.seconds
def test_separate_vae_gives_another_run_and_other_latents(shallow_checkpoint: Path, vaes: dict[str, Path], tmp_path: Path) -> None:
    halved = load_file(vaes["bare"])
    halved["quant_conv.weight"] = halved["quant_conv.weight"] / 2
    save_file(halved, tmp_path / "halved.safetensors")
    folder, losses = make_dataset(tmp_path / "data", 2), []
    for vae in ("", str(tmp_path / "halved.safetensors")):
        trained = train_here(configuration(shallow_checkpoint, folder, tmp_path / "runs", {"training.max_steps": 1, "base.vae": vae}))
        assert trained.status == 0, trained.told[-1]
        losses.append(trained.steps[0].loss)
        metadata = read_lora(trained.run.lora).metadata
        assert metadata.get("ss_vae_name", "") == Path(vae).name
    assert len(list((tmp_path / "runs").glob("style-*"))) == 2
    assert losses[0] != losses[1]


def test_unsuitable_vae_is_refused(vaes: dict[str, Path], tmp_path: Path) -> None:
    bare = load_file(vaes["bare"])
    wide = {**bare, "decoder.conv_in.weight": torch.zeros(64, 16, 3, 3)}
    save_file(wide, tmp_path / "flux.safetensors")
    with pytest.raises(UserError, match="16 channels"):
        open_vae(str(tmp_path / "flux.safetensors"))
    save_file({key: value for key, value in bare.items() if key.startswith("decoder.")}, tmp_path / "taesd.safetensors")
    with pytest.raises(UserError, match="no VAE with an encoder and a decoder"):
        open_vae(str(tmp_path / "taesd.safetensors"))
    with pytest.raises(UserError, match="not found"):
        open_vae(str(tmp_path / "none.safetensors"))
    with pytest.raises(UserError, match="nosuchuser"):
        open_vae("~nosuchuser/vae.safetensors")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text(json.dumps({"_class_name": "AutoencoderTiny"}), encoding="utf-8")
    with pytest.raises(UserError, match="not a diffusers VAE"):
        open_vae(str(tmp_path / "folder"))


def test_hub_model_with_only_a_variant_is_downloaded_with_it(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    requests = []

    def snapshot(name: str, *, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        requests.append(ignore_patterns)
        if len(requests) == 1:
            (copy / f"{UNET}.safetensors").rename(tmp_path / "kept")
        else:
            (tmp_path / "kept").rename(copy / f"{UNET}.fp16.safetensors")
        return str(copy)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    checkpoint = open_checkpoint("someone/model")
    assert len(requests) == 2 and "*.fp16.*" in requests[0] and "*.fp16.*" not in requests[1]
    family_of(checkpoint)
