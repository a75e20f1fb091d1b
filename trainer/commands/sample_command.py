"""``python -m trainer sample``: generate images with a checkpoint and LoRA files, from text or from a photo."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .strength import parse_strength

if TYPE_CHECKING:
    from ..config.sample_prompts import SamplePrompt
    from .image_generator import LoraUse

_EXAMPLES = """\
  python -m trainer sample --base v1-5.safetensors --lora my_style.safetensors \\
      --prompt "myAnimeStyleToken anime_face girl, high quality" --out images

  python -m trainer sample --base v1-5.safetensors --lora my_style.safetensors:0.8 \\
      --image photo.jpg --strength 0.65 --prompt "myAnimeStyleToken anime_face" --out images
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this command's parser."""
    parser = subparsers.add_parser(
        "sample",
        help="generate images with a LoRA, from text or from a photo",
        description="Generate images with a checkpoint and LoRA files: from text, or from a photo with --image.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--base", required=True, metavar="CHECKPOINT", help=".safetensors file, diffusers folder or hub id")
    parser.add_argument("--lora", action="append", default=[], metavar="FILE[:STRENGTH]", help="LoRA file; can be given several times")
    more = "can be given several times; may hold kohya's flags (--w 768 --d 7 and so on)"
    parser.add_argument("--prompt", action="append", required=True, metavar="TEXT", help=more)
    parser.add_argument("--negative", default="", metavar="TEXT", help="what the image should not show")
    parser.add_argument("--image", type=Path, metavar="FILE", help="start from this image instead of noise")
    parser.add_argument("--strength", type=float, default=0.65, help="with --image: near 0 keeps it, 1 ignores it, as on the canvas (0.65)")
    parser.add_argument("--steps", type=int, default=20, help="sampling steps (20)")
    parser.add_argument("--guidance", type=float, default=7.5, help="classifier-free guidance (7.5)")
    parser.add_argument("--seed", type=int, default=42, help="seed of the first image (42); each further image adds 1")
    parser.add_argument("--count", type=int, default=1, help="images per prompt (1)")
    parser.add_argument("--width", type=int, default=512, help="pixels, a multiple of 8 (512)")
    parser.add_argument("--height", type=int, default=512, help="pixels, a multiple of 8 (512)")
    parser.add_argument("--vae", default="", metavar="FILE", help="use this VAE instead of the checkpoint's own")
    parser.add_argument("--text-encoder", default="", metavar="FILE", help="of a model that has it in a file of its own, as Anima does")
    parser.add_argument(
        "--clip-skip", type=int, metavar="N", help="text encoder layer from the end; 0: the model's own (default: as the LoRA was trained)"
    )
    parser.add_argument(
        "--prediction",
        choices=("auto", "epsilon", "v-prediction", "flow"),
        default="auto",
        help="what the checkpoint predicts (auto: as its file states, else as the LoRA was trained)",
    )
    parser.add_argument(
        "--shift", type=float, default=0.0, help="for a rectified flow: the shift of ModelSamplingSD3 (default: 3 for SDXL)"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--out", type=Path, default=Path("pictures"), metavar="DIR", help="folder for the images (pictures)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Generate the images and print the path of each."""
    from PIL import ImageOps

    from ..core.errors import UserError
    from ..core.files.image_file import load_image
    from ..core.files.paths import safe_name
    from ..core.files.writing import atomic_path
    from ..core.work.progress import report_progress
    from ..families import family_of, open_checkpoint
    from ..lorafile import read_lora
    from .image_generator import load_generator
    from .sampling_settings import choose_sampling_settings

    for name in ("width", "height"):
        if getattr(args, name) <= 0 or getattr(args, name) % 8:
            raise UserError(f"--{name} {getattr(args, name)} is not a positive multiple of 8.", "Try 512.")
    if not 0 < args.strength <= 1:
        raise UserError(f"--strength {args.strength} is not between 0 and 1.", "0.65 keeps the person; 0.8 follows the style more.")
    if args.shift < 0:
        raise UserError(f"--shift {args.shift} is negative.", "Leave it out, or give the shift of ModelSamplingSD3, such as 3.")
    source = None
    if args.image is not None:
        try:
            source = ImageOps.exif_transpose(load_image(args.image, None)).convert("RGB")
        except (OSError, ValueError, SyntaxError) as error:
            raise UserError(f"{args.image} cannot be read as an image ({error}).", "Give a PNG, JPEG or WebP file.") from error
    loras = [_lora(text) for text in args.lora]
    # a damaged LoRA is refused here, before the checkpoint is loaded and diffusers fails with a message of its own
    stated = [(lora.path, read_lora(lora.path).metadata) for lora in loras]
    prompts = [_prompt(text) for text in args.prompt]
    checkpoint = open_checkpoint(args.base, args.vae, args.text_encoder)
    chosen = choose_sampling_settings(family_of(checkpoint), checkpoint, stated, clip_skip=args.clip_skip, prediction=args.prediction)
    for remark in [*chosen.remarks, *dict.fromkeys(note for prompt in prompts for note in prompt.notes)]:
        print(f"note: {remark}", file=sys.stderr)
    options: dict[str, Any] = {"prediction": chosen.prediction, "text": chosen.text}
    print(f"loading {checkpoint.name}", file=sys.stderr, flush=True)
    generator = load_generator(checkpoint, device=args.device, precision=args.precision, **options)
    generator.apply_loras(loras)
    for number, prompt in enumerate(prompts):
        for offset in range(args.count):
            report_progress("images", number * args.count + offset, len(prompts) * args.count)
            seed = (args.seed if prompt.seed is None else prompt.seed) + offset
            image = generator.generate(
                prompt.text,
                negative=args.negative if prompt.negative is None else prompt.negative,
                width=prompt.width or args.width,
                height=prompt.height or args.height,
                steps=prompt.steps or args.steps,
                guidance=args.guidance if prompt.guidance is None else prompt.guidance,
                seed=seed,
                image=source,
                strength=args.strength,
                shift=args.shift,
            )
            path = args.out / f"{number:02d}-{safe_name(prompt.text, limit=60)}-{seed}.png"
            with atomic_path(path) as temporary:
                image.save(temporary, format="PNG")
            print(path)
    return 0


def _prompt(text: str) -> SamplePrompt:
    from ..config.sample_prompts import read_prompt
    from ..core.errors import UserError

    try:
        return read_prompt(text)
    except ValueError as error:
        raise UserError(f"{error}.", "Flags are those of kohya's trainer: --n --w --h --s --l --d.", kind="config") from error


def _lora(text: str) -> LoraUse:
    from ..core.errors import UserError
    from .image_generator import LoraUse

    path, strength = parse_strength(text)
    if not path.is_file():
        raise UserError(f"The LoRA file {str(path)!r} was not found.", "Give FILE or FILE:STRENGTH, for example my_style.safetensors:0.8.")
    return LoraUse(path, strength)
