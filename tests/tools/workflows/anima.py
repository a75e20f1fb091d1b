"""The example graph for Anima, whose model lies in three files."""

from __future__ import annotations

from . import notes
from .canvas import Canvas, Group, Node
from .object_info import ObjectInfo
from .parts import sampler

_MODELS = {name: {"name": name, "url": url, "directory": folder} for folder, name, url in notes.ANIMA_FILES}
DENOISER, TEXT_ENCODER, VAE = _MODELS
_CHOSEN = f"[diffusion_models] {DENOISER}"  # as the menu of Train LoRA lists it
_QUALITY = "masterpiece, best quality, score_7, safe,"
_NEGATIVE = "worst quality, low quality, score_1, score_2, score_3, blurry, jpeg artifacts, sepia"
_SUBJECT = "1girl, smile, upper body"


def anima_style(info: ObjectInfo) -> Canvas:
    """Train a LoRA for Anima on a folder of images, then make an image with it."""
    c = Canvas("train an Anima style", info)
    note = c.note(notes.ANIMA, tall=560, wide=440)
    prep = c.node("AnimeLoRA_DatasetPrep", resolution=1024, class_description="anime_style", tall=420)
    sheet = c.node("PreviewImage", "All images at a glance", images=prep["contact_sheet"], wide=340, tall=460)
    train = c.node(
        "AnimeLoRA_TrainLora",
        dataset=prep["dataset"],
        checkpoint=_CHOSEN,
        preset="style-anima",
        name="my_anima_style",
        epochs=10,
        gradient_accumulation=4,
        schedule="cosine",
        validation_prompts=f"{_QUALITY} myAnimeStyleToken anime_style, {_SUBJECT}",
        validation_guidance=4.0,
        wide=760,
        properties={"models": list(_MODELS.values())},
    )
    samples = c.node("PreviewImage", "Validation images by epoch", images=train["samples"], wide=380, tall=460)
    curve = c.node("PreviewImage", "Loss", images=train["loss_curve"], wide=380, tall=380)
    model = c.node("UNETLoader", unet_name=DENOISER, wide=320, properties=_download(DENOISER))
    clip = c.node("CLIPLoader", clip_name=TEXT_ENCODER, type="stable_diffusion", wide=320, properties=_download(TEXT_ENCODER))
    vae = c.node("VAELoader", vae_name=VAE, wide=320, properties=_download(VAE))
    loaded = c.node("AnimeLoRA_LoadLora", model=model["MODEL"], clip=clip["CLIP"], lora=train["lora"], wide=320)
    latent = c.node("EmptyLatentImage", "Size", width=1024, height=1024)
    image = _text_to_image(c, loaded, vae, latent)
    c.row(
        Group("", [[note]]),
        Group("1 · Your images", [[prep, sheet]]),
        Group("2 · Train", [[train], [samples, curve]]),
        Group("3 · Try it", [[model, clip, vae, loaded], *image]),
    )
    return c


def _download(name: str) -> dict[str, list[dict[str, str]]]:
    """The address of a file for the frontend's dialog about missing models."""
    return {"models": [_MODELS[name]]}


def _text_to_image(c: Canvas, loaded: Node, vae: Node, latent: Node) -> list[list[Node]]:
    """From quality tags, trigger words and prompt to a saved image, in columns; sampled as in ComfyUI's own template for Anima."""
    first = c.node("StringConcatenate", "Quality tags", string_a=_QUALITY, string_b=loaded["trigger_words"], delimiter=" ")
    words = c.node("StringConcatenate", "Prompt", string_a=first["STRING"], string_b=_SUBJECT, delimiter=", ")
    wanted = c.node("CLIPTextEncode", clip=loaded["clip"], text=words["STRING"])
    avoid = c.node("CLIPTextEncode", "What to avoid", clip=loaded["clip"], text=_NEGATIVE)
    settings = {"seed": 42, "steps": 30, "cfg": 4.0, "sampler_name": "euler", "scheduler": "simple"}
    sampled = sampler(c, loaded["model"], wanted, avoid, latent["LATENT"], **settings)
    decoded = c.node("VAEDecode", samples=sampled["LATENT"], vae=vae["VAE"])
    saved = c.node("SaveImage", images=decoded["IMAGE"], filename_prefix="animelora/anima_style", tall=400)
    return [[latent, first, words], [wanted, avoid, sampled], [decoded, saved]]
