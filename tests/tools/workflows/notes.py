"""The texts of the notes on the canvas (Markdown)."""

from __future__ import annotations

SD15_NAME = "v1-5-pruned-emaonly-fp16.safetensors"
SD15_URL = f"https://huggingface.co/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/{SD15_NAME}"

CANNY_NAME = "control_v11p_sd15_canny_fp16.safetensors"
CANNY_URL = f"https://huggingface.co/comfyanonymous/ControlNet-v1-1_fp16_safetensors/resolve/main/{CANNY_NAME}"

_ANIMA_FOLDER = "https://huggingface.co/circlestone-labs/Anima/resolve/main/split_files"
ANIMA_FILES = tuple(
    (folder, name, f"{_ANIMA_FOLDER}/{folder}/{name}")
    for folder, name in (
        ("diffusion_models", "anima-base-v1.0.safetensors"),
        ("text_encoders", "qwen_3_06b_base.safetensors"),
        ("vae", "qwen_image_vae.safetensors"),
    )
)
"""Folder below models/, name and address of each file of Anima."""

FIRST_LORA = f"""
# Your first LoRA, from a folder

**1 · Your images.** Put 10 to 200 images of one style into a folder in **ComfyUI/input**, press **R** to refresh, \
and choose the folder in *Dataset Prep*. Text files next to the images become their captions.

**2 · Train.** Choose the checkpoint to train on ([Stable Diffusion 1.5]({SD15_URL}) goes to \
**models/checkpoints**). Press **Run**. Loss, time left and validation images appear in the node.

**3 · Try it.** The rest of the graph uses the finished LoRA at once. The file is in **models/loras** and works in other tools, too.

- Run it again: a finished run is reused, not trained a second time.
- Cancel: the training state is saved. Run it again to resume.
- Images look burnt: use fewer epochs or a lower learning rate.
- The style is too weak: use more epochs or more repeats.
"""

CHARACTERS = """
# Characters and styles

The LoRA decides *how* things are drawn, the prompt *what* is drawn. The prompt can also bend the style: chibi, Ghibli-like, retro 90s.

- Choose your LoRA in *Load LoRA*. The *Prompt* nodes put its trigger words in front of each prompt.
- All rows use the same seed. Set *control after generate* to *randomize* for new images.
- A style that is too strong hides the prompt: lower **strength (model)** to 0.6 or 0.8.

On the right, *Style Compare* renders each character without and with the LoRA.
"""

PHOTO = """
# Photo to anime

Both rows repaint the same photo. Only **strength** differs:

- **0.65** keeps the person: pose, face and lighting stay.
- **0.8** is closer to the style and invents more.

Choose your photo, and your LoRA in *Load LoRA*. Describe the photo in the prompt. *Load LoRA* adds the trigger words. A ControlNet \
(from *Load ControlNet Model*) keeps the shapes at a higher strength.

The images are identical to those of VAE Encode, KSampler and VAE Decode with the same settings.
"""

GUIDANCE = """
# Guidance compared: 5, 7.5, 10

**Guidance** (CFG) is how closely the image follows the prompt.

- **5** is soft and takes liberties.
- **7.5** is the usual middle.
- **10** is literal; colours and edges become harsh.

Choose your LoRA under **lora_name** in both *Style Compare* nodes.

Each grid shows guidance from left to right and LoRA strength from top to bottom. The first row has no LoRA, \
so you can see what the LoRA adds. All cells use the same seed.

The top grid is text-to-image, the lower grids repaint a photo at strength 0.65 and 0.8.
"""

CONTROLNET = f"""
# Identity kept with ControlNet

At strength **0.9** the style wins and the person is lost, as the upper row shows. In the lower row a **ControlNet** keeps the \
photo's outlines, so that pose, face and hair stay in place while everything is redrawn.

1. Choose your photo, and your LoRA in *Load LoRA*. *Edges* shows what the ControlNet sees: raise **high_threshold** for fewer lines.
2. The ControlNet ([Canny for Stable Diffusion 1.5]({CANNY_URL})) goes to **models/controlnet**. It must fit the checkpoint.
3. Press **Run** and compare both rows. They use the same seed.

- Too stiff, or lines like in the photo: lower **control strength** to 0.5 to 0.8.
- Still a different person: raise it, or lower **strength** to 0.75.
"""

