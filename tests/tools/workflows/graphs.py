"""The ten example graphs; those for ControlNet, epochs and export are in ``after_training``, that for Anima in ``anima``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from demo.run_demo import DemoSettings

from . import notes
from .after_training import controlnet, epochs, export
from .anima import anima_style
from .canvas import Canvas, Group, Node
from .object_info import ObjectInfo
from .parts import DEMO_BASE, NEGATIVE, checkpoint, load, sampler, text_to_image, train_on_checkpoint


def first_lora(info: ObjectInfo) -> Canvas:
    """Train a LoRA on a folder of images, then make an image with it."""
    c = Canvas("first lora from a folder", info)
    note = c.note(notes.FIRST_LORA, tall=440, wide=420)
    prep = c.node("AnimeLoRA_DatasetPrep", tall=420)
    sheet = c.node("PreviewImage", "All images at a glance", images=prep["contact_sheet"], wide=340, tall=460)
    train = train_on_checkpoint(c, dataset=prep["dataset"], wide=760)
    samples = c.node("PreviewImage", "Validation images by epoch", images=train["samples"], wide=380, tall=460)
    curve = c.node("PreviewImage", "Loss", images=train["loss_curve"], wide=380, tall=380)
    base = checkpoint(c)
    loaded = load(c, base, lora=train["lora"])
    latent = c.node("EmptyLatentImage", "Size")
    image = text_to_image(c, loaded, base["VAE"], latent, "anime_face girl, high quality", "animelora/first_lora")
    c.row(
        Group("", [[note]]),
        Group("1 · Your images", [[prep, sheet]]),
        Group("2 · Train", [[train], [samples, curve]]),
        Group("3 · Try it", [[base, loaded, latent], *image]),
    )
    return c


def characters(info: ObjectInfo) -> Canvas:
    """One LoRA, three styles of drawing and several characters."""
    c = Canvas("text to image characters and styles", info)
    note = c.note(notes.CHARACTERS, tall=360)
    base = checkpoint(c)
    loaded = load(c, base, strength_model=0.8)
    avoid = c.node("CLIPTextEncode", "What to avoid", clip=loaded["clip"], text=NEGATIVE)
    latent = c.node("EmptyLatentImage", "Size", wide=320)
    prompts = {
        "Chibi": "anime_face girl, chibi, big head, small body, full body, smile, pastel colours, simple background, high quality",
        "Ghibli-like": "anime_face boy, Ghibli-like, hand-painted background, meadow, soft light, windy, high quality",
        "Retro 90s": "anime_face woman, retro 90s anime, cel shading, film grain, city at night, neon lights, high quality",
    }
    rows = []
    for title, prompt in prompts.items():
        words = c.node(
            "StringConcatenate", f"Prompt: {title}", string_a=loaded["trigger_words"], string_b=prompt, delimiter=" ", wide=340, tall=200
        )
        wanted = c.node("CLIPTextEncode", clip=loaded["clip"], text=words["STRING"], wide=320)
        sampled = sampler(c, loaded["model"], wanted, avoid, latent["LATENT"], seed=90)
        decoded = c.node("VAEDecode", samples=sampled["LATENT"], vae=base["VAE"], wide=320)
        saved = c.node(
            "SaveImage", images=decoded["IMAGE"], filename_prefix=f"animelora/{title.lower().replace(' ', '_')}", wide=360, tall=340
        )
        rows.append(Group(title, [[words, wanted], [sampled, decoded], [saved]]))
    compare = c.node(
        "AnimeLoRA_StyleCompare",
        model=base["MODEL"],
        clip=base["CLIP"],
        vae=base["VAE"],
        prompts="anime_face girl with twin tails, school uniform\nanime_face boy with glasses, hoodie\n"
        "anime_face old wizard, white beard, blue robe\nanime_face warrior woman, red hair, silver armour",
        lora_strengths="0.8",
        guidances="7.5",
        wide=480,
    )
    grid = c.node("SaveImage", images=compare["grid"], filename_prefix="animelora/characters", wide=480, tall=620)
    c.row(
        Group("", [[note]]),
        Group("Model and LoRA", [[base, loaded, avoid, latent]]),
        rows,
        Group("Many characters at once", [[compare, grid]]),
    )
    return c


def photo(info: ObjectInfo) -> Canvas:
    """One photo at two strengths."""
    c = Canvas("photo to anime", info)
    note = c.note(notes.PHOTO, tall=340)
    source = c.node("LoadImage", "Your photo", image="example.png", wide=340, tall=380)
    base = checkpoint(c)
    loaded = load(c, base)
    rows = []
    for strength in (0.65, 0.8):
        repainted = c.node(
            "AnimeLoRA_AnimeImg2Img",
            model=loaded["model"],
            clip=loaded["clip"],
            vae=base["VAE"],
            image=source["IMAGE"],
            trigger_words=loaded["trigger_words"],
            strength=strength,
            wide=380,
        )
        both = c.node("PreviewImage", "Before and after", images=repainted["before_after"], wide=500, tall=270)
        saved = c.node("SaveImage", images=repainted["image"], filename_prefix=f"animelora/photo_{strength:g}", wide=500, tall=270)
        rows.append(Group(f"Strength {strength:g}", [[repainted], [both, saved]]))
    c.row(
        Group("", [[note]]),
        Group("Photo, model and LoRA", [[source, base, loaded]]),
        rows,
    )
    return c


def guidance(info: ObjectInfo) -> Canvas:
    """Three guidances beside each other, from the prompt and from a photo."""
    c = Canvas("guidance compared", info)
    note = c.note(notes.GUIDANCE, tall=380)
    base = checkpoint(c)
    source = c.node("LoadImage", "Your photo", image="example.png", wide=320, tall=380)
    common: dict[str, Any] = {
        "model": base["MODEL"],
        "clip": base["CLIP"],
        "vae": base["VAE"],
        "guidances": "5, 7.5, 10",
    }
    text = c.node("AnimeLoRA_StyleCompare", "Style Compare: from the prompt", **common, wide=400)
    grid = c.node("SaveImage", images=text["grid"], filename_prefix="animelora/guidance", wide=620, tall=640)
    repaint = c.node(
        "AnimeLoRA_StyleCompare",
        "Style Compare: from the photo",
        **common,
        prompts="anime_face girl, high quality",
        lora_strengths="0.8, 1.0",
        img2img_strengths="0.65, 0.8",
        image=source["IMAGE"],
        wide=400,
    )
    sheet = c.node("SaveImage", images=repaint["grid"], filename_prefix="animelora/guidance_photo", wide=620, tall=640)
    c.row(
        Group("", [[note]]),
        Group("Model and photo", [[base, source]]),
        [Group("From the prompt", [[text], [grid]]), Group("From a photo, at 0.65 and 0.8", [[repaint], [sheet]])],
    )
    return c


def tour(info: ObjectInfo) -> Canvas:
    """The whole chain on the model that travels with the pack."""
    c = Canvas("zero-download tour", info)
    note = c.note(notes.TOUR, tall=420)
    drawn = c.node("AnimeLoRA_DemoPictures", style="anime", count=DemoSettings.pictures)
    prep = c.node(
        "AnimeLoRA_DatasetPrep",
        images=drawn["images"],
        captions=drawn["captions"],
        resolution=256,
        trigger_word="demoAnimeStyle",
        class_description="portrait",
        tall=400,
    )
    sheet = c.node("PreviewImage", "The dataset", images=prep["contact_sheet"], wide=320, tall=330)
    prompt = "short blue hair, tan skin, plain yellow background, red hoodie, round green eyes, smile"
    train = c.node(
        "AnimeLoRA_TrainLora",
        dataset=prep["dataset"],
        checkpoint=DEMO_BASE,
        name="demo_anime_style",
        epochs=40,
        rank=DemoSettings.rank,
        alpha=float(DemoSettings.rank),
        targets=DemoSettings.targets,
        learning_rate=DemoSettings.lr,
        schedule="cosine",
        warmup_steps=10,
        gradient_accumulation=1,
        batch_size=DemoSettings.batch,
        validation_prompts=f"demoAnimeStyle portrait, {prompt}",
        validate_every=8,
        validation_guidance=2.0,
        wide=760,
    )
    samples = c.node("PreviewImage", "Validation images by epoch", images=train["samples"], wide=360, tall=440)
    curve = c.node("PreviewImage", "Loss", images=train["loss_curve"], wide=360, tall=380)
    base = c.node("AnimeLoRA_LoadDemoBase", wide=320)
    loaded = load(c, base, lora=train["lora"], model="model", clip="clip")
    words = c.node("StringConcatenate", "Prompt", string_a=loaded["trigger_words"], string_b=f"portrait, {prompt}", delimiter=" ", tall=240)
    wanted = c.node("CLIPTextEncode", clip=loaded["clip"], text=words["STRING"])
    avoid = c.node("CLIPTextEncode", "What to avoid", clip=loaded["clip"], text="")
    latent = c.node("EmptyLatentImage", "Size", width=256, height=256)
    sampled = sampler(c, loaded["model"], wanted, avoid, latent["LATENT"], seed=7, cfg=2.0, steps=20)
    decoded = c.node("VAEDecode", samples=sampled["LATENT"], vae=base["vae"])
    saved = c.node("SaveImage", images=decoded["IMAGE"], filename_prefix="animelora/demo", tall=320)
    people = c.node("AnimeLoRA_DemoPictures", "Demo Pictures: photo-like", style="photo-like", count=1, first=504)
    rows: list[list[Node]] = []
    for strength in (0.65, 0.8):
        repainted = c.node(
            "AnimeLoRA_AnimeImg2Img",
            f"Anime Img2Img at {strength:g}",
            model=loaded["model"],
            clip=loaded["clip"],
            vae=base["vae"],
            image=people["images"],
            trigger_words=loaded["trigger_words"],
            positive=people["captions"],
            negative=DemoSettings.negative,
            strength=strength,
            guidance=DemoSettings.guidance,
            steps=20,
            wide=340,
        )
        prefix = f"animelora/demo_photo_{strength:g}"
        both = c.node("SaveImage", images=repainted["before_after"], filename_prefix=prefix, wide=340, tall=330)
        rows.append([repainted, both])
    compare = c.node(
        "AnimeLoRA_StyleCompare",
        model=base["model"],
        clip=base["clip"],
        vae=base["vae"],
        lora=train["lora"],
        prompts=f"portrait, {prompt}",
        negative="",
        lora_strengths="0.5, 1.0",
        guidances="1.5, 2, 3",
        steps=20,
        width=256,
        height=256,
        wide=400,
    )
    grid = c.node("SaveImage", images=compare["grid"], filename_prefix="animelora/demo_compare", wide=400, tall=480)
    c.row(
        Group("", [[note]]),
        Group("1, 2 · Pictures and dataset", [[drawn, prep], [sheet]]),
        Group("3 · Train", [[train], [samples, curve]]),
    )
    c.row(
        Group("Base and LoRA", [[base, loaded, people]]),
        Group("4 · From a prompt", [[words, wanted, avoid], [latent, sampled, decoded], [saved]]),
        Group("5 · Photo to anime", rows),
        Group("6 · Compared with the base", [[compare], [grid]]),
    )
    return c


def app(info: ObjectInfo) -> Canvas:
    """Training as a form, without a canvas."""
    c = Canvas("train in App mode", info)
    note = c.note(notes.APP, tall=360, wide=420)
    prep = c.node("AnimeLoRA_DatasetPrep", tall=420)
    train = train_on_checkpoint(c, dataset=prep["dataset"], wide=760)
    samples = c.node("PreviewImage", "Validation images by epoch", images=train["samples"], wide=380, tall=460)
    base = checkpoint(c)
    loaded = load(c, base, lora=train["lora"])
    latent = c.node("EmptyLatentImage", "Size")
    image = text_to_image(c, loaded, base["VAE"], latent, "anime_face girl, high quality", "animelora/app")
    c.row(
        Group("", [[note]]),
        Group("1 · Your images", [[prep]]),
        Group("2 · Train", [[train], [samples]]),
        Group("3 · Try it", [[base, loaded, latent], *image]),
    )
    words, saved = image[0][0], image[1][2]
    c.app(
        inputs=[
            *((prep, widget, "") for widget in ("folder", "trigger_word", "class_description")),
            *((train, widget, "") for widget in ("checkpoint", "name", "epochs", "validation_prompts")),
            (base, "ckpt_name", "checkpoint for the image"),
            (words, "string_b", "prompt"),
        ],
        outputs=[samples, saved],
    )
    return c


GRAPHS: dict[str, Callable[[ObjectInfo], Canvas]] = {
    "1 First LoRA from a folder": first_lora,
    "2 Photo to anime": photo,
    "3 Characters and styles": characters,
    "4 Guidance compared": guidance,
    "5 Identity with ControlNet": controlnet,
    "6 Compare epochs": epochs,
    "7 Export for other tools": export,
    "8 Zero-download tour": tour,
    "9 Train in App mode.app": app,
    "10 Train an Anima style": anima_style,
}
"""File names in workflows/, which are the titles in ComfyUI's template browser."""
