"""Renders the templates' thumbnails: ``python -m tests.tools.workflows.thumbnails http://127.0.0.1:8188 [NAME …]``.

Each graph is run on the embedded demo base, so that nothing has to be downloaded: its loaders become Load Demo Base, its
photo a drawn one, its sizes 256 pixels, its prompts the words that the demo base knows. The tour comes first, as it is; the LoRA that it
trains is the one in the others. The ControlNet is one that ``tests.tools.small_controlnet`` trained for the demo base; the server must
have it in models/controlnet. The thumbnail shows what the run painted. Anima has no demo base: its thumbnail is a part of the template's
screenshot.
"""

from __future__ import annotations

import io
import json
import sys
import time
from pathlib import Path
from typing import Any

import requests
from PIL import Image

from demo.drawing.portraits import caption, random_portrait
from demo.run_demo import DemoSettings

from .api import api_prompt
from .parts import DEMO_BASE

FOLDER = Path(__file__).resolve().parents[3] / "workflows"
Prompt = dict[str, dict[str, Any]]
_TOUR = "8 Zero-download tour"
_EPOCHS = "6 Compare epochs"
_SMALL_CONTROLNET = "demo_base_controlnet.safetensors"
_PHOTO = 504  # the number of the drawn person
_ANIMA = "10 Train an Anima style"
_ANIMA_SCREENSHOT = FOLDER.parent / "docs" / "images" / "canvas-train-an-anima-style.png"
_ANIMA_PART = (365, 330, 1465, 876)  # left, top, right, bottom: the groups "Your images" and "Train"
_SIDE = 512  # pixels of a thumbnail's longer side
_GUIDANCE = {"cfg": 2.0, "guidance": 2.0, "validation_guidance": 2.0, "guidances": "1.5, 2, 3"}
_STYLE = {"trigger_word": "demoAnimeStyle", "class_description": "portrait", "resolution": 256, "name": "demo_anime_style"}
_PEOPLE = (
    "portrait, short blue hair, tan skin, plain yellow background, red hoodie, round green eyes, smile",
    "portrait, pink hair, twin tails, light skin, gradient blue background, white shirt, round blue eyes, smile",
    "portrait, spiky orange hair, tan skin, striped teal background, black jacket, almond amber eyes, closed mouth",
    "portrait, long black hair, pale skin, dotted pink background, purple turtleneck, round purple eyes, square glasses",
)


def main() -> int:
    """Run every graph and write its thumbnail."""
    url = sys.argv[1].rstrip("/")
    info = requests.get(f"{url}/object_info", timeout=60).json()
    names = sorted((path.stem for path in FOLDER.glob("*.json")), key=lambda name: name != _TOUR)
    for name in names:
        graph = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
        prompt = api_prompt(graph, info)
        if sys.argv[2:] and name not in sys.argv[2:]:
            continue
        if name == _ANIMA:
            _crop_anima_screenshot()
            continue
        if name != _TOUR:
            _on_demo_base(prompt, _trained_in_the_tour(info))
        if name == _EPOCHS:
            _keep_states(prompt)
        if "Export" in name:
            _same_person(prompt)
        pictures = _run(url, prompt)
        thumbnail = _choose(name, pictures)
        thumbnail.save(FOLDER / f"{name}.jpg", quality=88, optimize=True)
        print(f"{name}: {thumbnail.size}, from {len(pictures)} nodes")
    return 0


def _crop_anima_screenshot() -> None:
    """Write the thumbnail of the template for Anima."""
    with Image.open(_ANIMA_SCREENSHOT) as screenshot:
        thumbnail = screenshot.convert("RGB").crop(_ANIMA_PART)
    thumbnail.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    thumbnail.save(FOLDER / f"{_ANIMA}.jpg", quality=88, optimize=True)


def _keep_states(prompt: Prompt) -> None:
    """A run of its own that saves on its way."""
    for node in prompt.values():
        if node["class_type"] == "AnimeLoRA_TrainLora":
            node["inputs"] |= {"name": "demo_epochs", "checkpoint_every": 100}


def _same_person(prompt: Prompt) -> None:
    """One prompt for all pictures, which are to be compared."""
    for node in prompt.values():
        if node["class_type"] == "StringConcatenate":
            node["inputs"]["string_b"] = _PEOPLE[1]


def _on_demo_base(prompt: Prompt, trained: dict[str, Any]) -> None:
    """Turn a graph for full-size models into one for the demo base, in place; ``trained`` are Train LoRA's values in the tour."""
    people = iter(_PEOPLE * 4)
    for number, node in list(prompt.items()):
        inputs = node["inputs"]
        kind = node["class_type"]
        if kind == "CheckpointLoaderSimple":
            prompt[number] = {"class_type": "AnimeLoRA_LoadDemoBase", "inputs": {"checkpoint": DEMO_BASE}}
        elif kind == "UNETLoader":
            _load_in_one(prompt, number)
        elif kind == "LoadImage":
            prompt[number] = _drawn("photo-like", 1, _PHOTO)
        elif kind == "AnimeLoRA_DatasetPrep":
            prompt["drawn"] = _drawn("anime", DemoSettings.pictures, 0)
            inputs |= {"images": ["drawn", 0], "captions": ["drawn", 1]} | {key: _STYLE[key] for key in inputs if key in _STYLE}
        elif kind == "AnimeLoRA_TrainLora":
            inputs |= trained | {"dataset": inputs["dataset"]}
        elif kind == "StringConcatenate":
            inputs["string_b"] = next(people)
        elif kind == "ControlNetLoader":
            inputs["control_net_name"] = _SMALL_CONTROLNET
        elif kind in ("AnimeLoRA_StyleCompare", "AnimeLoRA_EpochCompare"):
            inputs["prompts"] = "\n".join(_PEOPLE[: 1 + inputs["prompts"].count("\n")])
        for key, value in inputs.items():
            if key in ("width", "height"):
                inputs[key] = 256
            elif key in ("negative", "text") and isinstance(value, str):
                inputs[key] = ""
            elif key == "positive" and isinstance(value, str):
                inputs[key] = caption(random_portrait(_PHOTO), None)
            elif key == "lora_name" and "lora" not in inputs:
                inputs[key] = "demo_anime_style.safetensors"
            elif key in _GUIDANCE:
                inputs[key] = "2" if value == "7.5" else _GUIDANCE[key]


