"""Crops that keep heads whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from demo.drawing.geometry import ANIME, REALISTIC, build
from demo.drawing.portraits import random_portrait
from demo.drawing.render import render
from tests.unit.dataset.drawings import drawing
from trainer.dataset import PrepareSettings, prepare_dataset
from trainer.dataset.images.focus import Focus, content_box, crop_offset, find_head
from trainer.dataset.images.head_finder import cell_features, find_heads

Box = tuple[float, float, float, float]


SEED = 700_000  # not among the portraits that the finder was trained on


def head_box(seed: int, style: str, size: int) -> Box:
    """Face and the hair around it (not what hangs below the chin), from the drawing's geometry."""
    geometry = build(random_portrait(seed), ANIME if style == "anime" else REALISTIC)
    face = np.asarray(geometry.face) * size
    hair = np.concatenate([np.asarray(part) for part in geometry.hair()]) * size
    middle = (face[:, 0].min() + face[:, 0].max()) / 2
    reach = 1.35 * (face[:, 0].max() - face[:, 0].min()) / 2
    near = hair[(hair[:, 1] < face[:, 1].max()) & (np.abs(hair[:, 0] - middle) < reach)]
    points = np.concatenate([face, near])
    return float(points[:, 0].min()), float(points[:, 1].min()), float(points[:, 0].max()), float(points[:, 1].max())


def scene(seed: int, style: str, size: tuple[int, int], place: tuple[int, int]) -> tuple[Image.Image, Box]:
    """A 200 px portrait in a larger picture of its background's colour."""
    part = render(random_portrait(seed), style, 200)
    canvas = Image.new("RGB", size, part.getpixel((2, 2)))
    canvas.paste(part, place)
    box = head_box(seed, style, 200)
    return canvas, (box[0] + place[0], box[1] + place[1], box[2] + place[0], box[3] + place[1])


CASES = [
    ("anime", (200, 520), (0, 0)), ("anime", (200, 520), (0, 320)), ("anime", (560, 200), (360, 0)), ("anime", (560, 200), (0, 0)),
    ("flat", (200, 480), (0, 10)), ("pencil", (480, 200), (270, 0)), ("photo", (200, 480), (0, 240)),
]  # fmt: skip


@pytest.mark.parametrize(("style", "size", "place"), CASES)
def test_face_crop_keeps_heads_that_a_centre_crop_cuts(tmp_path: Path, style: str, size: tuple[int, int], place: tuple[int, int]) -> None:
    for seed in range(SEED, SEED + 3):
        image, head = scene(seed, style, size, place)
        (tmp_path / "in").mkdir(exist_ok=True)
        image.save(tmp_path / "in" / f"{seed}.png")
    kept = {}
    for crop in ("face", "centre"):
        rules = PrepareSettings.model_validate(
            {"trigger": "t", "resolution": 200, "shape": "square", "crop": crop, "clean": {"near_duplicates": False}}
        )
        dataset = prepare_dataset(tmp_path / "in", tmp_path / crop, rules).dataset
        kept[crop] = [item.crop_top_left for item in dataset.items]
        steps = [row["steps"] for row in dataset.rows()]
        found = "crop face", "crop top, no face found", "crop top, below an empty border, no face found"
        assert all(any(step.startswith(found if crop == "face" else "crop centre") for step in row) for row in steps), steps
    for index, seed in enumerate(range(SEED, SEED + 3)):
        _, head = scene(seed, style, size, place)
        assert inside(head, kept["face"][index]), f"portrait {seed} was cut"
        assert not inside(head, kept["centre"][index])


def inside(head: Box, top_left: tuple[int, int]) -> bool:
    top, left = top_left
    return left - 2 <= head[0] and head[2] <= left + 202 and top - 2 <= head[1] and head[3] <= top + 202


def test_two_heads_are_both_kept_when_they_fit() -> None:
    left, first = scene(SEED, "anime", (700, 200), (150, 0))
    right, second = scene(SEED + 1, "anime", (700, 200), (330, 0))
    left.paste(right.crop((330, 0, 530, 200)), (330, 0))
    focus = find_head(left)
    assert focus is not None and len(focus.boxes) == 2
    wide = crop_offset((700, 200), (700, 200), (400, 200), focus)[0]
    assert wide <= min(first[0], second[0]) and max(first[2], second[2]) <= wide + 400


def test_crop_keeps_the_top_without_a_head() -> None:
    assert find_head(Image.new("RGB", (300, 600), (40, 90, 160))) is None
    assert crop_offset((300, 600), (300, 600), (300, 300), None) == (0, 0)
    assert crop_offset((600, 300), (600, 300), (300, 300), None) == (150, 0)


def backdrop(kind: str, size: tuple[int, int]) -> Image.Image:
    """Something empty: one colour, or shaded along one side."""
    if kind == "plain":
        return Image.new("RGB", size, (230, 225, 240))
    along = np.linspace(40, 220, size[1])[:, None] if kind == "shaded down" else np.linspace(40, 220, size[0])[None, :]
    return Image.fromarray(np.broadcast_to(along[..., None], (size[1], size[0], 3)).astype(np.uint8))


@pytest.mark.parametrize("kind", ["plain", "shaded down", "shaded across"])
@pytest.mark.parametrize(("size", "place"), [((200, 600), (0, 380)), ((200, 600), (0, 130)), ((700, 200), (470, 0)), ((700, 200), (20, 0))])
def test_drawing_on_an_empty_canvas_is_kept_whole(kind: str, size: tuple[int, int], place: tuple[int, int]) -> None:
    canvas = backdrop(kind, size)
    canvas.paste(drawing(3, (190, 190)), place)
    left, top = crop_offset(size, size, (200, 200), None, content_box(canvas))
    assert left <= place[0] and place[0] + 190 <= left + 200 and top <= place[1] and place[1] + 190 <= top + 200


