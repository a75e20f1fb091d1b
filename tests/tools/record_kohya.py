"""Records what kohya-ss/sd-scripts does with sizes, prompts and batches, for tests that compare ours with it.

    python -m tests.tools.record_kohya SD_SCRIPTS

``SD_SCRIPTS`` is a checkout, and the Python one with its small requirements (toml, voluptuous, imagesize, opencv-python-headless,
einops). kohya's own classes make every number; what its files import beside them is stood in for as in ``read_with_kohya.py``.
Writes ``kohya_buckets.json``, ``kohya_tokens.json`` and ``kohya_order.json`` in the tests' folders.
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "48d368fa557731ad0488c07304dfeba8c07910eb"  # what the recorded files were made with
TOKENIZER = ROOT / "trainer" / "families" / "assets" / "clip_tokenizer"
BUCKETS = ROOT / "tests" / "unit" / "dataset" / "images" / "kohya_buckets.json"
TOKENS = ROOT / "tests" / "unit" / "dataset" / "loading" / "data" / "kohya_tokens.json"
ORDER = ROOT / "tests" / "unit" / "dataset" / "loading" / "data" / "kohya_order.json"

# resolution, smallest and largest side, step, no_upscale
RULES = [
    ((512, 512), 256, 1024, 64, False),
    ((768, 768), 256, 1536, 64, False),
    ((1024, 1024), 512, 2048, 64, False),
    ((1024, 1024), 256, 2048, 32, False),
    ((512, 768), 256, 1024, 64, False),
    ((512, 512), 256, 1024, 32, False),
    ((640, 640), 320, 1280, 8, False),
    ((512, 512), 256, 1024, 64, True),
    ((768, 768), 256, 1536, 64, True),
    ((1024, 1024), 256, 2048, 64, True),
    ((512, 512), 256, 1024, 32, True),
]
# squares, bucket sizes themselves, screens, cameras, strips, one pixel beside a square
NAMED_SIZES = [
    (512, 512), (512, 768), (768, 512), (1024, 1024), (1920, 1080), (1080, 1920), (128, 128), (300, 900), (640, 640), (576, 448),
    (100, 2000), (4000, 3000), (513, 511), (704, 320), (63, 200), (832, 1216), (1216, 832), (1024, 1536), (2048, 512), (64, 64),
]  # fmt: skip
RANDOM_SIZES = 280
SMALLEST, LARGEST = 64, 3000  # pixels a side
STEEPEST = 20  # kohya refuses steeper pictures than its buckets can hold

TAGS = [
    "1girl", "solo", "long hair", "looking at viewer", "blue eyes", "smile", "school uniform", "hair ribbon", "cherry blossoms",
    "(masterpiece:1.2)", "best quality", "twintails", "thighhighs", "outdoors", "from below", "depth of field",
]  # fmt: skip
PROMPTS = [
    "",
    "myAnimeStyleToken anime_face girl, high quality",
    "hatsune miku, 1girl, aqua hair!, \u521d\u97f3\u30df\u30af :3 \\(vocaloid\\)",
    *("x" + " x" * (count - 1) for count in (74, 75, 76, 149, 150, 151, 225, 226, 300)),
    ", ".join(f"{tag} {index}" for index in range(3) for tag in TAGS),
]
LENGTHS = (75, 150, 225)

# pictures by size and repeats of one folder each, batch size
ORDERS: list[tuple[list[tuple[tuple[int, int], int, int]], int]] = [
    ([((64, 64), 5, 1)], 1),
    ([((64, 64), 7, 3)], 4),
    ([((64, 64), 5, 2), ((128, 64), 3, 1), ((64, 128), 1, 1)], 2),
    ([((64, 64), 5, 1), ((128, 64), 2, 3), ((64, 128), 4, 1), ((128, 128), 3, 2)], 3),
    ([((64, 64), 2, 1), ((128, 64), 1, 1)], 8),
]  # fmt: skip
EPOCHS = 3


def sizes() -> list[tuple[int, int]]:
    """The image sizes: those with a name, and random ones."""
    draw = random.Random(0)
    drawn: list[tuple[int, int]] = []
    while len(drawn) < RANDOM_SIZES:
        size = (draw.randint(SMALLEST, LARGEST), draw.randint(SMALLEST, LARGEST))
        if max(size) < STEEPEST * min(size):
            drawn.append(size)
    return NAMED_SIZES + drawn


def buckets(train_util: Any) -> list[dict[str, Any]]:
    """For each rule all bucket sizes, and for each image [image, its bucket, the size it is scaled to]."""
    recorded = []
    for resolution, low, high, step, no_upscale in RULES:
        manager = train_util.BucketManager(no_upscale, resolution, low, high, step)
        manager.make_buckets()
        images = []
        for size in sizes():
            bucket, resized, _ = manager.select_bucket(*size)
            images.append([list(size), list(bucket), list(resized)])
        rule = {"resolution": list(resolution), "min": low, "max": high, "step": step, "no_upscale": no_upscale}
        recorded.append({**rule, "buckets": [list(size) for size in manager.predefined_resos], "images": images})
    return recorded


def tokens(strategy_sd: Any, strategy_sdxl: Any) -> dict[str, Any]:
    """The token ids of every prompt in pieces of 77, for each way of padding, and which of the pieces' outputs the UNet gets."""
    with tempfile.TemporaryDirectory() as cache:
        for name in (strategy_sd.TOKENIZER_ID, strategy_sd.V2_STABLE_DIFFUSION_ID, strategy_sdxl.TOKENIZER2_PATH):
            shutil.copytree(TOKENIZER, Path(cache) / name.replace("/", "_"))
        second = Path(cache) / strategy_sd.V2_STABLE_DIFFUSION_ID.replace("/", "_")  # SD 2.x's own tokenizer pads with "!"
        for file in ("tokenizer_config.json", "special_tokens_map.json"):
            settings = json.loads((second / file).read_text(encoding="utf-8"))
            (second / file).write_text(json.dumps({**settings, "pad_token": "!"}), encoding="utf-8")
        pieces: dict[str, dict[str, list[Any]]] = {"end": {}, "zero": {}}
        joined: dict[str, list[int]] = {}
        for length in LENGTHS:
            first, velocity = (strategy_sd.SdTokenizeStrategy(v2, length, cache) for v2 in (False, True))
            large = strategy_sdxl.SdxlTokenizeStrategy(length, cache)
            for prompt in PROMPTS:
                (plain,), (zeros,) = first.tokenize(prompt), velocity.tokenize(prompt)
                both = large.tokenize(prompt)
                # SD 1.x and SDXL's first encoder are fed alike, SD 2.x and SDXL's second too, but for "!": SD 2.x's tokenizer file
                # makes every one a padding token, which no other program does
                assert both[0].tolist() == plain.tolist() and (both[1].tolist() == zeros.tolist() or "!" in prompt), prompt
                pieces["end"].setdefault(str(length), []).append(plain[0].reshape(-1, 77).tolist())
                pieces["zero"].setdefault(str(length), []).append(both[1][0].reshape(-1, 77).tolist())
            joined[str(length)] = _joined(strategy_sd, first, length)
            assert joined[str(length)] == _joined(strategy_sd, velocity, length)
    return {"prompts": PROMPTS, "pieces": pieces, "joined": joined}


