"""Automatic tags from a WD-tagger ONNX model of the user (onnxruntime, optional).

Format of these models, from SmilingWolf's model cards and ``selected_tags.csv``: the input is NHWC, BGR, float32 from 0 to 255, a square
padded with white (448 pixels, read from the model); the output is one probability for each row of the CSV (columns tag_id, name,
category, count; category 0 general, 4 character, 9 rating).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...config.prepare_sections import CaptionSettings, TaggerSettings
from ...core.errors import Cancelled, UserError
from ...core.files.image_file import load_image
from ...core.files.reading import read_regular, sha256_file
from ...core.files.writing import write_atomic
from ...core.messages import File, Message
from ..layout import WORK
from .booru import spaced
from .tag_rules import TagPatterns

GENERAL, CHARACTER, RATING = 0, 4, 9
BATCH = 8
_LARGEST_LIST, _LARGEST_CACHE = 64 << 20, 4 << 30  # bytes
_KEEP_ABOVE = 0.05  # scores in the cache, so that the model need not run again for another threshold


@dataclass(frozen=True)
class Tag:
    """A tag that the model found in an image. ``score`` is its probability."""

    name: str
    category: int
    score: float


class Tagger:
    """A loaded model. Raises UserError when the model, its tag list or onnxruntime is missing, or when they do not match."""

    def __init__(self, model: Path) -> None:
        self.path = _model_file(model)
        self.names, self.categories = _read_tags(self.path.parent / "selected_tags.csv")
        self._session = _session(self.path)
        self._input = self._session.get_inputs()[0]
        shape = list(self._input.shape)
        if len(shape) != 4 or shape[3] != 3 or not isinstance(shape[1], int) or shape[1] != shape[2]:
            raise UserError(
                f"{self.path.name} is not a WD tagger: its input is {shape}, expected [N, 448, 448, 3].",
                "Use a model of the wd-*-tagger-v2/v3 family with its selected_tags.csv.",
                kind="tagger",
            )
        self.side: int = shape[1]
        self._fixed_batch: int | None = shape[0] if isinstance(shape[0], int) else None

    def tag(self, images: Sequence[Image.Image]) -> list[list[Tag]]:
        """The tags of each image, most probable first."""
        result: list[list[Tag]] = []
        size = self._fixed_batch or BATCH
        for start in range(0, len(images), size):
            part = images[start : start + size]
            batch = np.stack([model_input(image, self.side) for image in part])
            if self._fixed_batch and len(part) < self._fixed_batch:
                batch = np.concatenate([batch, np.repeat(batch[-1:], self._fixed_batch - len(part), axis=0)])
            scores = self._scores(batch)
            if scores.ndim != 2 or scores.shape[1] != len(self.names):
                raise UserError(
                    f"{self.path.name} gives {scores.shape[-1]} tags, its selected_tags.csv lists {len(self.names)}.",
                    "Use the model and the CSV of the same download.",
                    kind="tagger",
                )
            result += [self._tags(row) for row in scores[: len(part)]]
        return result

    def _scores(self, batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        try:
            return np.asarray(self._session.run(None, {self._input.name: batch})[0], dtype=np.float64)
        except Exception as error:  # onnxruntime's own exceptions share no base that is documented
            cause = str(error).strip().splitlines()[-1][:200]
            raise UserError(f"The tagger {self.path.name} cannot be run: {cause}", "Download it again.", kind="tagger") from error

    def _tags(self, scores: npt.NDArray[np.float64]) -> list[Tag]:
        order = np.argsort(-scores, kind="stable")
        return [Tag(self.names[i], self.categories[i], float(scores[i])) for i in order if scores[i] >= _KEEP_ABOVE]


def model_input(image: Image.Image, side: int) -> npt.NDArray[np.float32]:
    """(side, side, 3) float32 BGR from 0 to 255, the image centred on a white square."""
    longest = max(image.size)
    square = Image.new("RGB", (longest, longest), (255, 255, 255))
    square.paste(image.convert("RGB"), ((longest - image.width) // 2, (longest - image.height) // 2))
    if longest != side:
        square = square.resize((side, side), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(square, dtype=np.float32)[:, :, ::-1])


def choose(tags: Sequence[Tag], settings: TaggerSettings, *, underscores: bool) -> list[str]:
    """Names of the tags that reach their thresholds: ratings, characters, then general tags, most probable first."""
    banned = TagPatterns(settings.blacklist)
    picked: list[str] = []
    ratings = [tag for tag in tags if tag.category == RATING]
    if settings.ratings and ratings:
        picked.append(max(ratings, key=lambda tag: tag.score).name)
    if settings.characters:
        picked += [tag.name for tag in tags if tag.category == CHARACTER and tag.score >= settings.character_threshold]
    picked += [tag.name for tag in tags if tag.category == GENERAL and tag.score >= settings.threshold]
    return [name if underscores else spaced(name) for name in picked if banned.match(name) is None]


def tag_images(
    images: dict[str, tuple[Path, str]],
    folder: Path,
    settings: TaggerSettings,
    captions: CaptionSettings,
    progress: Callable[[int, int, str], None],
    should_stop: Callable[[], bool] | None,
) -> dict[str, str]:
    """The tags of each image, joined with commas, by key. ``images``: key -> (PNG, its SHA-256).

    Scores are cached by model and image, also when the run is stopped. Raises UserError, and Cancelled when ``should_stop`` returned True.
    """
    model = _model_file(Path(settings.model))
    cache = _Cache(folder / WORK / "tags.json", sha256_file(model))
    missing = [(path, digest) for path, digest in images.values() if digest not in cache.known]
    if missing:
        tagger = Tagger(model)
        for start in range(0, len(missing), BATCH):
            if should_stop is not None and should_stop():
                cache.save()
                raise Cancelled("Tagging was stopped.")
            part = missing[start : start + BATCH]
            for (_, digest), tags in zip(part, tagger.tag([load_image(path) for path, _ in part]), strict=True):
                cache.known[digest] = tags
            progress(start + len(part), len(missing), "tagging")
            if start // BATCH % 64 == 63:
                cache.save()
    cache.keep({digest for _, digest in images.values()})
    return {key: ", ".join(choose(cache.known[digest], settings, underscores=captions.underscores)) for key, (_, digest) in images.items()}


class _Cache:
    """Scores of one model by the SHA-256 of the image."""

    def __init__(self, path: Path, model: str) -> None:
        self._path, self._model = path, model
        self.known: dict[str, list[Tag]] = {}
        try:
            data = json.loads(read_regular(path, _LARGEST_CACHE))
            if data["model"] == model:
                self.known = {digest: [Tag(*row) for row in rows] for digest, rows in data["tags"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            pass

    def keep(self, digests: set[str]) -> None:
        self.known = {digest: tags for digest, tags in self.known.items() if digest in digests}
        self.save()

    def save(self) -> None:
        rows: dict[str, Any] = {d: [(tag.name, tag.category, round(tag.score, 4)) for tag in tags] for d, tags in self.known.items()}
        write_atomic(self._path, json.dumps({"model": self._model, "tags": rows}, ensure_ascii=False))


def model_with_tags(model: Path) -> Path:
    """The .onnx file of ``model``, which is that file or its folder. Raises UserError when it or its tag list is missing."""
    file = _model_file(model)
    _read_tags(file.parent / "selected_tags.csv")
    return file


def _model_file(model: Path) -> Path:
    if model.is_dir():
        files = sorted(model.glob("*.onnx"))
        preferred = [file for file in files if file.name == "model.onnx"] or files
        if preferred:
            return preferred[0]
        raise UserError(
            Message("There is no .onnx file in ", File(str(model)), "."),
            "Download a WD tagger: model.onnx and selected_tags.csv.",
            kind="tagger",
        )
    if not model.is_file():
        raise UserError(
            Message("The tagger model ", File(str(model)), " does not exist."), "Give the .onnx file or its folder.", kind="tagger"
        )
    return model


def _read_tags(path: Path) -> tuple[list[str], list[int]]:
    try:
        text = read_regular(path, _LARGEST_LIST).decode("utf-8-sig")
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
        return [row["name"] for row in rows], [int(row["category"]) for row in rows]
    except FileNotFoundError:
        raise UserError(
            Message(File(str(path)), " is missing."), "Put the selected_tags.csv of the same download beside the model.", kind="tagger"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(
            Message(File(str(path)), f" cannot be read: {error!r}."), "It must have the columns name and category.", kind="tagger"
        ) from error


def _session(path: Path) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(
            "Automatic tags need onnxruntime, which is not installed.", "Install it: pip install onnxruntime", kind="tagger"
        ) from error
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
    try:
        return onnxruntime.InferenceSession(str(path), providers=providers)
    except Exception as error:  # onnxruntime's own exceptions share no base that is documented
        raise UserError(f"The tagger {path.name} cannot be loaded: {error}", "Download it again.", kind="tagger") from error
