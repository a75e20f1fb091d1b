"""The example graphs for the time after the first LoRA: preserving a person, picking an epoch, other programs."""

from __future__ import annotations

from typing import Any

from . import notes
from .canvas import Canvas, Group
from .object_info import ObjectInfo
from .parts import CONTROLNET, checkpoint, load, text_to_image, train_on_checkpoint

_CONTROL = {"models": [{"name": CONTROLNET, "url": notes.CANNY_URL, "directory": "controlnet"}]}


def controlnet(info: ObjectInfo) -> Canvas:
    """One photo at a high strength, without and with a ControlNet."""
    c = Canvas("identity with controlnet", info)
    note = c.note(notes.CONTROLNET, tall=320)
    source = c.node("LoadImage", "Your photo", image="example.png", wide=340, tall=380)
    base = checkpoint(c)
    loaded = load(c, base)
    edges = c.node("Canny", "Edges", image=source["IMAGE"], low_threshold=0.15, high_threshold=0.4, wide=340)
    seen = c.node("PreviewImage", "What the ControlNet sees", images=edges["IMAGE"], wide=340, tall=360)
    held = c.node("ControlNetLoader", control_net_name=CONTROLNET, wide=340, properties=_CONTROL)
    holding: dict[str, Any] = {"control_net": held["CONTROL_NET"], "control_image": edges["IMAGE"], "control_strength": 0.9}
    rows = []
    for title, prefix, control in (("Without ControlNet", "free", {}), ("With ControlNet", "held", holding)):
        repainted = c.node(
            "AnimeLoRA_AnimeImg2Img",
            model=loaded["model"],
            clip=loaded["clip"],
            vae=base["VAE"],
            image=source["IMAGE"],
            trigger_words=loaded["trigger_words"],
            strength=0.9,
            seed=90,
            wide=380,
            **control,
        )
        both = c.node("PreviewImage", "Before and after", images=repainted["before_after"], wide=500, tall=270)
        saved = c.node("SaveImage", images=repainted["image"], filename_prefix=f"animelora/{prefix}", wide=500, tall=270)
        rows.append(Group(f"{title}, strength 0.9", [[repainted], [both, saved]]))
    c.row(
        Group("", [[note]]),
        Group("1 · Photo, model and LoRA", [[source, base, loaded]]),
        Group("2 · Outlines", [[edges, seen, held]]),
        rows,
    )
    return c


def epochs(info: ObjectInfo) -> Canvas:
    """A run that keeps states, a grid of all of them, and an image with the picked one."""
    c = Canvas("compare epochs", info)
    note = c.note(notes.EPOCHS, tall=380, wide=420)
    prep = c.node("AnimeLoRA_DatasetPrep", tall=420)
    train = train_on_checkpoint(c, dataset=prep["dataset"], epochs=10, checkpoint_every=100, wide=760)
    base = checkpoint(c)
    models: dict[str, Any] = {"model": base["MODEL"], "clip": base["CLIP"], "vae": base["VAE"]}
    compare = c.node("AnimeLoRA_EpochCompare", **models, lora=train["lora"], prompts="anime_face girl, high quality", wide=400)
    grid = c.node("SaveImage", "All epochs", images=compare["grid"], filename_prefix="animelora/epochs", wide=560, tall=720)
    pick = c.node("AnimeLoRA_PickEpoch", lora=train["lora"], wide=320, tall=220)
    loaded = load(c, base, lora=pick["lora"])
    latent = c.node("EmptyLatentImage", "Size")
    image = text_to_image(c, loaded, base["VAE"], latent, "anime_face girl, high quality", "animelora/picked_epoch")
    c.row(
        Group("", [[note]]),
        Group("1 · Train, keeping states", [[prep, base], [train]]),
        Group("2 · Compare", [[compare], [grid]]),
        Group("3 · Pick and use it", [[pick, loaded, latent], *image]),
    )
    return c


def export(info: ObjectInfo) -> Canvas:
    """One LoRA exported for every program, for diffusers, and smaller; images of the smaller one and the original."""
    c = Canvas("export for other tools", info)
    note = c.note(notes.EXPORT, tall=340, wide=420)
    base = checkpoint(c)
    original = load(c, base)
    latent = c.node("EmptyLatentImage", "Size")
    prompt = "anime_face girl, high quality"
    first = text_to_image(c, original, base["VAE"], latent, prompt, "animelora/original")
    image = first[1][1]["IMAGE"]
    common: dict[str, Any] = {"thumbnail": image, "wide": 360}
    every = c.node(
        "AnimeLoRA_ExportLora",
        "Export LoRA: for every program",
        **common,
        file_name="my_anime_style_for_sharing",
        dtype="fp16",
        title="My anime style",
        author="me",
        description="Trained with AnimeLoRA. Begin your prompt with the trigger words; strength 0.6 to 1.",
        tall=580,
    )
    other = c.node(
        "AnimeLoRA_ExportLora", "Export LoRA: for diffusers", **common, file_name="my_anime_style_diffusers", format="diffusers", tall=580
    )
    small = c.node("AnimeLoRA_ExportLora", "Export LoRA: smaller", **common, file_name="my_anime_style_rank4", rank=4, tall=580)
    again = load(c, base, lora=small["lora"])
    second = text_to_image(c, again, base["VAE"], latent, prompt, "animelora/rank4")
    c.row(
        Group("", [[note]]),
        Group("1 · The LoRA, and an image for its thumbnail", [[base, original, latent], *first]),
    )
    c.row(
        Group("2 · Export", [[every], [other], [small]]),
        Group("3 · The smaller one, same seed", [[again], *second]),
    )
    return c
