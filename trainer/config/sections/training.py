"""``[training]``: the training loop, and how the machine is used."""

from __future__ import annotations

from typing import Literal

from ..setting import setting
from .section import Section

Precision = Literal["auto", "bf16", "fp16", "fp32"]
Device = Literal["auto", "cpu", "cuda"]
MaxTokens = Literal[75, 150, 225]
EmptyPrompt = Literal["comfyui", "kohya"]
MemoryPreset = Literal["none", "auto", "6gb", "8gb", "12gb", "16gb", "24gb"]
BasePrecision = Literal["same", "int8", "fp8", "nf4"]
Attention = Literal["auto", "sdpa", "xformers"]
Switch = Literal["auto", "on", "off"]


class TrainingSection(Section):
    """Length of the run, batches, precision, saved states, memory and speed."""

    epochs: int = setting(
        5,
        "How many times to train on the whole dataset.",
        details="Repeats of the dataset come on top.",
        why="The reference run's: enough for a first look at a style.",
        ge=1,
        le=100_000,
    )
    max_steps: int = setting(
        0,
        "Stops after this many steps, even if epochs remain. 0 is no limit.",
        details="Optimizer steps.",
        why="Epochs decide.",
        ge=0,
        le=100_000_000,
    )
    batch_size: int = setting(1, "Images per step. More need more GPU memory.", why="Fits the smallest GPUs.", ge=1, le=1024)
    gradient_accumulation: int = setting(
        2,
        "Combines this many batches into one learning step, like a larger batch without the extra memory.",
        why="Steadier steps than one image gives, at no cost in memory.",
        ge=1,
        le=1024,
    )
    precision: Precision = setting(
        "auto",
        "Number format of the calculation. auto picks the fastest that is safe on your hardware.",
        details="Of the frozen model; the LoRA's own weights are always fp32.",
        why="bf16 where the device computes in it, else fp16 on CUDA, else fp32.",
    )
    gradient_checkpointing: bool = setting(
        False,
        "Needs much less GPU memory and is about a fifth slower. Turn it on when memory runs out.",
        details="Computes activations twice instead of keeping them.",
        why="Most runs fit without it.",
    )
    seed: int = setting(
        42,
        "Random seed. The same seed gives the same LoRA.",
        details="Determines the LoRA's initial weights, the order of images, noise and timesteps. On a CPU, two runs of one configuration "
        "give the same file, bit for bit.",
        why="A fixed seed makes runs comparable.",
        ge=0,
        le=0xFFFF_FFFF,
    )
    checkpoint_every: int = setting(
        500,
        "Saves the training state every this many steps, so that an interrupted run can resume. "
        "0 saves only at the end or when you stop it.",
        why="A few minutes of work on a usual GPU.",
        ge=0,
    )
    keep_checkpoints: int = setting(
        0,
        "How many saved training states to keep; LoRA files always stay. 0 keeps all.",
        details="The newest ones.",
        why="Any of them can be resumed from; `output.prune_days` cleans up later.",
        ge=0,
    )
    ema_decay: float = setting(
        0.0,
        "Averages the LoRA over its recent steps, for a smoother result; use 0.99 to 0.999 in long runs. 0 is off.",
        details="An exponential moving average, which validation images and the LoRA file then show. `0.999` averages over about the last "
        "thousand steps; it starts lower, (1 + step) / (10 + step). Cannot be used with schedule-free, which averages by itself.",
        why="Short runs have too few steps to average.",
        ge=0,
        lt=1,
    )
    device: Device = setting(
        "auto",
        "Device to train on. auto uses the GPU if there is one; cpu is slow but leaves the GPU free.",
        why="The GPU if there is one.",
    )
    clip_skip: int = setting(
        0,
        "Which layer of the text encoder to use, counted from the end. 0 is the model's own; many anime models on SD 1.5 need 2.",
        details="`2` is the last layer but one with the final norm, as in A1111. SD 2.x and SDXL always use their own, which is 2.",
        why="The model's own.",
        ge=0,
        le=12,
    )
    max_tokens: MaxTokens = setting(
        75,
        "How many tokens of a long caption to read: 75, 150 or 225.",
        details="Above 75, chunks of 75 are encoded one by one and joined as in kohya's trainer; SDXL's pooled prompt is that of "
        "the first chunk. A warning names captions that are longer.",
        why="What CLIP reads at once; more costs memory for every caption.",
    )
    empty_prompt: EmptyPrompt = setting(
        "comfyui",
        "For Anima and Lumina 2, what an image without a caption and an empty negative prompt mean: the same as in ComfyUI, or as in "
        "kohya's.",
        details="Anima: with `comfyui`, Qwen's state of its padding token reaches the adapter; with `kohya`, zeros do, as in kohya's "
        "trainer, diffusion-pipe and diffusers. Lumina 2: no text, or the system prompt alone. Other models have one meaning for it.",
        why="ComfyUI samples with it.",
    )
    text_encoder_share: float = setting(
        1.0,
        "Trains the text encoder only for this share of the run: 0.5 stops it halfway.",
        details="Anima's text adapter too.",
        why="Trained to the end; a lower share keeps it from memorising in a long run.",
        gt=0,
        le=1,
    )
    checkpoint_epochs: int = setting(
        0,
        "Also saves the training state and a LoRA after every this many epochs. 0 is off.",
        details="In addition to `training.checkpoint_every`.",
        why="`training.checkpoint_every` saves states already, and validation images bring LoRAs.",
        ge=0,
        le=100_000,
    )
    processes: int = setting(
        1,
        "Number of GPUs that share each step. The LoRA stays the same and is finished sooner. 0 uses all.",
        details="See [Several GPUs or machines](#several-gpus-or-machines).",
        why="One GPU is the common case.",
        ge=0,
        le=1024,
    )
    memory: MemoryPreset = setting(
        "none",
        "GPU memory to fit into: chooses memory-saving values for settings you left at their defaults. auto detects it; none is fastest.",
        details="See [Memory](#memory).",
        why="Saving memory costs speed.",
    )
    base_precision: BasePrecision = setting(
        "same",
        "How the frozen base model is stored: int8 and fp8 halve its memory, nf4 quarters it (needs bitsandbytes). same is lossless.",
        details="`same` as `training.precision`, in which all computing is done. `int8` loses least for its size.",
        why="Lossless.",
    )
    micro_batch_size: int = setting(
        0,
        "Images that go through the model at once. Fewer need less memory and give the same result. 0 uses the whole batch.",
        why="The whole batch at once is fastest.",
        ge=0,
        le=1024,
    )
    attention: Attention = setting(
        "auto",
        "Attention implementation. auto uses xformers if it works here, else PyTorch's own (sdpa).",
        details="On Hopper and newer, auto prefers `sdpa`, which is cuDNN's there. The plan and the log name the choice.",
        why="The fastest that works.",
    )
    compile: bool = setting(
        False,
        "Compiles the model: a slow start, then faster steps. After the first failure, runs without it.",
        details="`torch.compile` of the UNet's blocks; the first steps take minutes.",
        why="Pays off in long runs only.",
    )
    cuda_graphs: Switch = setting(
        "auto",
        "Records each step's GPU work once and replays it, so that a fast GPU does not wait for Python.",
        details="Once for each image size. `auto`: on a GPU, if the run needs no more than 60 % of its memory (or of `training.memory`). "
        "Not with `network.dropout` or a trained text encoder. Turns itself off with a warning if recording fails.",
        why="On where it helps.",
    )
    fused: Switch = setting(
        "auto",
        "Computes the UNet's norms, activations and sums in combined GPU kernels.",
        details="The kernels keep images channels-last. `auto`: on a GPU with `training.channels_last`, if "
        "[Triton](https://triton-lang.org) is installed and the kernels pass a self-check. With `on`, a failed self-check is explained. "
        "Not with `training.compile`, which fuses by itself.",
        why="On where it helps.",
    )
    channels_last: Switch = setting(
        "auto",
        "Memory layout of images. auto picks the faster one for your hardware; the result hardly differs.",
        details="`auto`: `on` on a CPU and where tensor cores prefer it (CUDA in bf16 or fp16), else `off`.",
        why="The faster one.",
    )
    swap_blocks: int = setting(
        0,
        "For Anima and Lumina 2: keeps this many blocks in main memory and copies each to the GPU when needed. Needs less "
        "GPU memory, with the same result. 0 keeps all on the GPU.",
        details="Anima has 28 blocks, Lumina 2 30. Two of them are on the GPU at any time, so that 1 and 2 save nothing; more than the "
        "model has means all. Not with `network.dora`, `training.compile` or CUDA graphs. On a CPU it changes nothing. See "
        "[Memory](#memory).",
        why="Training is fastest with all of them on the GPU.",
        ge=0,
        le=1000,
    )