def _joined(strategy_sd: Any, tokenize: Any, length: int) -> list[int]:
    """Positions in the row of all pieces' outputs that kohya gives the UNet: found with an encoder whose output is the position."""
    import torch

    def encoder(ids: Any) -> tuple[Any]:
        return (torch.arange(ids.numel(), dtype=torch.float32).reshape(*ids.shape, 1),)

    model = SimpleNamespace(device=torch.device("cpu"))
    stand_in = type("Encoder", (), {"device": model.device, "__call__": lambda self, ids: encoder(ids)})()
    ids = [part.reshape(1, -1, 77) for part in tokenize.tokenize("a")]
    (states,) = strategy_sd.SdTextEncodingStrategy().encode_tokens(tokenize, [stand_in], ids)
    return [int(value) for value in states.flatten().tolist()]


def order(train_util: Any) -> list[dict[str, Any]]:
    """The batches of kohya's own dataset, epoch after epoch: names of pictures with their size."""
    recorded = []
    for folders, batch_size in ORDERS:
        with tempfile.TemporaryDirectory() as root:
            subsets = [_subset(train_util, Path(root) / str(index), *folder) for index, folder in enumerate(folders)]
            sides: dict[str, Any] = {"resolution": (128, 128), "min_bucket_reso": 64, "max_bucket_reso": 256, "bucket_reso_steps": 64}
            more: dict[str, Any] = {"enable_bucket": True, "bucket_no_upscale": True, "validation_seed": None, "validation_split": 0.0}
            rest: dict[str, Any] = {"prior_loss_weight": 1.0, "network_multiplier": 1.0, "debug_dataset": False}
            dataset = train_util.DreamBoothDataset(
                subsets, is_training_dataset=True, batch_size=batch_size, resize_interpolation=None, **sides, **more, **rest
            )
            dataset.set_seed(7)
            dataset.make_buckets()
            epochs = []
            for epoch in range(EPOCHS):
                if epoch:
                    dataset.set_current_epoch(epoch)
                epochs.append([_batch(dataset, index) for index in range(len(dataset))])
        images = [{"size": list(size), "count": count, "repeats": repeats} for size, count, repeats in folders]
        recorded.append({"images": images, "batch_size": batch_size, "epochs": epochs})
    return recorded


