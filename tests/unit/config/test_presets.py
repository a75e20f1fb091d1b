"""Presets: each is a valid configuration, explicit values win, and the documentation says the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.config.helpers import MINIMAL
from trainer.cli import main
from trainer.config import presets, run_config
from trainer.core.errors import UserError
from trainer.families import FAMILIES, family_named
from trainer.objective.rectified_flow import RectifiedFlow
from trainer.training.optimizers import learning_rate

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "training.md"


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_is_a_valid_configuration_with_its_values(name: str) -> None:
    parsed = run_config.parse({**MINIMAL, "preset": name}).model_dump()
    for key, value in presets.values(name).items():
        section, last = key.split(".")
        assert parsed[section][last] == value, key
    assert parsed != run_config.parse(MINIMAL).model_dump()


@pytest.mark.parametrize("name", presets.names())
def test_preset_and_its_written_out_values_are_the_same_run(name: str) -> None:
    written = {section: dict(table) for section, table in MINIMAL.items()}
    for key, value in presets.values(name).items():
        section, last = key.split(".")
        written.setdefault(section, {})[last] = value
    assert run_config.parse({**MINIMAL, "preset": name}) == run_config.parse(written)


@pytest.mark.parametrize("name", presets.names())
def test_learning_rates_are_those_of_auto(name: str) -> None:
    settings = run_config.parse({**MINIMAL, "preset": name})
    automatic = run_config.parse({**MINIMAL, "preset": name, "optimizer": {"lr": "auto"}}).optimizer
    family = {"sd15": "sd1"}.get(name.split("-")[1], name.split("-")[1])
    assert settings.optimizer.lr == learning_rate(automatic, family_named(family).learning_rate, settings.network.rank)
    assert settings.network.alpha == settings.network.rank, "the automatic rates are for a scale of 1"


def test_explicit_values_win_over_the_preset() -> None:
    settings = run_config.parse({**MINIMAL, "preset": "style-sd15", "network": {"rank": 3}, "optimizer": {"schedule": "linear"}})
    assert (settings.network.rank, settings.optimizer.schedule) == (3, "linear")
    assert settings.network.targets == presets.values("style-sd15")["network.targets"]


def test_no_preset_is_no_change() -> None:
    assert run_config.parse({**MINIMAL, "preset": "none"}) == run_config.parse(MINIMAL)


def test_values_of_diffusions_are_left_out_for_a_rectified_flow() -> None:
    flow = {**MINIMAL, "objective": {"prediction": "flow"}}
    parsed = run_config.parse({**flow, "preset": "style-sdxl"})
    assert (parsed.objective.min_snr_gamma, parsed.objective.noise_offset) == (0, 0)
    assert parsed.network.targets == "all-linear+conv"  # the preset's other values stay
    RectifiedFlow.require_meaningful(parsed.objective)
    assert run_config.parse({**MINIMAL, "preset": "style-sdxl"}).objective.min_snr_gamma == 5


@pytest.mark.parametrize(("wrong", "meant"), [("style-sd51", "style-sd15"), ("charakter-sdxl", "character-sdxl"), (7, "style-sd15, ")])
def test_unknown_presets_are_rejected_with_the_nearest_name(wrong: object, meant: str) -> None:
    with pytest.raises(UserError) as caught:
        run_config.parse({**MINIMAL, "preset": wrong})
    assert meant in f"{caught.value.message} {caught.value.hint}"


def test_section_of_the_wrong_type_is_named() -> None:
    with pytest.raises(UserError, match="network"):
        run_config.parse({**MINIMAL, "preset": "style-sd15", "network": 5})


def test_every_value_has_a_reason_and_every_group_is_used() -> None:
    known = run_config.keys()
    used = {"every preset", *presets.SUBJECTS, *presets.MODELS, *presets.names()}
    for group, items in presets.LAYERS:
        assert group in used
        assert all(len(item.reason) > 15 and item.key in known for item in items)


def test_command_line_overrides_the_preset_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('preset = "style-sdxl"\n[base]\ncheckpoint = "x"\n[dataset]\npath = "y"\n', encoding="utf-8")
    assert run_config.load_config(file).optimizer.lr == 5e-5
    assert run_config.load_config(file, ["preset=style-sd15"]).optimizer.lr == 1e-4
    assert run_config.load_config(file, ["optimizer.lr=2e-4"]).optimizer.lr == 2e-4


def test_command_line_and_documentation_list_the_same_presets(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--presets"])
    printed = capsys.readouterr().out.strip()
    assert printed == presets.table()
    assert f"\n\n{printed}\n\n" in DOCUMENT.read_text(encoding="utf-8"), "run: python -m tests.tools.write_texts"
    assert all(f"`{name}`" in DOCUMENT.read_text(encoding="utf-8") for name in presets.names())


def test_preset_for_another_kind_of_model_is_rejected_with_the_right_one() -> None:
    groups = {family.name: family.preset_group for family in FAMILIES}
    assert groups == {"sd1": "sd15", "sd2": "sd15", "sdxl": "sdxl", "anima": "anima", "lumina2": "lumina2"}
    assert set(groups.values()) == set(presets.MODELS)
    presets.require_model("style-sd15", groups["sd2"])
    presets.require_model("none", groups["sdxl"])
    with pytest.raises(UserError) as caught:
        presets.require_model("character-sdxl", groups["sd1"])
    assert "character-sd15" in caught.value.hint
