"""Reads a ``dataset.toml`` with kohya's own reader and prints what it saw as JSON. Run by ``test_export.py`` in its own process.

    KOHYA_PATH=sd-scripts python read_with_kohya.py dataset.toml

kohya's ``library/config_util.py`` and ``train_util.py`` are used as they are. What they import without needing it for reading (the
sampling pipelines), and torchvision, of which they use two three-line transforms, are replaced when they cannot be imported here.
``KOHYA_PACKAGES`` may name a folder with its small requirements (toml, voluptuous, imagesize, opencv-python-headless, einops).
"""

from __future__ import annotations

import argparse
import importlib.machinery
import json
import os
import sys
import types
from typing import Any


def _module(name: str, **attributes: Any) -> None:
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    for key, value in attributes.items():
        setattr(module, key, value)
    sys.modules[name] = module


def stand_in() -> None:
    # first, so that transformers and diffusers do not meet the stand-in for torchvision
    import diffusers  # noqa: F401
    import numpy as np
    import torch
    import transformers  # noqa: F401
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel  # noqa: F401
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer  # noqa: F401

    class Compose:
        def __init__(self, steps: list[Any]) -> None:
            self.steps = steps

        def __call__(self, value: Any) -> Any:
            for step in self.steps:
                value = step(value)
            return value

    class ToTensor:
        def __call__(self, array: Any) -> Any:
            return torch.from_numpy(np.asarray(array).transpose(2, 0, 1).copy()).float() / 255

    class Normalize:
        def __init__(self, mean: list[float], std: list[float]) -> None:
            self.mean, self.std = mean[0], std[0]

        def __call__(self, value: Any) -> Any:
            return (value - self.mean) / self.std

    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        _module("torchvision.transforms", Compose=Compose, ToTensor=ToTensor, Normalize=Normalize)
        _module("torchvision", transforms=sys.modules["torchvision.transforms"])
    _module("library.lpw_stable_diffusion", StableDiffusionLongPromptWeightingPipeline=object)
    _module("library.sdxl_lpw_stable_diffusion", SdxlStableDiffusionLongPromptWeightingPipeline=object)


def main() -> None:
    """Print ``{"items": […], "batches": […]}``."""
    sys.path.insert(0, os.environ["KOHYA_PATH"])
    if os.environ.get("KOHYA_PACKAGES"):
        sys.path.append(os.environ["KOHYA_PACKAGES"])
    stand_in()
    import toml
    import torch
    from library import config_util, strategy_base, train_util

    class Tokens(strategy_base.TokenizeStrategy):  # type: ignore[misc]
        def tokenize(self, text: Any) -> list[Any]:
            return [torch.zeros(1, 77, dtype=torch.long)]

    strategy_base.TokenizeStrategy.set_strategy(Tokens())
    config = toml.load(sys.argv[1])
    # kohya's own defaults of the command line, as in its training scripts
    parser = argparse.ArgumentParser()
    train_util.add_dataset_arguments(parser, True, True, True)
    arguments = parser.parse_args([])
    for name, value in {"train_batch_size": 1, "max_token_length": None, "prior_loss_weight": 1.0}.items():
        setattr(arguments, name, value)
    sanitizer = config_util.ConfigSanitizer(True, True, False, True)
    blueprint = config_util.BlueprintGenerator(sanitizer).generate(config, arguments)
    group = config_util.generate_dataset_group_by_blueprint(blueprint.dataset_group)
    group = group[0] if isinstance(group, tuple) else group
    group.set_current_strategies()
    items, batches = [], []
    for dataset in group.datasets:
        for info in dataset.image_data.values():
            items.append(
                {"file": os.path.basename(info.absolute_path), "caption": info.caption, "repeats": info.num_repeats, "is_reg": info.is_reg,
                 "bucket": list(info.bucket_reso), "resized": list(info.resized_size)}
            )  # fmt: skip
        for index in range(len(dataset)):
            batch = dataset[index]
            masks = batch.get("alpha_masks")
            batches.append(
                {"shape": list(batch["images"].shape), "caption": batch["captions"][0], "mean": float(batch["images"].mean()),
                 "mask": None if masks is None else float(masks.mean())}
            )  # fmt: skip
    print(json.dumps({"items": items, "batches": batches}))


if __name__ == "__main__":
    main()
