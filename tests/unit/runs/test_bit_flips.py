"""A flipped bit in any file of a run is detected and never becomes a step, a number or a LoRA."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.unit.training_helpers import train_here
from trainer.config.run_config import RunConfig
from trainer.core.files.reading import sha256_file
from trainer.families.checkpoints.digests import cached_digest
from trainer.launch.prepared_run import prepare_run
from trainer.runs import events, states
from trainer.runs.run_folder import RunFolder
from trainer.runs.saved_lora import is_undamaged, write_record


def flips(path: Path, every: int = 1) -> Iterator[bytes]:
    """Flip one bit of ``path`` in each iteration; at the end the file is restored."""
    whole = path.read_bytes()
    for bit in range(0, 8 * len(whole), every):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(changed)
        yield bytes(changed)
    path.write_bytes(whole)


def old_record(state: Path, step: int) -> None:
    """Write the record as versions without a checksum did."""
    (state / "state.json").write_text(json.dumps({"step": step, "sha256": sha256_file(state / "state.pt")}), encoding="utf-8")


def test_no_flipped_bit_in_a_state_record_gives_another_step(tmp_path: Path) -> None:
    states.save(tmp_path, 21, {"value": 1}, run="0123456789abcdef")
    taken = 0
    for _ in flips(tmp_path / "step-000021" / "state.json"):
        saved, _values = states.newest(tmp_path, run="0123456789abcdef")
        assert saved is None or saved.step == 21
        taken += saved is not None
    assert taken <= 8, "only flipped bits in white space may go unnoticed"
    assert states.newest(tmp_path)[0] == states.Saved(tmp_path / "step-000021", 21)


def test_no_flipped_bit_in_a_result_gives_other_numbers(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "style-0123456789abcdef", "style")
    run.path.mkdir()
    run.lora.write_bytes(b"weights")
    run.write_result(steps=21, loss=0.125, seconds=3.5)
    for _ in flips(run.result):
        found = run.finished()
        assert found is None or (found.steps, found.loss, found.seconds) == (21, 0.125, 3.5)
    data = json.loads(run.result.read_text(encoding="utf-8"))
    del data["checksum"]
    run.result.write_text(json.dumps(data, indent=1), encoding="utf-8")
    assert run.finished() is not None, "a result of an earlier version is not found"


def test_no_flipped_bit_in_the_record_of_digests_gives_another_digest(tmp_path: Path) -> None:
    """Another digest of a checkpoint would train a finished run again."""
    (tmp_path / "model").write_bytes(b"weights")
    digest = cached_digest(tmp_path / "model", tmp_path, full=False)
    assert digest == sha256_file(tmp_path / "model")
    for _ in flips(tmp_path / "checkpoint-hashes.json", every=17):
        assert cached_digest(tmp_path / "model", tmp_path, full=False) == digest


@pytest.mark.slow
def test_a_state_with_a_flipped_bit_in_its_step_is_named_and_skipped(stopped: RunConfig, expected: bytes) -> None:
    run = prepare_run(stopped).folder
    record = run.checkpoints / "step-000006" / "state.json"
    text = record.read_text(encoding="utf-8")
    record.write_text(text.replace('"step": 6', '"step": 7'), encoding="utf-8")  # 6 and 7 differ in one bit
    assert record.read_text(encoding="utf-8") != text
    trained = train_here(stopped)
    assert [event.start_step for event in trained.told if isinstance(event, events.Plan)] == [0, 4]
    (warning,) = [event.message for event in trained.told if isinstance(event, events.Warning_)]
    assert "step-000006" in warning
    assert "resumes at step 4" in warning
    assert trained.run.lora.read_bytes() == expected
    found = trained.run.finished()
    assert found is not None
    assert found.steps == 6


@pytest.mark.seconds
def test_a_record_without_a_checksum_is_trusted_only_if_everything_agrees(stopped: RunConfig) -> None:
    run = prepare_run(stopped).folder
    reasons: list[str] = []

    def newest() -> int:
        reasons.clear()
        saved, _ = states.newest(run.checkpoints, run=run.identity, last_step=6, skipped=lambda _, why: reasons.append(why))
        return saved.step if saved else 0

    last = run.checkpoints / "step-000006"
    old_record(last, 6)
    assert (newest(), reasons) == (6, [])
    old_record(last, 7)
    assert (newest(), reasons) == (4, ["its state.json is of step 7"])
    # folder and record agree, but the state is of another step
    last.rename(run.checkpoints / "step-000005")
    old_record(run.checkpoints / "step-000005", 5)
    assert (newest(), reasons) == (4, ["its learning-rate schedule is at step 6"])
    shutil.copytree(run.checkpoints / "step-000004", run.checkpoints / "step-000061")
    old_record(run.checkpoints / "step-000061", 61)
    assert newest() == 4
    assert "the run ends at step 6" in reasons


def test_a_state_of_another_run_with_the_same_shapes_is_not_resumed(tmp_path: Path) -> None:
    states.save(tmp_path, 2, {"value": torch.ones(2)}, run="0123456789abcdef")
    states.save(tmp_path, 4, {"value": torch.zeros(2)}, run="fedcba9876543210")
    reasons: list[str] = []
    saved, values = states.newest(tmp_path, run="0123456789abcdef", skipped=lambda path, why: reasons.append(f"{path.name}: {why}"))
    assert saved is not None and values is not None
    assert (saved.step, values["value"].tolist()) == (2, [1.0, 1.0])
    assert reasons == ["step-000004: it belongs to another run"]


def test_a_saved_lora_with_a_flipped_bit_is_detected(undisturbed: RunFolder, tmp_path: Path) -> None:
    made = undisturbed.checkpoints / "step-000002"
    assert is_undamaged(made / "style-000002.safetensors")
    lora = Path(shutil.copy(made / "style-000002.safetensors", tmp_path))
    data_start = 8 + int.from_bytes(lora.read_bytes()[:8], "little")
    # earlier versions wrote no record: then the hash in the metadata counts
    assert is_undamaged(lora)
    every = 8 * lora.stat().st_size // 97
    assert not any(is_undamaged(lora) for number, _ in enumerate(flips(lora, every)) if number * every // 8 >= data_start)
    write_record(lora)
    assert is_undamaged(lora)
    assert not any(is_undamaged(lora) for _ in flips(lora, every))
    assert is_undamaged(lora)


@pytest.mark.slow
def test_a_damaged_lora_beside_the_state_that_is_resumed_is_written_again(stopped: RunConfig) -> None:
    lora = prepare_run(stopped).folder.checkpoints / "step-000006" / "style-000006.safetensors"
    whole = lora.read_bytes()
    for number, _ in enumerate(flips(lora, 8 * len(whole) // 2)):
        if number == 1:
            break
    assert lora.read_bytes() != whole
    assert train_here(stopped).status == 0
    assert lora.read_bytes() == whole


@pytest.mark.slow
def test_a_lora_whose_checksum_was_not_recorded_before_a_kill_gets_one(stopped: RunConfig) -> None:
    record = prepare_run(stopped).folder.checkpoints / "step-000006" / "lora.json"
    whole = record.read_bytes()
    record.unlink()
    assert train_here(stopped).status == 0
    assert record.read_bytes() == whole