def _load_in_one(prompt: Prompt, number: str) -> None:
    """Let Load Demo Base take the places of the loaders of a model in three files, of which ``number`` loads the first."""
    prompt[number] = {"class_type": "AnimeLoRA_LoadDemoBase", "inputs": {"checkpoint": DEMO_BASE}}
    outputs = {
        key: slot for key, node in prompt.items() for kind, slot in (("CLIPLoader", 1), ("VAELoader", 2)) if node["class_type"] == kind
    }
    for node in prompt.values():
        for name, value in node["inputs"].items():
            if isinstance(value, list) and value[0] in outputs:
                node["inputs"][name] = [number, outputs[value[0]]]
    for key in outputs:
        del prompt[key]


def _drawn(style: str, count: int, first: int) -> dict[str, Any]:
    return {"class_type": "AnimeLoRA_DemoPictures", "inputs": {"style": style, "count": count, "first": first, "size": 256}}


def _trained_in_the_tour(info: dict[str, Any]) -> dict[str, Any]:
    """Train LoRA's widgets in the tour: the finished run is found again."""
    tour = api_prompt(json.loads((FOLDER / f"{_TOUR}.json").read_text(encoding="utf-8")), info)
    values = next(node["inputs"] for node in tour.values() if node["class_type"] == "AnimeLoRA_TrainLora")
    return {name: value for name, value in values.items() if not isinstance(value, list)}


def _run(url: str, prompt: Prompt) -> dict[str, list[Image.Image]]:
    """What each node that saves or shows pictures got, by ``filename_prefix`` or node number."""
    answer = requests.post(f"{url}/prompt", json={"prompt": prompt}, timeout=60).json()
    if "prompt_id" not in answer:
        raise SystemExit(json.dumps(answer, indent=1))
    while True:
        history = requests.get(f"{url}/history/{answer['prompt_id']}", timeout=60).json()
        if history:
            break
        time.sleep(1)
    (entry,) = history.values()
    if entry["status"]["status_str"] != "success":
        raise SystemExit(json.dumps(entry["status"], indent=1)[-3000:])
    shown = {}
    for number, output in entry["outputs"].items():
        if images := output.get("images"):
            name = prompt[number]["inputs"].get("filename_prefix", number)
            shown[name] = [_fetch(url, image) for image in images]
    return shown


def _fetch(url: str, image: dict[str, str]) -> Image.Image:
    content = requests.get(f"{url}/view", params=image, timeout=60).content
    return Image.open(io.BytesIO(content)).convert("RGB")


def _choose(name: str, pictures: dict[str, list[Image.Image]]) -> Image.Image:
    """The picture that says what a template is for."""
    if "First LoRA" in name or "App mode" in name or "Anima" in name:
        samples = max((group for key, group in pictures.items() if key.isdigit()), key=len)  # one for each validated epoch
        return _sheet([[samples[0], samples[-1]]])
    if "Characters" in name:
        lanes = [group[0] for key, group in pictures.items() if key in ("animelora/chibi", "animelora/ghibli-like", "animelora/retro_90s")]
        return _sheet([lanes])
    if "Photo" in name:
        return _sheet([[pictures["animelora/photo_0.65"][0], pictures["animelora/photo_0.8"][0]]])
    if "ControlNet" in name:
        lanes = [group[0] for group in pictures.values() if group[0].width > 1.5 * group[0].height]  # before and after
        return _sheet([[lane] for lane in lanes])
    if name == _EPOCHS:
        return _fitted(pictures["animelora/epochs"][0])
    if "Export" in name:
        return _sheet([[pictures["animelora/original"][0], pictures["animelora/rank4"][0]]])
    if "Guidance" in name:
        return _fitted(pictures["animelora/guidance"][0])
    return _sheet([[pictures[f"animelora/demo_photo_{strength}"][0]] for strength in ("0.65", "0.8")])


def _sheet(rows: list[list[Image.Image]], gap: int = 4) -> Image.Image:
    width, height = rows[0][0].size
    out = Image.new("RGB", (len(rows[0]) * (width + gap) - gap, len(rows) * (height + gap) - gap), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            out.paste(picture.resize((width, height)), (x * (width + gap), y * (height + gap)))
    return _fitted(out)


def _fitted(picture: Image.Image) -> Image.Image:
    scale = _SIDE / max(picture.size)
    return picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    sys.exit(main())
