"""PyTorch files: no code in them runs, and claims about their size cost no memory."""

from __future__ import annotations

import pickle
import sys
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.tools.hostile import Evil
from trainer.core.errors import UserError
from trainer.lorafile import inspect_lora, read_lora
from trainer.lorafile.reading.tensors import load_tensors

PAIR = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


@pytest.mark.parametrize(
    "around", [lambda evil: evil, lambda evil: {"a": evil}, lambda evil: [torch.ones(2), evil]], ids=["alone", "in a table", "in a list"]
)
def test_pickle_with_code_is_refused_and_not_run(tmp_path: Path, around: Callable[[Evil], object]) -> None:
    content = around(Evil(tmp_path / "it ran"))
    for name, write in (("new.pt", lambda p: torch.save(content, p)), ("old.pt", lambda p: p.write_bytes(pickle.dumps(content)))):
        path = tmp_path / name
        write(path)
        with pytest.raises(UserError, match=r"refused|damaged"):
            read_lora(path)
    assert not (tmp_path / "it ran").exists()


@pytest.mark.parametrize("content", [{"lr": 1.0}, [1, 2], {"a": {"b": torch.ones(1)}}])
def test_pt_without_named_tensors_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(UserError, match="does not hold named tensors"):
        read_lora(tmp_path / "x.pt")


def memory_taken(refused: Callable[[], object]) -> int:
    """The number of bytes by which the process' peak memory grew while ``refused`` raised a UserError."""
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError):
        refused()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def many(tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    return {f"{PAIR}{number}.lora_up.weight": tensor for number in range(100)}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems report peak memory differently")
@pytest.mark.parametrize(
    "content",
    [
        {"a": torch.zeros(1).expand(1 << 29)},
        {"a": torch.zeros(1).expand(1 << 38)},
        {"state_dict": {"a": torch.zeros(2, 1).expand(2, 1 << 28)}},
        [torch.zeros(1).expand(1 << 29)],
        {"a": torch.nn.Parameter(torch.zeros(1).expand(1 << 29))},
        {"a": torch.zeros(1).to(torch.float8_e4m3fn).expand(1 << 30)},
        many(torch.zeros(5_000_000)),
        {"a": torch.sparse_coo_tensor(torch.zeros(1, 1, dtype=torch.long), torch.ones(1), (1 << 38,), check_invariants=True)},
    ],
    ids=["2 GB", "1 TB", "in a state_dict", "in a list", "a parameter", "8 bits", "one tensor a hundred times", "sparse"],
)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_tensors_larger_than_their_data_are_refused_without_copying(tmp_path: Path, content: object, zipped: bool) -> None:
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    assert memory_taken(lambda: inspect_lora(tmp_path / "x.pt")) < 200_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="other systems report peak memory differently")
def test_deflated_archive_is_refused_without_unpacking(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(4)}, tmp_path / "small.pt")
    with zipfile.ZipFile(tmp_path / "small.pt") as small, zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as large:
        for name in small.namelist():
            if not name.endswith("data/0"):
                large.writestr(name, small.read(name).replace(b"K\x04", b"J" + (75_000_000).to_bytes(4, "little")))
                continue
            with large.open(name, "w") as member:
                for _ in range(300):
                    member.write(bytes(1_000_000))
    assert (tmp_path / "x.pt").stat().st_size < 1_000_000
    assert memory_taken(lambda: inspect_lora(tmp_path / "x.pt")) < 200_000_000


def rewritten(source: Path, target: Path, change: Callable[[str, bytes], tuple[str, bytes]], *more: tuple[str, bytes]) -> Path:
    """A copy of a PyTorch archive with changed and additional members."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about two members with the same name
        for name, data in (*(change(name, old.read(name)) for name in old.namelist()), *more):
            new.writestr(name, data)
    return target


def test_archive_with_inconsistent_sizes_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(4)}, tmp_path / "a.pt")
    claims = rewritten(tmp_path / "a.pt", tmp_path / "claims.pt", lambda n, d: (n, d.replace(b"K\x04t", b"J\x00\x00\x10\x00t")))
    with pytest.raises(UserError, match="claims 4,194,304 bytes of data where it has 16"):
        inspect_lora(claims)
    lacks = rewritten(tmp_path / "a.pt", tmp_path / "lacks.pt", lambda n, d: (n.replace("data/0", "data/7"), d))
    with pytest.raises(UserError, match="where it has none"):
        inspect_lora(lacks)
    twice = rewritten(tmp_path / "a.pt", tmp_path / "twice.pt", lambda n, d: (n, d), ("a/data/0", bytes(8)))
    with pytest.raises(UserError, match="the same name"):
        inspect_lora(twice)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_views_parameters_and_shared_tensors_are_read(tmp_path: Path, zipped: bool) -> None:
    alpha, wide = torch.tensor(4.0), torch.randn(2, 640)
    tensors = {f"{PAIR}.lora_up.weight": torch.nn.Parameter(torch.randn(2, 320).t()), f"{PAIR}.lora_down.weight": wide[:, 100:420]}
    other = PAIR.replace("attn2_to_k", "attn1_to_q")
    tensors |= {f"{other}.lora_up.weight": torch.randn(320, 2).half(), f"{other}.lora_down.weight": wide[:, 320:]}
    tensors |= {f"{PAIR}.alpha": alpha, f"{other}.alpha": alpha}
    torch.save({"state_dict": OrderedDict(tensors), "epoch": 3, "lr": 0.5}, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    found = load_tensors(tmp_path / "x.pt").tensors
    assert set(found) == set(tensors)
    assert all(torch.equal(found[key], tensors[key]) for key in tensors)


@pytest.mark.parametrize("cut", [1, 100, 400, 700])
def test_truncated_torch_file_is_refused(tmp_path: Path, cut: int) -> None:
    for zipped in (True, False):
        torch.save({"a": torch.zeros(400)}, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
        (tmp_path / "x.pt").write_bytes((tmp_path / "x.pt").read_bytes()[:-cut])
        with pytest.raises(UserError, match=r"damaged|refused"):
            inspect_lora(tmp_path / "x.pt")