def _subset(train_util: Any, folder: Path, size: tuple[int, int], count: int, repeats: int) -> Any:
    folder.mkdir()
    for index in range(count):
        Image.new("RGB", size).save(folder / f"{folder.name}-{index}.png")
    names = inspect.signature(train_util.DreamBoothSubset).parameters
    values: dict[str, Any] = dict.fromkeys(names)
    values.update(dict.fromkeys(("caption_dropout_rate", "caption_tag_dropout_rate", "keep_tokens", "token_warmup_min"), 0))
    values.update(image_dir=str(folder), is_reg=False, class_tokens="x", caption_extension=".txt", num_repeats=repeats)
    return train_util.DreamBoothSubset(**values)


def _batch(dataset: Any, index: int) -> list[str]:
    """Which pictures kohya would load for its batch ``index``, by the same look-up as its ``__getitem__``."""
    at = dataset.buckets_indices[index]
    bucket = dataset.bucket_manager.buckets[at.bucket_index]
    start = at.batch_index * at.bucket_batch_size
    return [Path(key).stem for key in bucket[start : start + at.bucket_batch_size]]


def write(path: Path, data: Any) -> None:
    """As JSON, one line an entry of the outer list or table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows: Iterable[str]
    if isinstance(data, list):
        rows, brackets = (json.dumps(row) for row in data), "[]"
    else:
        rows, brackets = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in data.items()), "{}"
    path.write_text(brackets[0] + "\n" + ",\n".join(rows) + "\n" + brackets[1] + "\n", encoding="utf-8")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Record what kohya-ss/sd-scripts does, for the tests.")
    parser.add_argument("sd_scripts", type=Path, help=f"a checkout; the recorded files were made with {COMMIT[:8]}")
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.sd_scripts))
    spec = importlib.util.spec_from_file_location("read_with_kohya", ROOT / "tests" / "unit" / "dataset" / "read_with_kohya.py")
    assert spec is not None and spec.loader is not None
    reader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reader)
    reader.stand_in()
    from library import strategy_sd, strategy_sdxl, train_util

    write(BUCKETS, buckets(train_util))
    write(TOKENS, tokens(strategy_sd, strategy_sdxl))
    write(ORDER, order(train_util))


if __name__ == "__main__":
    main()
