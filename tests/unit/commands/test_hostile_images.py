"""Commands with hostile images, archives and models of datasets: a readable error, no code run, nothing written."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
from safetensors.torch import save_file

from tests.tools import hostile
from tests.unit.lorafile.helpers import lora_tensors, small_layers
from tests.unit.training_helpers import make_pictures
from trainer.cli import main


@pytest.fixture(scope="module")
def vast() -> bytes:
    return hostile.vast_picture()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("command", ["prepare", "regularisation", "sample", "thumbnail"])
def test_every_command_rejects_an_image_of_60000_pixels_a_side(
    command: str, vast: bytes, shallow_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(vast) < 3_000_000
    folder = tmp_path / "pictures"
    folder.mkdir()
    path = folder / "vast.png"
    path.write_bytes(vast)
    good, lora = make_pictures(tmp_path / "good", 1), tmp_path / "lora.safetensors"
    save_file(lora_tensors(small_layers()), lora)
    arguments = {
        "prepare": ["prepare", str(folder), "--out", str(tmp_path / "out"), "--trigger", "x"],
        "regularisation": ["prepare", str(good), "--out", str(tmp_path / "out"), "--trigger", "x", "--regularisation", str(path), "--json"],
        "sample": ["sample", "--base", str(shallow_checkpoint), "--prompt", "x", "--image", str(path), "--out", str(tmp_path / "out")],
        "thumbnail": ["export", str(lora), str(tmp_path / "out.safetensors"), "--thumbnail", str(path)],
    }
    status = main(arguments[command])
    output = capsys.readouterr()
    if command == "regularisation":  # the other pictures are prepared, and the report names what was left out
        assert status == 0
        assert "vast.png" in output.out and ("too large" in output.out or "bomb" in output.out)
        return
    assert status == 1
    assert output.err.startswith("error: ")
    assert "vast.png" in output.err


@pytest.mark.seconds
def test_only_the_valid_member_of_a_hostile_archive_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = make_pictures(tmp_path / "one", 1) / "00.png"
    (tmp_path / "a" / "b").mkdir(parents=True)
    archive = tmp_path / "a" / "b" / "pictures.zip"
    archive.write_bytes(hostile.slipping_zip(picture.read_bytes()))
    before = set(tmp_path.rglob("*"))
    assert main(["prepare", str(archive), "--out", str(tmp_path / "out"), "--trigger", "x", "--resolution", "64", "--json"]) == 0
    output = capsys.readouterr().out
    drive = "C:/escaped.png" if os.sep == "\\" else "C:\\\\escaped.png"  # zipfile makes one kind of separators
    for name in ("../escaped.png", "/tmp/escaped.png", drive, "link.png", "bomb.bmp"):
        assert name in output
    new = set(tmp_path.rglob("*")) - before
    assert all(path.is_relative_to(tmp_path / "out") for path in new)
    assert [path.name.split("-")[0] for path in new if path.suffix == ".png"] == ["good"]
    assert not Path("/tmp/escaped.png").exists()


@pytest.mark.skipif(os.name == "nt", reason="NOT CHECKED: devices and pipes are POSIX")
def test_devices_and_pipes_beside_images_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_pictures(tmp_path / "pictures", 1)
    (folder / "zero.png").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "00.txt").symlink_to("/dev/zero")
    os.mkfifo(folder / "metadata.jsonl")
    assert main(["prepare", str(folder), "--out", str(tmp_path / "out"), "--trigger", "x", "--resolution", "64", "--json"]) == 0
    output = capsys.readouterr().out
    assert all(name in output for name in ("zero.png", "pipe.png", "loop.png"))
    assert [path.name.split("-")[0] for path in (tmp_path / "out").rglob("*.png")] == ["00"]


def model_of_whole_numbers() -> bytes:
    """An ONNX model of the right shape that takes another type of number."""
    onnx = pytest.importorskip("onnx")
    helper, whole = onnx.helper, onnx.TensorProto.INT64
    shape = {"x": [None, 448, 448, 3], "y": [None, 448, 448, 3]}
    ends = [helper.make_tensor_value_info(name, whole, sizes) for name, sizes in shape.items()]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", ends[:1], ends[1:])
    return bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8).SerializeToString())


@pytest.mark.parametrize("content", ["empty", "garbage", "pickle", "device", "folder", "whole numbers"])
@pytest.mark.parametrize("kind", ["tagger", "face model"])
def test_hostile_onnx_models_are_reported(kind: str, content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    pictures, model, mark = make_pictures(tmp_path / "pictures", 1, size=(96, 160)), tmp_path / "lying.onnx", tmp_path / "it ran"
    (tmp_path / "selected_tags.csv").write_text("tag_id,name,category,count\n1,a,0,1\n", encoding="utf-8")
    if content == "device":
        if os.name == "nt":
            pytest.skip("NOT CHECKED: devices are POSIX")
        model.symlink_to("/dev/zero")
    elif content == "folder":
        model.mkdir()
    else:
        made = {"empty": b"", "garbage": b"garbage" * 1000, "pickle": pickle.dumps(hostile.Evil(mark))}
        model.write_bytes(made[content] if content in made else model_of_whole_numbers())
    command = ["prepare", str(pictures), "--out", str(tmp_path / "out"), "--trigger", "x", "--resolution", "64"]
    command += ["--tagger", str(model)] if kind == "tagger" else ["--crop", "face", "--set", f"face_model={model}"]
    assert main(command) == 1
    output = capsys.readouterr().err
    assert "error: " in output and "Traceback" not in output
    assert "lying.onnx" in output
    assert not mark.exists()
