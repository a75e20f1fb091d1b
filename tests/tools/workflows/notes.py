"""What the notes on the canvas say (Markdown)."""

from __future__ import annotations

SD15_NAME = "v1-5-pruned-emaonly-fp16.safetensors"
SD15_URL = f"https://huggingface.co/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/{SD15_NAME}"

CANNY_NAME = "control_v11p_sd15_canny_fp16.safetensors"
CANNY_URL = f"https://huggingface.co/comfyanonymous/ControlNet-v1-1_fp16_safetensors/resolve/main/{CANNY_NAME}"

FIRST_LORA = f"""
# Your first LoRA, from a folder

**1 · Your pictures.** Put 10 to 200 pictures of one style into a folder below **ComfyUI/input**, press **R** to refresh, \
and choose the folder in *Dataset Prep*. Text files beside the pictures become their captions.

**2 · Train.** Choose the checkpoint to train on ([Stable Diffusion 1.5]({SD15_URL}) goes to \
**models/checkpoints**). Then queue. Loss, time left and test pictures appear in the node.

**3 · Try it.** The finished LoRA is used at once. It lies in **models/loras** and works in every other tool.

- Queue again: a finished run is not trained a second time.
- Cancel: the state is kept. Queue again and training goes on from there.
- Burnt pictures: fewer epochs, or a lower learning rate.
- No style yet: more epochs, or more repeats.
"""

CHARACTERS = """
# Characters and styles

The LoRA brings *how* things are drawn, the prompt says *what* and can bend the style: chibi, Ghibli-like, retro 90s.

- Choose your LoRA in *Load LoRA*. Its trigger words are put in front of each prompt by the *Prompt* nodes.
- Every lane uses the same seed. Set *control after generate* to *randomize* for new pictures.
- A style that is too strong hides the prompt: lower **strength_model** to 0.6 or 0.8.

On the right, *Style Compare* paints one character after another, without and with the LoRA.
"""

PHOTO = """
# Photo to anime

Both lanes repaint the same photo. Only **strength** differs:

- **0.65** keeps the person: pose, face and light stay.
- **0.8** goes further into the style and invents more.

Describe what is in the photo. The trigger words come from *Load LoRA* by themselves. A ControlNet \
(from *Load ControlNet Model*) can hold on to the shape while strength goes up.

The pictures equal those of VAE Encode, KSampler and VAE Decode with the same settings.
"""

GUIDANCE = """
# Guidance compared: 5, 7.5, 10

**Guidance** (CFG) is how closely the picture follows the prompt.

- **5** is soft and free.
- **7.5** is the usual middle.
- **10** is literal; colours and edges get harder.

Each grid shows guidance from left to right and LoRA strength from top to bottom. The first row has no LoRA, \
so that you see what the LoRA adds. All cells use one seed.

Above from the prompt alone, below from a photo at strengths 0.65 and 0.8.
"""

CONTROLNET = f"""
# Identity kept with ControlNet

At strength **0.9** the style wins, and the person is lost: look at the upper lane. Below, a **ControlNet** holds on to the \
photo's outlines, so that pose, face and hair stay where they are while everything is drawn anew.

1. Choose your photo. *Edges* shows what the ControlNet sees: raise **high_threshold** for fewer lines.
2. The ControlNet ([Canny for Stable Diffusion 1.5]({CANNY_URL})) goes to **models/controlnet**. It must fit the checkpoint.
3. Queue, and compare both lanes. They use the same seed.

- Too stiff, or photo-like lines: lower **control_strength** to 0.5 to 0.8.
- Still another person: raise it, or lower **strength** to 0.75.
"""

EPOCHS = """
# Compare epochs, pick one

The last epoch is not always the best one: an earlier state may be freer, a later one closer to your pictures. \
*Train LoRA* keeps one every **checkpoint_every** steps.

**1 · Train**, or find the finished run again: the same settings are never trained twice.

**2 · Compare.** *Epoch Compare* paints the same prompt and seed with every saved state (rows) at several strengths (columns), \
below a row without the LoRA.

**3 · Pick.** Write the step of the row that you like into *Pick Epoch* and queue again. The grid is not painted a second time. \
With a name in **save_as** the LoRA stays in **models/loras**.

A run of yours from earlier? Choose it under **run** in *Epoch Compare* and *Pick Epoch*, and remove the first group.
"""

EXPORT = """
# Export for other tools

A LoRA in **models/loras** is kohya's format already: copy it to A1111, Forge, InvokeAI or diffusers as it is. \
*Export LoRA* is for the rest:

- **For every program:** fp16, with title, author, trigger words and a thumbnail inside, as model browsers show them.
- **For diffusers:** the key names of diffusers' own training scripts.
- **Smaller:** a lower rank, and how much that loses. The last group paints with it, so that you see whether it is still the same.

The files go to **output/animelora/exports**. Each node says what it wrote and what could not be carried over.
"""

TOUR = """
# The whole chain, without a download

Everything here comes with AnimeLoRA: a small model that draws 256-pixel portraits, and portraits in an anime \
style that it has never seen. **Queue it.** On a plain CPU it takes some minutes, most of them for training.

1. *Demo Pictures* draws the portraits to learn from.
2. *Dataset Prep* makes a clean, captioned dataset of them.
3. *Train LoRA* teaches the style to the small model. Watch the loss and the test pictures in the node.
4. The LoRA paints a new person from a prompt,
5. turns a photo-like portrait into anime at 0.65 and 0.8, with its description as the prompt and the photo's style as what to avoid,
6. and is compared with the base.

Then do the same with your own pictures and a real model: template *first LoRA from a folder*.
"""
