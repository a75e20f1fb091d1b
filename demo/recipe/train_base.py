"""The whole recipe as one command: draws the images, trains the base from scratch, writes its file.

    python -m demo.recipe --work runs/base

Everything it needs between stages is in the work folder. After an interruption it resumes when it is started again
with the same folder; with larger budgets it continues training. On a CPU two hours give the base that
the project carries its size for; a GPU is used if there is one.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.multiprocessing as multiprocessing
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from trainer.core.files.writing import remove_partial

from ..base_path import BASE_FILE
from ..drawing.portraits import BASE_STYLES, caption, random_portrait
from ..drawing.render import render, sheet
from .base_file import read_base, write_base
from .base_model import SIZE, Widths, build_text_encoder, build_unet, build_vae
from .captions import load_tokenizer, token_ids, training_captions
from .data_parallel import rank, wait
from .drawn_images import FIRST_TRAINING_SEED, Pictures, portrait_images, save_array, shape_images
from .fresh_portraits import FreshPortraits, Part
from .sampling import sample_images
from .train_unet import LatentSet, UnetSettings, held_out_loss, train_unet
from .train_vae import VaeSettings, encode_pixels, fold_scale, train_decoder, train_vae

logger = logging.getLogger(__name__)

HELD_OUT_SEED = 900_000
"""The first seed of the portraits that measure the base; none of them is trained on."""
CAPTION_VARIANTS = 6
MANY = 2000
"""So many portraits contain every value of every attribute."""


def _latent_set(
    vae: AutoencoderKL, sources: list[Pictures], work: Path, tokenizer: CLIPTokenizer, count: int, size: int, device: torch.device
) -> LatentSet:
    """Latents and captions of the first ``count`` portraits in every style; written once per autoencoder."""
    path = work / f"latents-{count}-{size}.npy"
    if not path.exists():
        parts = []
        for style, source in zip(BASE_STYLES, sources, strict=True):
            parts.append(encode_pixels(vae, source[:count], device))
            logger.info("%s: %d pictures encoded", style, count)
        if rank() == 0:
            save_array(path, torch.cat(parts).numpy())
    wait()
    portraits = [random_portrait(FIRST_TRAINING_SEED + i) for i in range(count)]
    captions = [training_captions(tokenizer, portraits, style, CAPTION_VARIANTS, 0) for style in BASE_STYLES]
    return LatentSet(torch.from_numpy(np.load(path)), torch.cat(captions), token_ids(tokenizer, [""])[0])


def _further(parts: list[Part], tokenizer: CLIPTokenizer) -> LatentSet | None:
    """Latents and captions of the portraits drawn meanwhile, or None."""
    if not parts:
        return None
    texts = [(portraits, style) for portraits, _ in parts for style in BASE_STYLES]
    captions = [training_captions(tokenizer, portraits, style, CAPTION_VARIANTS, portraits[0].seed) for portraits, style in texts]
    latents = [torch.from_numpy(encoded) for _, encoded in parts]
    return LatentSet(torch.cat(latents), torch.cat(captions), token_ids(tokenizer, [""])[0])


def held_out_set(vae: AutoencoderKL, tokenizer: CLIPTokenizer, count: int, device: torch.device) -> LatentSet:
    """``count`` held-out portraits in each of the base's styles."""
    pictures, texts = [], []
    for style in BASE_STYLES:
        for i in range(count):
            portrait = random_portrait(HELD_OUT_SEED + i)
            pictures.append(np.asarray(render(portrait, style, SIZE)))
            texts.append(caption(portrait, style))
    ids = token_ids(tokenizer, texts)[:, None]
    return LatentSet(encode_pixels(vae, np.stack(pictures), device), ids, token_ids(tokenizer, [""])[0])


