"""Damaged and hostile files and those for other models are refused with a reason."""

from __future__ import annotations

import json
import pickle
import random
import re
import sys
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from tests.tools.hostile import Evil
from tests.unit.lorafile.helpers import lora_tensors, raw_safetensors, small_layers
from trainer.core.errors import UserError
from trainer.lorafile import card, inspect_lora, mismatch, read_lora, scan_lora
from trainer.lorafile.changing.rank import reduce_to_rank
from trainer.lorafile.reading.tensors import load_tensors

PAIR = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


def entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("header", "data", "length", "reason"),
    [
        ({}, b"", 1 << 40, "claims"),
        ({}, b"", 99_999_999, "claims"),
        (b"not json", b"", None, "not JSON"),
        (b"\xff\xfe{}", b"", None, "not JSON"),
        (b"[" * 20000, b"", None, "not JSON"),
        ([1, 2], b"", None, "not a JSON object"),
        ({"__metadata__": {"a": 1}}, b"", None, "not text"),
        ({"a": 5}, b"", None, "not an object"),
        ({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, b"\0" * 12, None, "overlaps"),
        ({"a": entry([2], 0, 8), "b": entry([2], 16, 24)}, b"\0" * 24, None, "hole"),
        ({"a": entry([3], 0, 8)}, b"\0" * 8, None, "does not match"),
        ({"a": entry([2], 0, 8)}, b"\0" * 4, None, "incomplete"),
        ({"a": entry([-1], 0, 8)}, b"\0" * 8, None, "invalid"),
        ({"a": entry([2], 8, 0)}, b"\0" * 8, None, "invalid"),
        ({"a": entry([1 << 61, 8], 0, 8)}, b"\0" * 8, None, "does not match"),
        ({"a": entry([2], 0, 8, "F99")}, b"\0" * 8, None, "unknown number type"),
        (
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            b"\0" * 4,
            None,
            "twice",
        ),
    ],
)
def test_invalid_header_is_refused(tmp_path: Path, header: object, data: bytes, length: int | None, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        read_lora(raw_safetensors(tmp_path / "x.safetensors", header, data, length))


@pytest.mark.parametrize("content", [b"", b"\0", b"\0" * 9, b"<html>not found</html>"])
def test_other_content_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a valid safetensors"):
        read_lora(path)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1 << 30))
