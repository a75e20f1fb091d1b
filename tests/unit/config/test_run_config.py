"""The run configuration: valid and invalid values, messages, overrides and round trips."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.config.helpers import MINIMAL
from trainer.config import run_config
from trainer.core.errors import UserError


def with_value(key: str, value: object) -> dict[str, Any]:
    """A complete configuration with one key set."""
    data = json.loads(json.dumps(MINIMAL))
    *sections, last = key.split(".")
    place = data
    for section in sections:
        place = place.setdefault(section, {})
    place[last] = value
    return dict(data)


def refusal(data: dict[str, Any]) -> str:
    """The message of the error that ``data`` gives."""
    with pytest.raises(UserError) as caught:
        run_config.parse(data)
    assert caught.value.kind == "config"
    assert caught.value.hint
    return caught.value.message


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("network.rnak", "network.rank"),
        ("optimizer.learning_rate", "optimizer.lr"),
        ("training.batchsize", "training.batch_size"),
        ("training.gradient_acumulation", "training.gradient_accumulation"),
        ("sample.promts", "sample.prompts"),
        ("output.publsh", "output.publish"),
        ("rank", "network.rank"),
        ("training.rank", "network.rank"),
    ],
)
def test_unknown_keys_are_rejected_with_the_nearest_valid_key(typo: str, meant: str) -> None:
    message = refusal(with_value(typo, 1))
    assert f"{typo}: unknown setting" in message
    if typo != "optimizer.learning_rate":  # no letters in common: a guess would be luck
        assert f"did you mean {meant}?" in message


def test_every_problem_is_listed_with_its_key() -> None:
    message = refusal({"base": {}, "dataset": {"path": "d"}, "network": {"rank": 0}, "training": {"epochs": "many"}})
    for key in ("base.checkpoint: missing", "network.rank:", "training.epochs:"):
        assert key in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("network.rank", 0),
        ("network.rank", 2000),
        ("network.rank", "eight"),
        ("network.rank", 8.5),
        ("network.alpha", 0),
        ("network.alpha", float("nan")),
        ("network.targets", "everything"),
        ("optimizer.lr", -1e-4),
        ("optimizer.lr", float("inf")),
        ("optimizer.beta2", 1.0),
        ("optimizer.max_grad_norm", -1),
        ("training.precision", "fp64"),
        ("training.seed", -1),
        ("training.epochs", [5]),
        ("training.gradient_checkpointing", "perhaps"),
        ("sample.width", 500),
        ("sample.prompts", {"a": 1}),
        ("base.checkpoint", 3),
        ("dataset", "a string, not a table"),
        ("name", ""),
        ("name", "   "),
        ("name", "n" * 300),
    ],
)
def test_invalid_values_are_rejected_with_their_key(key: str, value: object) -> None:
    assert key in refusal(with_value(key, value))


def test_invalid_width_suggests_a_valid_one() -> None:
    assert "496" in refusal(with_value("sample.width", 500))
    assert run_config.parse(with_value("sample.width", 496)).sample.width == 496


def test_single_prompt_needs_no_list() -> None:
    assert run_config.parse(with_value("sample.prompts", "a cat")).sample.prompts == ("a cat",)


def test_configuration_survives_json(tmp_path: Path) -> None:
    full = {
        **MINIMAL,
        "name": "Stil „Ü“ 絵柄",
        "network": {"rank": 4, "alpha": 2.5, "targets": "attention"},
        "optimizer": {"lr": 3e-5, "schedule": "cosine", "warmup_steps": 7},
        "sample": {"prompts": ["ein Bild", "猫"], "seed": 4294967295},
        "output": {"runs": str(tmp_path), "publish": str(tmp_path / "loras")},
    }
    full["base"] = {"checkpoint": str(tmp_path / "b.safetensors")}
    full["dataset"] = {"path": str(tmp_path / "d")}
    first = run_config.parse(full)
    path = tmp_path / "config.json"
    path.write_text(first.to_json(), encoding="utf-8")
    assert run_config.load_config(path) == first


def test_toml_and_json_of_the_same_content_are_the_same_configuration(tmp_path: Path) -> None:
    toml = 'name = "x"\n[base]\ncheckpoint = "/b"\n[dataset]\npath = "/d"\n[network]\nrank = 4\nalpha = 2\n[sample]\nprompts = ["é"]\n'
    data = {
        "name": "x",
        "base": {"checkpoint": "/b"},
        "dataset": {"path": "/d"},
        "network": {"rank": 4, "alpha": 2},
        "sample": {"prompts": ["é"]},
    }
    (tmp_path / "c.toml").write_text(toml, encoding="utf-8")
    (tmp_path / "c.json").write_text(json.dumps(data), encoding="utf-8")
    assert run_config.load_config(tmp_path / "c.toml") == run_config.load_config(tmp_path / "c.json")


def write_toml(folder: Path, extra: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "run.toml"
    path.write_text('[base]\ncheckpoint = "base.safetensors"\n[dataset]\npath = "data"\n' + extra, encoding="utf-8")
    return path


def test_relative_paths_start_from_the_folder_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "base.safetensors").touch()
    loaded = run_config.load_config(write_toml(tmp_path, '[output]\npublish = "../loras"\n'))
    assert Path(loaded.base.checkpoint) == tmp_path / "base.safetensors"
    assert Path(loaded.dataset.path) == tmp_path / "data"
    assert Path(loaded.output.runs) == tmp_path / "runs"
    assert Path(loaded.output.publish).resolve() == tmp_path.parent / "loras"


def test_hub_id_stays_unless_a_folder_has_that_name(tmp_path: Path) -> None:
    path = write_toml(tmp_path)
    path.write_text(path.read_text(encoding="utf-8").replace("base.safetensors", "owner/model"), encoding="utf-8")
    assert run_config.load_config(path).base.checkpoint == "owner/model"
    (tmp_path / "owner" / "model").mkdir(parents=True)
    assert Path(run_config.load_config(path).base.checkpoint) == tmp_path / "owner" / "model"


@pytest.mark.parametrize(
    ("override", "section", "key", "expected"),
    [
        ("network.rank=8", "network", "rank", 8),
        ("optimizer.lr=5e-5", "optimizer", "lr", 5e-5),
        ("training.precision=bf16", "training", "precision", "bf16"),
        ('training.precision="bf16"', "training", "precision", "bf16"),
        ("training.gradient_checkpointing=true", "training", "gradient_checkpointing", True),
        ("sample.negative=bad hands, a=b", "sample", "negative", "bad hands, a=b"),
        ('sample.prompts=["one", "two"]', "sample", "prompts", ("one", "two")),
        ("sample.prompts=", "sample", "prompts", ("",)),
    ],
)
def test_override_changes_only_its_key(tmp_path: Path, override: str, section: str, key: str, expected: object) -> None:
    changed = run_config.load_config(write_toml(tmp_path), [override])
    assert getattr(getattr(changed, section), key) == expected
    plain = run_config.load_config(write_toml(tmp_path)).model_dump()
    assert {k: v for k, v in changed.model_dump().items() if k != section} == {k: v for k, v in plain.items() if k != section}


@pytest.mark.parametrize(
    "override",
    [
        "network.rank",
        "=8",
        "network.rnak=8",
        "name.first=x",
        "network.rank=eight",
        "network.rank=" + "9" * 5000,
        "network.rank=" + "[" * 20_000,
    ],
)
def test_invalid_overrides_are_rejected(tmp_path: Path, override: str) -> None:
    with pytest.raises(UserError) as caught:
        run_config.load_config(write_toml(tmp_path), [override])
    assert caught.value.kind == "config"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.toml", b"not toml ["),
        ("c.json", b"{"),
        ("c.json", b"[1, 2]"),
        ("c.json", b"null"),
        ("c.toml", b"\xff\xfe\x00binary"),
        ("c.json", b"[" * 200_000),
        ("c.toml", b"x = " + b"[" * 200_000),
        ("c.json", b'{"name": ' + b"9" * 10_000 + b"}"),
        ("c.toml", b"# " + b"x" * (1 << 20)),
        ("c.json", b'{"output": [1]}'),
        ("c.json", b'{"base": {"checkpoint": "a\\u0000b"}, "dataset": {"path": 3}}'),
    ],
)
def test_broken_huge_and_deeply_nested_files_are_rejected(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        run_config.load_config(path)
    assert caught.value.kind == "config"
    assert len(caught.value.message) < 3000


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.toml cannot be read"):
        run_config.load_config(tmp_path / "nowhere.toml")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "base", "network", "rank"]), inner, max_size=3),
        max_leaves=8,
    )
)
@pytest.mark.seconds
def test_parse_returns_a_configuration_or_raises_user_error(value: Any) -> None:
    data = value if isinstance(value, dict) else {**MINIMAL, "network": value}
    try:
        assert isinstance(run_config.parse(data), run_config.RunConfig)
    except UserError as error:
        assert error.kind == "config"


def test_listed_keys_are_exactly_the_settable_ones() -> None:
    def leaves(data: dict[str, Any], prefix: str = "") -> list[str]:
        return [
            leaf
            for key, value in data.items()
            for leaf in (leaves(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [f"{prefix}{key}"])
        ]

    assert sorted(run_config.keys()) == sorted(leaves(run_config.parse(MINIMAL).model_dump()))


def test_identity_ignores_paths_and_output() -> None:
    here = run_config.parse(MINIMAL)
    there = run_config.parse({"base": {"checkpoint": "x"}, "dataset": {"path": "y"}, "output": {"runs": "z", "publish": "p"}})
    other = run_config.parse(with_value("optimizer.lr", 2e-4))
    assert here.identity() == there.identity()
    assert here.identity() != other.identity()


def test_prodigy_defaults_to_auto_and_rejects_rates_that_learn_nothing() -> None:
    assert run_config.parse({**MINIMAL, "optimizer": {"name": "prodigy"}}).optimizer.lr == "auto"
    assert run_config.parse({**MINIMAL, "optimizer": {"name": "prodigy", "lr": 0.5}}).optimizer.lr == 0.5
    with pytest.raises(UserError, match="learns nothing"):
        run_config.parse({**MINIMAL, "optimizer": {"name": "prodigy", "lr": 1e-4}})
    with pytest.raises(UserError, match="lora_plus_ratio"):
        run_config.parse({**MINIMAL, "optimizer": {"name": "prodigy", "lora_plus_ratio": 16}})


def test_polynomial_schedule_needs_a_rate_above_its_end() -> None:
    assert run_config.parse({**MINIMAL, "optimizer": {"schedule": "polynomial"}}).optimizer.lr == 1e-4
    with pytest.raises(UserError, match="must be above"):
        run_config.parse({**MINIMAL, "optimizer": {"schedule": "polynomial", "lr": 1e-7}})


@pytest.mark.skipif(os.name == "nt", reason="Windows' home folders lie beside each other: every user has one, there or not")
@pytest.mark.parametrize("key", ["base.checkpoint", "dataset.path", "output.runs", "output.publish"])
def test_unknown_home_folder_is_named(key: str) -> None:
    with pytest.raises(UserError, match="nosuchuser"):
        run_config.absolute(run_config.parse(with_value(key, "~nosuchuser/x")))