def sample_grid(
    unet: UNet2DConditionModel,
    text: CLIPTextModel,
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    columns: int = 6,
    steps: int = 25,
) -> Image.Image:
    """For each base style, a row of held-out portraits and a row of the base's images for their captions."""
    rows = []
    empty = token_ids(tokenizer, [""])[0]
    for k, style in enumerate(BASE_STYLES):
        portraits = [random_portrait(HELD_OUT_SEED + k * columns + i) for i in range(columns)]
        ids: Tensor = token_ids(tokenizer, [caption(p, style) for p in portraits])
        rows.append([render(p, style, SIZE) for p in portraits])
        rows.append(sample_images(unet, text, vae, ids, empty, seed=k, steps=steps))
    return sheet(rows)


def train_base(
    work: Path,
    out: Path,
    widths: Widths,
    vae_settings: VaeSettings,
    decoder_settings: VaeSettings,
    unet_settings: UnetSettings,
    portraits: int,
    encoded: int,
    tokenizer: CLIPTokenizer,
    device: torch.device,
    start: Path | None = None,
    drawing: int = 0,
) -> dict[str, float]:
    """Train the remaining stages and write the base to ``out``; returns the held-out figures.

    ``start`` is the file of a base with the same widths to go on from; ``drawing`` processes draw further portraits while the UNet
    trains.
    """
    work.mkdir(parents=True, exist_ok=True)
    if rank():
        wait()  # rank 0 draws and encodes for all
    else:
        remove_partial(work, work / "pictures")
    size = SIZE
    pictures = work / "pictures"
    sources = [portrait_images(pictures, style, portraits, size, logger.info) for style in BASE_STYLES]
    sources += [shape_images(pictures, portraits, size, logger.info)] * 2  # twice as often as each style
    if not rank():
        wait()
    begun = _weights(start, widths) if start is not None else None
    vae = train_vae(sources, work, widths, vae_settings, device, begun and begun[0])
    styles = sources[: len(BASE_STYLES)]
    if begun is None or vae_settings.minutes > 0:  # else the UNet was trained on these latents
        fold_scale(vae, torch.cat([encode_pixels(vae, source[:24], device) for source in styles]))
    data = _latent_set(vae, styles, work, tokenizer, min(encoded, portraits), size, device)
    held_out = held_out_set(vae, tokenizer, 32, device)

    def show(unet: UNet2DConditionModel, text: CLIPTextModel, step: int) -> None:
        sample_grid(unet, text, vae, tokenizer, columns=2, steps=15).save(work / "samples.png")
        logger.info("held-out loss %.4f at step %d", held_out_loss(unet, text, held_out, device, 1), step)

    train = partial(train_unet, data, work, widths, unet_settings, device, show, begun and begun[1:])
    if drawing:
        words = token_ids(tokenizer, [caption(random_portrait(i), style) for i in range(MANY) for style in BASE_STYLES])
        folder = work / f"fresh-{portraits}-{size}"
        with FreshPortraits(folder, portraits, size, lambda drawn: encode_pixels(vae, drawn, device).numpy(), drawing) as fresh:
            unet, text = train(more=lambda: _further(fresh.take(), tokenizer), words=words)
    else:
        unet, text = train()
    metadata = {
        "modelspec.title": "AnimeLoRA demo base",
        "modelspec.architecture": "stable-diffusion-v1",
        "modelspec.license": "CC0-1.0",
        "modelspec.resolution": f"{size}x{size}",
        "modelspec.prediction_type": "epsilon",
        "modelspec.description": "Small Stable Diffusion 1.x trained from nothing on drawn portraits (demo/recipe).",
        "animelora.recipe": json.dumps(
            {"widths": asdict(widths), "vae": asdict(vae_settings), "decoder": asdict(decoder_settings), "unet": asdict(unet_settings)}
        ),
    }
    if decoder_settings.minutes > 0:
        if not rank():
            write_base(out, vae, unet, text, metadata)  # keeps the UNet if the decoder's training is interrupted
            logger.info("wrote %s, before its decoder is finished", out)
        vae = train_decoder(vae, sources, work, decoder_settings, device)
    if rank():
        return {}
    figures = {"held_out_loss": held_out_loss(unet, text, held_out, device)}
    write_base(out, vae, unet, text, metadata)
    sample_grid(unet, text, vae, tokenizer).save(work / "samples.png")
    logger.info("wrote %s, %.1f MB, held-out loss %.4f", out, out.stat().st_size / 1e6, figures["held_out_loss"])
    return figures