def test_damaged_bytes_cause_only_user_errors(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    data = bytearray(save({f"{PAIR}.lora_up.weight": torch.ones(8, 2), f"{PAIR}.lora_down.weight": torch.ones(2, 8)}))
    for _ in range(rng.randint(1, 4)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    if rng.random() < 0.3:
        del data[rng.randrange(len(data)) :]
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    try:
        inspect_lora(path)
    except UserError as error:
        assert error.message


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


def test_missing_file_and_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_lora(tmp_path / "none.safetensors")
    with pytest.raises(UserError, match="holds no LoRA"):
        read_lora(tmp_path)


def refused(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> str:
    """The reason for refusing a file with these tensors, which ``info`` reports as well."""
    path = tmp_path / "x.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
    with pytest.raises(UserError) as caught:
        read_lora(path)
    info = inspect_lora(path)
    assert not info.usable and info.problems
    return caught.value.message


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        (["lora_unet_double_blocks_0_img_attn_qkv", "lora_unet_single_blocks_0_linear1"], "FLUX"),
        (["lora_unet_joint_blocks_0_x_block_attn_qkv"], "Stable Diffusion 3"),
        (["lora_prior_unet_down_blocks_0_1_channelwise_0"], "Cascade"),
        (["diffusion_model.blocks.0.cross_attn.k"], "video"),
    ],
)
def test_lora_for_another_kind_of_model_is_named(tmp_path: Path, keys: list[str], named: str) -> None:
    tensors = {f"{key}.{part}": torch.ones(4, 4) for key in keys for part in ("lora_up.weight", "lora_down.weight")}
    assert named in refused(tmp_path, tensors)


def test_file_without_lora_is_described(tmp_path: Path) -> None:
    assert "conv.weight" in refused(tmp_path, {"conv.weight": torch.ones(2)})
    assert "checkpoint" in refused(tmp_path, {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(2)})
    assert "embedding" in refused(tmp_path, {"emb_params": torch.ones(2, 768)})


def test_malformed_keys_are_listed_and_the_rest_is_used(tmp_path: Path) -> None:
    tensors = lora_tensors(small_layers())
    tensors["lora_unet_down_blocks_0_atentions_0_proj_in.lora_up.weight"] = torch.ones(2, 2)
    tensors["something"] = torch.ones(1)
    path = tmp_path / "x.safetensors"
    save_file(tensors, path)
    info = inspect_lora(path)
    assert info.usable
    assert info.unknown_keys == ("lora_unet_down_blocks_0_atentions_0_proj_in.lora_up.weight", "something")
    assert "2 keys are malformed" in info.problems[0] and "atentions" in info.problems[0]


def test_unknown_algorithm_is_named(tmp_path: Path) -> None:
    tensors = {f"{PAIR}.lora_up.weight": torch.ones(320, 2), f"{PAIR}.hada_w1_a": torch.ones(2, 2)}
    message = refused(tmp_path, tensors)
    assert "unknown algorithm" in message and "hada_w1_a" in message
    known = {f"{PAIR}.oft_blocks": torch.ones(4, 8, 8), f"{PAIR}.alpha": torch.tensor(1.0)}
    save_file(known, tmp_path / "oft.safetensors")
    info = inspect_lora(tmp_path / "oft.safetensors")
    assert info.usable and info.algorithm == "oft" and "oft" in info.problems[0]


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    for value in (float("nan"), float("inf")):
        tensors = lora_tensors(small_layers())
        tensors[f"{PAIR}.lora_down.weight"][1, 3] = value
        message = refused(tmp_path, tensors)
        assert "not finite" in message and "attn2.to_k" in message
    tensors = lora_tensors(small_layers())
    tensors[f"{PAIR}.alpha"] = torch.tensor(float("nan"))
    assert "alpha" in refused(tmp_path, tensors)
    tensors[f"{PAIR}.alpha"] = torch.ones(3)
    assert "alpha" in refused(tmp_path, tensors)


def test_wrong_shapes_are_refused(tmp_path: Path) -> None:
    tensors = lora_tensors(small_layers())
    tensors[f"{PAIR}.lora_up.weight"] = torch.ones(320, 9)
    assert "do not fit each other" in refused(tmp_path, tensors)
    tensors = lora_tensors(small_layers())
    tensors[f"{PAIR.replace('attn2_to_k', 'attn1_to_q')}.lora_down.weight"] = torch.ones(4, 768)
    message = refused(tmp_path, tensors)
    assert "320 x 768 and should be 320 x 320" in message
    tensors = lora_tensors(small_layers())
    tensors[f"{PAIR}.lora_up.weight"] = torch.ones(320)
    assert "are not matrices" in refused(tmp_path, tensors)


@pytest.mark.parametrize("shape", [(7, 1), (1, 320), (321, 1), (), (0, 1)])
def test_misshapen_dora_magnitudes_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    tensors = lora_tensors(small_layers())
    tensors[f"{PAIR}.dora_scale"] = torch.ones(shape)
    message = refused(tmp_path, tensors)
    assert "do not fit each other" in message and f"dora_scale {list(shape)}" in message and "[320, 768]" in message


@pytest.mark.parametrize("shape", [(320, 1), (1, 768), (320,)])
def test_dora_magnitudes_of_outputs_or_inputs_are_read(tmp_path: Path, shape: tuple[int, ...]) -> None:
    tensors = lora_tensors(small_layers())
    tensors[f"{PAIR}.dora_scale"] = torch.ones(shape)
    save_file(tensors, tmp_path / "x.safetensors")
    assert read_lora(tmp_path / "x.safetensors").problems == ()


def test_family_is_detected_by_text_width(tmp_path: Path) -> None:
    for width, family in ((768, "sd1"), (1024, "sd2"), (2048, "sdxl")):
        path = tmp_path / f"{family}.safetensors"
        outputs = 640 if family == "sdxl" else 320
        key = PAIR.replace("down_blocks_0", "down_blocks_1") if family == "sdxl" else PAIR
        save_file({f"{key}.lora_up.weight": torch.ones(outputs, 2), f"{key}.lora_down.weight": torch.ones(2, width)}, path)
        info = inspect_lora(path)
        assert (info.family, info.context_width) == (family, width)
        reason = mismatch(info.family, "sd1", info.context_width, 768)
        assert (reason == "") == (family == "sd1")
        if family == "sd2":
            assert "Stable Diffusion 2.x" in reason and "1024" in reason and "768" in reason


def test_all_zero_weights_are_refused(tmp_path: Path) -> None:
    tensors = {key: torch.zeros_like(t) if "lora_up" in key else t for key, t in lora_tensors(small_layers()).items()}
    assert "zero" in refused(tmp_path, tensors)


def test_odd_metadata_does_not_break_info(tmp_path: Path) -> None:
    metadata = {
        "ss_tag_frequency": "[not json", "ss_dataset_dirs": json.dumps([1]), "modelspec.thumbnail": "data:image/png;base64,AAAA",
        "modelspec.trigger_phrase": " , ", "animelora.folded_alpha": '{"all": 3}', "lora_adapter_metadata": "nonsense", "x": "\u0000\ud7ff",
    }  # fmt: skip
    save_file(lora_tensors(small_layers()), tmp_path / "x.safetensors", metadata)
    info = inspect_lora(tmp_path / "x.safetensors")
    assert info.usable and info.thumbnail is None and info.trigger_words == ()
    json.dumps(info.to_json())


@pytest.mark.parametrize("digits", [400, 5000])
def test_counts_with_hundreds_of_digits_are_ignored(tmp_path: Path, digits: int) -> None:
    huge = "1" * digits
    for frequency, folders in ((f'{{"a": {{"ohwx": {huge}}}}}', "{}"), ('{"a": {"ohwx": 3}}', f'{{"a": {{"img_count": {huge}}}}}')):
        path = tmp_path / "x.safetensors"
        save_file(lora_tensors(small_layers()), path, {"ss_tag_frequency": frequency, "ss_dataset_dirs": folders})
        assert inspect_lora(path).trigger_words == (("ohwx",) if "3" in frequency else ())
        json.dumps(card(path).to_json())


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


def test_factors_with_oversized_product_are_refused(tmp_path: Path) -> None:
    tensors = {f"{PAIR}.hada_w{n}_{side}": torch.ones((1 << 20, 1) if side == "a" else (1, 1 << 20)) for n in "12" for side in "ab"}
    save_file(tensors, tmp_path / "x.safetensors", {"ss_base_model_version": "sd_v1"})
    (module,) = scan_lora(tmp_path / "x.safetensors").modules
    with pytest.raises(UserError, match="more than any layer"):
        module.delta()
    with pytest.raises(UserError, match="more than any layer"):
        reduce_to_rank(module, 4)


def test_metadata_tables_are_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading takes time in proportion to the size of the tables, not to their size times the number of folders."""
    names = [f"1_folder {number}" for number in range(2000)]
    metadata = {
        "ss_tag_frequency": json.dumps({name: {"ohwx": 2} for name in names}),
        "ss_dataset_dirs": json.dumps({name: {"n_repeats": 1, "img_count": 2} for name in names}),
    }
    save_file(lora_tensors(small_layers()), tmp_path / "x.safetensors", metadata)
    parsed: list[int] = []

    def counting(text: Any, **options: Any) -> Any:
        parsed.append(len(text))
        return loads(text, **options)

    loads = json.loads
    monkeypatch.setattr(json, "loads", counting)
    found = card(tmp_path / "x.safetensors")
    assert found.trigger_words == ("ohwx",) and found.tags == (("ohwx", 4000),)
    assert sum(parsed) < 3 * sum(map(len, metadata.values()))


def test_oversized_metadata_table_is_not_read(tmp_path: Path) -> None:
    metadata = {"ss_tag_frequency": json.dumps({"a": {"x" * 9_000_000: 1}})}
    save_file(lora_tensors(small_layers()), tmp_path / "x.safetensors", metadata)
    info = inspect_lora(tmp_path / "x.safetensors")
    assert info.usable and info.trigger_words == ()
    assert "ss_tag_frequency is 9 MB and was not read" in info.notes


@pytest.mark.parametrize(
    "key",
    [
        f"diffusion_model.input_blocks.{'1' * 5000}.1.proj_in.lora_up.weight",
        f"lora_unet_down_blocks_{'1' * 5000}_attentions_0_proj_in.lora_up.weight",
        f"unet:{'1' * 5000}:up",
        "x" * 1_000_000,
    ],
    ids=["comfyui", "kohya", "cloneofsimo", "no name"],
)
def test_keys_with_thousands_of_digits_are_unknown(tmp_path: Path, key: str) -> None:
    save_file({**lora_tensors(small_layers()), key: torch.ones(4, 4)}, tmp_path / "x.safetensors")
    try:
        info = inspect_lora(tmp_path / "x.safetensors")
    except UserError as error:
        assert len(error.message) < 6000
    else:
        assert info.unknown_keys == (key,)
        assert len(card(tmp_path / "x.safetensors").problem) < 2000


def test_last_matching_alpha_pattern_applies(tmp_path: Path) -> None:
    """PEFT treats a pattern as a regular expression for the end of the name."""
    layers = ("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q")
    tensors: dict[str, torch.Tensor] = {}
    for layer in layers:
        tensors |= {f"unet.{layer}.lora_A.weight": torch.ones(4, 320), f"unet.{layer}.lora_B.weight": torch.ones(320, 4)}
    patterns: dict[str, float] = {"to_q": 1.0, "attn2.to_q": 2.0, **{f"none {number}": 3.0 for number in range(100)}, "n2.to_q": 8.0}
    config = {"unet.lora_alpha": 4.0, "unet.alpha_pattern": patterns}
    save_file(tensors, tmp_path / "x.safetensors", {"lora_adapter_metadata": json.dumps(config), "ss_base_model_version": "sd_v1"})
    alphas = {module.name: float(module.alpha) for module in read_lora(tmp_path / "x.safetensors") if module.alpha is not None}
    for layer in layers:
        wanted = [value for pattern, value in patterns.items() if re.fullmatch(rf".*\.?{re.escape(pattern)}", layer)]
        assert alphas[layer] == wanted[-1]