def test_content_larger_than_the_window_is_kept_from_its_top() -> None:
    canvas = backdrop("plain", (200, 900))
    canvas.paste(drawing(3, (200, 500)), (0, 250))
    left, top = crop_offset(canvas.size, canvas.size, (200, 200), None, content_box(canvas))
    assert left == 0 and 230 <= top <= 250


@given(st.integers(0, 2**32 - 1), st.integers(9, 300), st.integers(9, 300))
@settings(max_examples=25, deadline=None)
def test_content_box_contains_everything_drawn(seed: int, width: int, height: int) -> None:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    assert content_box(Image.fromarray(noise)) == pytest.approx((0, 0, width, height))
    assert content_box(backdrop("plain", (width, height))) == pytest.approx((0, 0, width, height)), "nothing to go by: all of it"


def drawings_in_a_folder(folder: Path) -> Path:
    folder.mkdir()
    drawing(1, (100, 300)).save(folder / "tall.png")
    drawing(2, (110, 160)).save(folder / "less.png")
    drawing(3, (300, 100)).save(folder / "wide.png")
    drawing(4, (100, 100)).save(folder / "square.png")
    return folder


@pytest.mark.parametrize(("data", "count"), [
    ({"shape": "square", "crop": "centre"}, 2), ({"shape": "square"}, 0), ({}, 0), ({"shape": "square", "crop": "none"}, 0),
])  # fmt: skip
def test_images_with_a_cut_top_are_counted(tmp_path: Path, data: dict[str, str], count: int) -> None:
    source = drawings_in_a_folder(tmp_path / "in")
    rules = PrepareSettings.model_validate({"trigger": "t", "resolution": 128, **data})
    warnings = [text for text in prepare_dataset(source, tmp_path / "out", rules).report.warnings if "top is cut" in text]
    assert [text.split(": heads")[0] for text in warnings] == ["The top is cut off in 2 images of 4, most (33% of the height) in tall.png"][
        : count // 2
    ]


def test_default_crop_removes_only_what_the_bucket_requires(tmp_path: Path) -> None:
    source = drawings_in_a_folder(tmp_path / "in")
    dataset = prepare_dataset(source, tmp_path / "out", PrepareSettings(trigger="t", resolution=256)).dataset
    sizes = {row["source"]: (row["width"], row["height"], row["crop_top_left"][0]) for row in dataset.rows()}
    assert all(top == 0 for _, _, top in sizes.values())
    assert sizes["square.png"][:2] == (256, 256)
    assert all(sizes[name][0] < sizes[name][1] for name in ("tall.png", "less.png")) and sizes["wide.png"][0] > sizes["wide.png"][1]


@pytest.mark.parametrize("box", [(-50.0, -80.0, 100.0, 90.0), (250.0, 500.0, 380.0, 700.0), (0.0, 0.0, 300.0, 600.0)])
def test_window_stays_inside_the_image(box: Box) -> None:
    left, top = crop_offset((300, 600), (300, 600), (300, 300), Focus((box,), 1.0, "test"))
    assert left == 0 and 0 <= top <= 300


def test_any_image_size_is_accepted() -> None:
    for size in ((16, 16), (16, 900), (33, 47), (3000, 40)):
        find_heads(Image.new("RGB", size))


def test_features_depend_on_the_direction_of_edges() -> None:
    image = Image.new("RGB", (48, 48))
    image.paste((255, 255, 255), (0, 0, 48, 22))
    features = cell_features(image)
    assert features.shape == (12, 12, 12)
    edge = features[5, 5, :9]  # a horizontal edge: its gradient points along y, 90 degrees, between bins 4 and 5
    assert edge[[4, 5]].sum() > 0.9 * edge.sum() > 0
    assert features[0, 0, 9] == pytest.approx(0.5) and features[11, 11, 9] == pytest.approx(-0.5)


def yolo(path: Path) -> None:
    """A detector with one class and three anchors that does not look: boxes around (100, 60), again nearby, and (300, 60) unsure."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    boxes = np.array([[100, 102, 300], [60, 61, 60], [40, 40, 40], [60, 60, 60], [0.9, 0.8, 0.1]], np.float32)[None]
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "boxes"], ["output0"]),
    ]
    graph = helper.make_graph(
        nodes, "yolo",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, "height", "width"])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, 5, 3])],
        [numpy_helper.from_array(boxes, "boxes"), numpy_helper.from_array(np.zeros((), np.float32), "zero")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)


@pytest.mark.parametrize(("name", "grown"), [("anime_face.onnx", True), ("anime_head.onnx", False)])
def test_yolo_detector_of_the_user_is_used(tmp_path: Path, name: str, grown: bool) -> None:
    pytest.importorskip("onnxruntime")
    yolo(tmp_path / name)
    focus = find_head(Image.new("RGB", (1280, 640)), str(tmp_path / name))
    assert focus is not None and len(focus.boxes) == 1 and focus.confidence == pytest.approx(0.9)
    left, top, right, bottom = focus.boxes[0]  # the model saw half the size
    if grown:
        assert left < 160 and right > 240 and top < 60 and bottom > 180
    else:
        assert (left, top, right, bottom) == pytest.approx((160, 60, 240, 180))