EPOCHS = """
# Compare epochs, pick one

The last epoch is not always the best one: an earlier checkpoint may be more flexible, a later one closer to your images. \
*Train LoRA* saves a LoRA with each set of validation images, and one every so many steps: **save every (steps)**.

**1 · Train.** A finished run with the same settings is reused.

**2 · Compare.** *Epoch Compare* renders the same prompt and seed with every saved checkpoint (rows) at several strengths (columns), \
below a row without the LoRA.

**3 · Pick.** Enter the step of the row you like in *Pick Epoch* and press **Run** again. The grid is not rendered a second time. \
With a name in **save as**, the LoRA is saved in **models/loras**.

To compare an earlier run, choose it under **run** in *Epoch Compare* and *Pick Epoch*, and delete the first group.
"""

EXPORT = """
# Export for other tools

A LoRA in **models/loras** already has kohya's format: copy it to A1111, Forge, InvokeAI or diffusers as it is. \
*Export LoRA* does the rest. Choose your LoRA in *Load LoRA* and in the *Export LoRA* nodes:

- **For every program:** fp16, with the title, author, trigger words and thumbnail that model browsers show.
- **For diffusers:** the key names of diffusers' own training scripts.
- **Smaller:** a lower rank, with a report of how much is lost. The last group renders with it, so you can see the difference.

The files go to **output/animelora/exports**. Each node reports what it wrote and what could not be converted.
"""

TOUR = """
# The whole workflow, without a download

Everything here comes with AnimeLoRA: a small model that draws 256-pixel portraits, and portraits in an anime \
style that it has never seen. Press **Run**. On a CPU it takes a few minutes, most of them for training.

1. *Demo Pictures* draws the training images.
2. *Dataset Prep* turns them into a clean, captioned dataset.
3. *Train LoRA* teaches the style to the small model. Watch the loss and the validation images in the node.
4. The LoRA renders a new person from a prompt.
5. It turns a photo-like portrait into anime at 0.65 and 0.8. The prompt describes the person, the negative prompt the photo's style.
6. *Style Compare* shows it beside the base model.

Then do the same with your own images and a real model: open the template *First LoRA from a folder*.
"""

APP = f"""
# Train in App mode

This template opens as a form: choose a folder of images, a trigger word and the checkpoint ([Stable Diffusion 1.5]({SD15_URL})), \
and press **Run**. During the training, the newest validation image appears large; \
after it, all of them and an image with the finished LoRA.

The menu at the top left changes between the form and the graph behind it, where all settings are. \
The LoRA is in **models/loras** and works in other tools, too.
"""

_ANIMA_LINKS = "\n".join(f"- [{name}]({url}) → **models/{folder}**" for folder, name, url in ANIMA_FILES)
ANIMA = f"""
# Train an Anima style

Anima is one model in three files:

{_ANIMA_LINKS}

**1 · Your images.** Put 50 to 300 images of one style into a folder in **ComfyUI/input**, press **R** to refresh, and choose the \
folder in *Dataset Prep*. Text files next to the images become their captions; tags and sentences both work.

**2 · Train.** Choose the model (*[diffusion_models] …*). Text encoder and VAE are found among your files. The preset \
**style-anima** has filled in the settings. Press **Run**.

**3 · Try it.** The image is sampled as in ComfyUI's own template for Anima: shift 3.0 (the model's default), CFG 4, Euler. Quality tags \
stand in front of the trigger words.

- It needs too much memory or time: set the resolution of *Dataset Prep* to 512.
- For a character or a thing, choose the preset **character-anima** or **concept-anima**.
- Train on the base model. LoRAs for the previews do not carry over well to it.
"""
