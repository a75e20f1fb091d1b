"""The demonstration: with a few steps it writes its files, and with more of them (long) the LoRA learns the style."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from demo import case, examine, run_demo
from demo.base_path import BASE_FILE
from demo.drawing.portraits import random_portrait

pytestmark = pytest.mark.slow


# Of 4 sampling steps, strength 0.65 takes 2 and 0.8 takes 3
A_FEW_STEPS = run_demo.DemoSettings(pictures=4, others=2, tests=1, shown=1, steps=6, batch=2, rank=8, sampling_steps=4)


@pytest.fixture(scope="module")
def first_steps(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("first steps")
    return out, run_demo.main(out, A_FEW_STEPS)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("demo")
    return out, run_demo.main(out, run_demo.QUICK)


def check_files(out: Path, figures: dict[str, Any]) -> None:
    """The grid, the curve, one LoRA, and ``figures.json`` with the returned figures and what each of them means."""
    stored = json.loads((out / "figures.json").read_text(encoding="utf-8"))
    assert stored == json.loads(json.dumps(figures))
    assert {"distance_base", "distance_lora_065", "distance_lora_080", "attribute_error", "training_seconds"} <= stored["meaning"].keys()
    for name in ("grid.png", "loss_curve.png"):
        with Image.open(out / name) as picture:
            picture.verify()
    assert [path.suffix for path in out.glob("*.safetensors")] == [".safetensors"]


def test_a_few_steps_train_a_lora_that_is_measured(first_steps: tuple[Path, dict[str, Any]]) -> None:
    out, figures = first_steps
    check_files(out, figures)
    assert (figures["training_steps"], figures["portraits"]) == (6, 1)
    assert figures["from_source_080"] > figures["from_source_065"] > 0
    assert figures["moved_with_trigger"] > 0


def test_a_lora_is_measured_on_other_portraits(
    first_steps: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (lora,) = first_steps[0].glob("*.safetensors")
    measured: list[case.Case] = []

    def measure(cases: list[case.Case]) -> dict[str, Any]:
        measured.extend(cases)
        return run_demo.measure(cases)

    monkeypatch.setattr(examine, "measure", measure)
    examine.main([str(lora), "--tests", "1", "--sampling-steps", "2", "--first", "700"])
    found = json.loads(capsys.readouterr().out)
    assert [case.portrait for case in measured] == [random_portrait(700)]
    assert found["portraits"] == 1 and 0 < found["distance_base"] != first_steps[1]["distance_base"]


@pytest.mark.long
def test_the_lora_comes_closer_to_the_true_rendering_than_the_base(result: tuple[Path, dict[str, Any]]) -> None:
    _, figures = result
    assert figures["distance_lora_065"] < 0.9 * figures["distance_base"]
    assert figures["style_065"] < 0.9 * figures["style_base"]


@pytest.mark.long
def test_more_strength_comes_closer_to_the_style_and_goes_farther_from_the_source(result: tuple[Path, dict[str, Any]]) -> None:
    _, figures = result
    assert figures["from_source_080"] > figures["from_source_065"] > 0
    assert figures["style_080"] < figures["style_065"]


@pytest.mark.long
def test_without_its_trigger_the_base_s_style_mostly_stays(result: tuple[Path, dict[str, Any]]) -> None:
    _, figures = result
    assert figures["moved_without_trigger"] < 0.6 * figures["moved_with_trigger"]


@pytest.mark.long
def test_the_colours_stay(result: tuple[Path, dict[str, Any]]) -> None:
    _, figures = result
    assert figures["attribute_error"] < 0.10


@pytest.mark.long
def test_the_lora_improves_other_portraits_too(result: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    out, figures = result
    check_files(out, figures)
    (lora,) = out.glob("*.safetensors")
    examine.main([str(lora), "--tests", "1", "--sampling-steps", "12", "--first", "700"])
    found = json.loads(capsys.readouterr().out)
    assert found["distance_lora_065"] < found["distance_base"] != figures["distance_base"]


@pytest.mark.parametrize("first", [50, 290, 319, 210])
def test_portraits_that_were_trained_on_are_not_measured(first: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        examine.main(["a.safetensors", "--first", str(first), "--tests", "12"])
    assert "was trained on portrait" in capsys.readouterr().err


def test_the_base_is_small_enough_for_a_repository() -> None:
    assert BASE_FILE.stat().st_size <= 40_000_000
