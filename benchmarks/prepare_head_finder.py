"""Trains and measures the head finder of the face-aware crop (``trainer/dataset/images/head_finder.npz``) on drawn portraits.

    python benchmarks/prepare_head_finder.py train            # all styles, writes the weights
    python benchmarks/prepare_head_finder.py train --without anime --weights /tmp/w.npz
    python benchmarks/prepare_head_finder.py measure [--weights …]

Scenes are portraits of ``demo/`` (whose head geometry is known) at random places and sizes in wide and tall pictures. Training and
measuring use different portraits; ``--without`` leaves a style out of the training, which says how well another hand's drawings do.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageFilter

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from demo.drawing.geometry import ANIME, REALISTIC, build
from demo.drawing.portraits import STYLES, random_portrait
from demo.drawing.render import render
from demo.drawing.shapes import random_drawing
from trainer.core.terminal import escape_unprintable
from trainer.dataset.images.buckets import fit_to_square
from trainer.dataset.images.focus import content_box, crop_offset, find_head
from trainer.dataset.images.head_finder import CELL, CHANNELS, WINDOW, Network, cell_features, network, pyramid

Box = tuple[float, float, float, float]
UNITS = 3.4  # the window's side in half face widths; trainer.dataset.images.head_finder.HEAD follows from it
TEST_SEED = 500_000  # training portraits have smaller seeds; demo's base training uses seeds from 1,000,000


@dataclass(frozen=True)
class Scene:
    """An image with one head. ``window``: (x, y, side) in pixels; ``head``: face and hair above the chin."""

    image: Image.Image
    window: tuple[float, float, float]
    head: Box


def portrait(seed: int, style: str, size: int) -> Scene:
    """A square portrait of demo/."""
    record = random_portrait(seed)
    geometry = build(record, ANIME if style == "anime" else REALISTIC)
    face = np.asarray(geometry.face) * size
    hair = np.concatenate([np.asarray(part) for part in geometry.hair()]) * size
    unit = geometry.frame.unit * size
    middle = np.asarray(geometry.frame([(0.0, -0.12)]))[0] * size
    chin = face[:, 1].max()
    near = hair[(hair[:, 1] < chin) & (np.abs(hair[:, 0] - middle[0]) < 1.4 * unit)]
    points = np.concatenate([face, near])
    left, top, right, bottom = points[:, 0].min(), points[:, 1].min(), points[:, 0].max(), points[:, 1].max()
    side = UNITS * unit
    window = (float(middle[0] - side / 2), float(middle[1] - side / 2), float(side))
    return Scene(render(record, style, size), window, (float(left), float(top), float(right), float(bottom)))


def scene(seed: int, styles: tuple[str, ...]) -> Scene:
    """A portrait somewhere in a wide or tall image of other shapes."""
    rng = random.Random(f"scene-{seed}")
    height = rng.randrange(180, 420)
    width = int(height * rng.choice([0.45, 0.56, 0.67, 1.0, 1.5, 1.78, 2.2]))
    short = min(width, height)
    size = max(96, int(short * rng.uniform(0.5, 1.0)))
    part = portrait(seed, rng.choice(styles), size)
    canvas = Image.fromarray(np.asarray(random_drawing(seed, 192), dtype=np.uint8)).resize((width, height))
    if rng.random() < 0.5:  # a calm background, as most drawings have
        canvas = Image.new("RGB", (width, height), part.image.getpixel((2, 2)))
    x, y = rng.randint(0, max(0, width - size)), rng.randint(0, max(0, height - size))
    canvas.paste(part.image, (x, y))
    left, top, right, bottom = part.head
    return Scene(canvas, (part.window[0] + x, part.window[1] + y, part.window[2]), (left + x, top + y, right + x, bottom + y))


def changed(image: Image.Image, rng: random.Random) -> Image.Image:
    """Vary colours, light and sharpness."""
    if rng.random() < 0.25:
        image = image.convert("L").convert("RGB")
    elif rng.random() < 0.5:
        hue, saturation, value = image.convert("HSV").split()
        shift = rng.randrange(256) if rng.random() < 0.3 else rng.randrange(-12, 13)
        hue = hue.point([(v + shift) % 256 for v in range(256)])
        image = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
        image = ImageEnhance.Color(image).enhance(rng.uniform(0.4, 1.4))
    image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.7, 1.2))
    image = ImageEnhance.Contrast(image).enhance(rng.uniform(0.6, 1.3))
    if rng.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.2)))
    return image


def samples(seeds: range, styles: tuple[str, ...], weights: Network | None) -> Iterator[tuple[npt.NDArray[np.float32], bool]]:
    """Window features with labels. With ``weights``, also the windows that they mistake for heads."""
    for seed in seeds:
        rng = random.Random(f"samples-{seed}")
        one = scene(seed, styles)
        image = changed(one.image, rng)
        x, y, side = one.window
        window = WINDOW * CELL
        for _ in range(2):  # the head, slightly shifted and scaled
            s = side * rng.uniform(0.9, 1.12)
            left, top = x + (side - s) / 2 + side * rng.uniform(-0.05, 0.05), y + (side - s) / 2 + side * rng.uniform(-0.05, 0.05)
            part = cut(image, left, top, s, window)
            yield cell_features(part).ravel(), True
            yield cell_features(part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)).ravel(), True
            yield cell_features(part.transpose(Image.Transpose.ROTATE_180)).ravel(), False
        for level, scale in pyramid(image):
            features = cell_features(level)
            rows, columns = features.shape[0] - WINDOW + 1, features.shape[1] - WINDOW + 1
            if rows < 1 or columns < 1:
                continue
            places = [(rng.randrange(rows), rng.randrange(columns)) for _ in range(3)]
            if weights is not None:
                scores = weights.scores(features)
                worst = np.argsort(-scores, axis=None)[:12]
                places += [(int(p) // columns, int(p) % columns) for p in worst if scores.flat[p] > -2]
            for row, column in places:
                if overlap((column * CELL / scale, row * CELL / scale, window / scale), one.window) < 0.35:
                    yield features[row : row + WINDOW, column : column + WINDOW].ravel(), False


def cut(image: Image.Image, x: float, y: float, side: float, size: int) -> Image.Image:
    """The square at (x, y), with edge padding, scaled to ``size``."""
    pad = int(side)
    framed = Image.fromarray(np.pad(np.asarray(image), ((pad, pad), (pad, pad), (0, 0)), mode="edge"))
    box = (x + pad, y + pad, x + pad + side, y + pad + side)
    return framed.resize((size, size), Image.Resampling.BOX if side > size else Image.Resampling.BILINEAR, box=box)


def overlap(a: tuple[float, float, float], b: tuple[float, float, float]) -> float:
    """Intersection over union of two squares (x, y, side)."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[2], b[1] + b[2]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    return shared / (a[2] ** 2 + b[2] ** 2 - shared)


