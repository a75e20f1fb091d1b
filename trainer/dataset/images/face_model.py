"""A face detector of the user: YOLO models as dghs-imgutils exports them to ONNX (``deepghs/anime_face_detection``,
``deepghs/anime_head_detection``) and Ultralytics does.

Input: NCHW RGB from 0 to 1, sides multiples of 32. Output: (1, 4 + classes, anchors) with centre x, centre y, width, height in input
pixels and a score for each class.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...core.errors import UserError
from ...core.messages import File, Message
from .head_finder import Head

SIDE = 640
THRESHOLD = 0.35
OVERLAP = 0.5
# a detector with "head" in its name finds heads; others find faces, to which the hair is added
HAIR = (0.35, 0.55, 0.35, 0.12)  # left, top, right, bottom as parts of the face's width and height


def detect(image: Image.Image, model: Path) -> list[Head]:
    """Heads in an RGB image, most confident first. Raises UserError when the model cannot be used."""
    session = _session(str(model))
    entry = session.get_inputs()[0]
    width, height = _input_size(entry.shape, image.size)
    scale = min(width / image.width, height / image.height)
    inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    canvas = Image.new("RGB", (width, height), (114, 114, 114))
    canvas.paste(image.resize(inner, Image.Resampling.BILINEAR))
    batch = (np.asarray(canvas, dtype=np.float32) / 255).transpose(2, 0, 1)[None]
    try:
        output = np.asarray(session.run(None, {entry.name: batch})[0], dtype=np.float32)
    except Exception as error:  # onnxruntime's own exceptions share no base that is documented
        cause = str(error).strip().splitlines()[-1][:200]
        raise UserError(f"The face model {model.name} cannot be run: {cause}", "Download it again.", kind="face model") from error
    if output.ndim != 3 or output.shape[0] != 1 or output.shape[1] < 5:
        raise UserError(
            f"{model.name} is not a YOLO detector: its output is {list(output.shape)}, expected [1, 4 + classes, anchors].",
            "Use model.onnx of an anime face or head detection model of dghs-imgutils.",
            kind="face model",
        )
    boxes = _boxes(output[0])
    is_head = "head" in str(model).lower()
    return [Head(_grown((x0 / scale, y0 / scale, x1 / scale, y1 / scale), is_head), score) for x0, y0, x1, y1, score in boxes]


def _boxes(output: npt.NDArray[np.float32]) -> list[tuple[float, float, float, float, float]]:
    """Boxes over the threshold that do not overlap a more confident one."""
    scores = output[4:].max(axis=0)
    kept: list[tuple[float, float, float, float, float]] = []
    for index in np.argsort(-scores, kind="stable"):
        score = float(scores[index])
        if score < THRESHOLD:
            break
        x, y, w, h = (float(value) for value in output[:4, index])
        box = (x - w / 2, y - h / 2, x + w / 2, y + h / 2, score)
        if all(_overlap(box, other) < OVERLAP for other in kept):
            kept.append(box)
    return kept


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    shared = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union > 0 else 0.0


def _grown(box: tuple[float, float, float, float], is_head: bool) -> tuple[float, float, float, float]:
    if is_head:
        return box
    x0, y0, x1, y1 = box
    width, height = x1 - x0, y1 - y0
    return x0 - HAIR[0] * width, y0 - HAIR[1] * height, x1 + HAIR[2] * width, y1 + HAIR[3] * height


def _input_size(shape: list[Any], image: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of the model's input: fixed by the model, or the shape of the image within SIDE, in multiples of 32."""
    if len(shape) == 4 and isinstance(shape[2], int) and isinstance(shape[3], int):
        return shape[3], shape[2]
    scale = SIDE / max(image)
    return max(32, -(-round(image[0] * scale) // 32) * 32), max(32, -(-round(image[1] * scale) // 32) * 32)


def require_face_model(model: str) -> None:
    """Raises UserError when the file does not exist."""
    if not Path(model).is_file():
        raise UserError(
            Message("The face model ", File(str(model)), " does not exist."),
            "Give the .onnx file of a face or head detector.",
            kind="face model",
        )


@lru_cache(maxsize=2)
def _session(model: str) -> Any:
    require_face_model(model)
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(
            "A face model needs onnxruntime, which is not installed.", "Install it: pip install onnxruntime", kind="face model"
        ) from error
    try:
        return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions share no base that is documented
        raise UserError(
            Message("The face model ", File(str(model)), f" cannot be loaded: {error}"), "Download it again.", kind="face model"
        ) from error