def _weights(path: Path, widths: Widths) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Weights of the three parts of a base file: autoencoder, UNet, text encoder."""
    vae, unet, text = build_vae(widths), build_unet(widths), build_text_encoder(widths)
    read_base(path, vae, unet, text)
    return vae.state_dict(), unet.state_dict(), text.state_dict()


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m demo.recipe", description="Train the demo's base model from scratch.")
    parser.add_argument("--work", type=Path, required=True, help="folder for pictures, latents, checkpoints and losses")
    parser.add_argument("--out", type=Path, default=BASE_FILE, help="the safetensors file to write")
    parser.add_argument("--start", type=Path, help="the file of a base to train on from; its autoencoder stays with --vae-minutes 0")
    parser.add_argument("--vae-minutes", type=float, default=VaeSettings.minutes)
    parser.add_argument("--decoder-minutes", type=float, default=15.0, help="finishing the decoder on the final latents; 0: none")
    parser.add_argument("--unet-minutes", type=float, default=UnetSettings.minutes)
    parser.add_argument("--portraits", type=int, default=1500, help="portraits, each drawn in every base style; as many random drawings")
    parser.add_argument("--encoded", type=int, default=1200, help="how many of the portraits the UNet is trained on")
    parser.add_argument("--vae-batch", type=int, default=VaeSettings.batch)
    parser.add_argument("--unet-lr", type=float, default=UnetSettings.lr, help="lower it to train on from a finished base")
    parser.add_argument("--unet-batch", type=int, default=UnetSettings.batch)
    parser.add_argument("--unet-ema", type=float, default=UnetSettings.ema, help="decay of the average of the weights, a step")
    parser.add_argument("--drawing", type=int, default=0, help="processes that draw further portraits while the UNet trains")
    parser.add_argument("--tokenizer", type=Path, help="folder with CLIP's vocab.json and merges.txt")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--processes", type=int, default=1, help="single-threaded processes that train together on a CPU")
    args = parser.parse_args(arguments)
    if args.drawing and args.processes > 1:
        parser.error("--drawing is for a training in one process")
    if args.processes == 1:
        _train(0, args, None)
        return 0
    with tempfile.TemporaryDirectory() as meeting:
        multiprocessing.spawn(_train, (args, f"file://{meeting}/point"), nprocs=args.processes)  # type: ignore[attr-defined,no-untyped-call]
    return 0


def _train(number: int, args: argparse.Namespace, meeting: str | None) -> None:
    """One process of the training."""
    logging.basicConfig(level=logging.INFO if number == 0 else logging.WARNING, format="%(asctime)s %(message)s")
    if meeting is not None:
        torch.set_num_threads(1)
        torch.distributed.init_process_group(
            "gloo", init_method=meeting, rank=number, world_size=args.processes, timeout=timedelta(hours=6)
        )
    train_base(
        args.work,
        args.out,
        Widths(),
        VaeSettings(minutes=args.vae_minutes, batch=args.vae_batch),
        VaeSettings(
            minutes=args.decoder_minutes, batch=args.vae_batch, small_share=0.0, crop_share=0.0, large_share=0.5, lr=1e-3, adam_lr=1e-3
        ),
        UnetSettings(minutes=args.unet_minutes, batch=args.unet_batch, lr=args.unet_lr, adam_lr=args.unet_lr, ema=args.unet_ema),
        args.portraits,
        args.encoded,
        load_tokenizer(args.tokenizer),
        torch.device(args.device),
        args.start,
        args.drawing,
    )


if __name__ == "__main__":
    raise SystemExit(main())