def train(styles: tuple[str, ...], path: Path, scenes: int, hidden: int) -> None:
    """Train in three rounds, each with the mistakes of the previous one."""
    import torch

    torch.manual_seed(0)
    model: Network | None = None
    xs: list[npt.NDArray[np.float16]] = []
    ys: list[bool] = []
    for round_ in range(3):
        for features, label in samples(range(round_ * scenes, (round_ + 1) * scenes), styles, model):
            xs.append(features.astype(np.float16))
            ys.append(label)
        x, y = torch.from_numpy(np.stack(xs)).float(), torch.tensor(ys, dtype=torch.float32)
        net = torch.nn.Sequential(torch.nn.Linear(WINDOW * WINDOW * CHANNELS, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, 1))
        epochs = 8
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.1)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * -(-len(y) // 256))
        loss_of = torch.nn.BCEWithLogitsLoss()
        total = 0.0
        for _ in range(epochs):
            total = 0.0
            for indices in torch.randperm(len(y)).split(256):
                noisy = torch.nn.functional.dropout(x[indices], 0.1)
                loss = loss_of(net(noisy)[:, 0], y[indices] * 0.96 + 0.02)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                total += float(loss.detach()) * len(indices)
        w = [p.detach().numpy() for p in net.parameters()]
        model = Network(w[0].T.copy(), w[1], w[2][0], float(w[3][0]))
        print(f"round {round_}: {len(ys)} windows, {sum(ys)} heads, loss {total / len(ys):.4f}", flush=True)
    assert model is not None
    with path.open("wb") as file:
        np.savez_compressed(
            file, w1=model.w1.astype(np.float16), b1=model.b1.astype(np.float16), w2=model.w2.astype(np.float16),
            b2=np.float32(model.b2),
        )  # fmt: skip
    print(f"wrote {path}, {path.stat().st_size} bytes")


def measure(weights: Network, count: int) -> None:
    """How often the square crop keeps the whole head, compared with a centre crop and the best possible crop."""
    for style in STYLES:
        whole = {"face": 0, "centre": 0, "top": 0}
        possible = found = 0
        for seed in range(TEST_SEED, TEST_SEED + count):
            one = scene(seed, (style,))
            chosen = fit_to_square(one.image.size, 256)
            scale = chosen.resized[0] / one.image.width
            head = [edge * scale for edge in one.head]
            if head[2] - head[0] > 256 or head[3] - head[1] > 256:
                continue
            possible += 1
            focus = find_head(one.image, weights=weights)
            found += focus is not None
            content = content_box(one.image)
            spare = (chosen.resized[0] - 256, chosen.resized[1] - 256)
            offsets = {
                "face": crop_offset(one.image.size, chosen.resized, chosen.target, focus, content),
                "centre": (spare[0] // 2, spare[1] // 2),
                "top": crop_offset(one.image.size, chosen.resized, chosen.target, None, content),
            }
            for name, (left, top) in offsets.items():
                inside = left - 1 <= head[0] and head[2] <= left + 257 and top - 1 <= head[1] and head[3] <= top + 257
                whole[name] += inside
        shares = ", ".join(f"{name} {share / possible:.1%}" for name, share in whole.items())
        print(f"{style:7} {possible} scenes: head whole in {shares}; a head was found in {found / possible:.1%}", flush=True)
    none = [Image.fromarray(np.asarray(random_drawing(9_000_000 + i, 256), dtype=np.uint8)) for i in range(count)]
    false = sum(find_head(image, weights=weights) is not None for image in none)
    print(f"drawings without a head: one was found in {false / count:.1%} of {count}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "measure"))
    default = Path(__file__).resolve().parent.parent / "trainer" / "dataset" / "images" / "head_finder.npz"
    parser.add_argument("--weights", type=Path, default=default)
    parser.add_argument("--without", choices=STYLES, help="style left out of the training")
    parser.add_argument("--scenes", type=int, default=150, help="for each of the three rounds of training")
    parser.add_argument("--hidden", type=int, default=16)
    parser.add_argument("--count", type=int, default=200, help="scenes for each style to measure")
    args = parser.parse_args()
    if args.what == "train":
        train(tuple(style for style in STYLES if style != args.without), args.weights, args.scenes, args.hidden)
        return
    if args.weights == default:
        measure(network(), args.count)
        return
    with np.load(args.weights, allow_pickle=False) as data:
        w = [data[name].astype(np.float32) for name in ("w1", "b1", "w2", "b2")]
    measure(Network(w[0], w[1], w[2], float(w[3])), args.count)


if __name__ == "__main__":
    escape_unprintable()
    main()
