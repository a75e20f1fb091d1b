"""What is known about a training run and goes into the metadata of its LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from PIL import Image


@dataclass(frozen=True)
class SubsetFacts:
    """One of several datasets of a run."""

    name: str
    image_count: int
    images_seen: int  # in an epoch, with repeats
    repeats: int
    tag_frequency: Mapping[str, int]
    class_tokens: str = ""
    regularisation_count: int = 0
    loss_weight: float = 1.0
    shuffle_caption: bool = False
    keep_tokens: int = 0
    caption_dropout: float = 0.0
    tag_dropout: float = 0.0
    flip: bool = False


@dataclass(frozen=True)
class TrainingFacts:
    """Facts about a training run. All but the first four have neutral defaults."""

    name: str
    family: str  # "sd1", "sdxl", …
    rank: int
    alpha: float
    # base
    base_name: str = ""  # file name of the checkpoint
    base_hash: str = ""  # SHA-256 of the checkpoint file, hex
    base_legacy_hash: str = ""  # SHA-256 of 64 KiB at 1 MiB, first 8 digits (what A1111 shows as [hash])
    prediction_type: str = "epsilon"  # or "v_prediction", "flow"
    clip_skip: int | None = None
    max_tokens: int = 75  # tokens of a caption that are read
    # network
    trains_unet: bool = True
    targets: str = "all-linear"
    network_args: Mapping[str, object] = field(default_factory=dict)  # beyond rank and alpha: conv_dim, dora_wd, …
    network_dropout: float | None = None
    # optimisation
    lr: float = 0.0
    text_encoder_lr: float | None = None  # None: not trained
    optimizer: str = "torch.optim.adamw.AdamW"
    optimizer_args: Mapping[str, object] = field(default_factory=dict)
    scheduler: str = "constant"
    warmup_steps: int = 0
    max_grad_norm: float = 1.0
    min_snr_gamma: float | None = None
    noise_offset: float | None = None
    gradient_checkpointing: bool = False
    precision: str = "no"  # "bf16", "fp16" or "no" (fp32), as accelerate names them
    seed: int = 0
    # length
    epochs: int = 0  # so far
    planned_epochs: int = 0  # 0: same as epochs
    steps: int = 0  # optimizer steps done
    max_steps: int = 0  # optimizer steps planned; 0: same as steps
    batch_size: int = 1  # per device
    devices: int = 1
    accumulation: int = 1
    loss: float | None = None
    started_at: float = 0.0  # seconds since 1970
    finished_at: float = 0.0
    # dataset
    dataset_name: str = ""
    dataset_hash: str = ""
    image_count: int = 0
    regularisation_count: int = 0
    repeats: int = 1  # the most frequent
    images_seen: int = 0  # in an epoch, with repeats; 0: image_count times repeats
    resolution: int | tuple[int, int] = 512  # width, height
    buckets: Mapping[str, int] = field(default_factory=dict)  # "512x512": images
    tag_frequency: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # folder: {tag: images}
    trigger: str = ""
    class_description: str = ""
    shuffle_caption: bool = False
    keep_tokens: int = 0
    caption_dropout: float = 0.0
    tag_dropout: float = 0.0
    flip: bool = False
    subsets: tuple[SubsetFacts, ...] = ()  # each dataset, if there are several; otherwise the fields above describe the only one
    # for users
    title: str = ""
    author: str = ""
    description: str = ""
    licence: str = ""
    tags: tuple[str, ...] = ()
    usage_hint: str = ""
    comment: str = ""
    thumbnail: Image.Image | None = None
    extra: Mapping[str, str] = field(default_factory=dict)  # additional keys
