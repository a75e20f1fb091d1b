"""``[dataset]``: what the LoRA learns from."""

from __future__ import annotations

from ..setting import required, setting
from .section import Section


class MoreDataset(Section):
    """A prepared dataset and its part of the training."""

    path: str = required("Folder of the prepared dataset.", details="The folder that Dataset Prep or the command `prepare` wrote.")
    repeats: int = setting(
        1,
        "How many times an epoch shows each image of this dataset.",
        details="Multiplies the repeats that it was prepared with (kohya's `num_repeats`).",
        why="Repeats chosen when preparing are kept.",
        ge=1,
        le=100_000,
    )
    loss_weight: float = setting(
        1.0,
        "How much each image of this dataset counts in the loss. 0.5 is half, 0 is nothing.",
        details="Multiplies the images' own weights.",
        why="All images count alike.",
        ge=0,
        le=100,
    )
    hash: str = setting(
        "",
        "Hash of the dataset that is meant. Any other dataset in this folder is refused.",
        details="As `prepare` reports it, or at least its first 16 digits. Dataset Prep passes it to Train LoRA.",
        why="A configuration written by hand accepts whatever the folder holds.",
        pattern=r"^([0-9a-f]{16,64})?$",
    )


class DatasetSection(MoreDataset):
    """The prepared dataset (a folder that ``prepare`` wrote), and further ones to train together with it."""

    more: tuple[MoreDataset, ...] = setting(
        (),
        "Further prepared datasets to train together with this one.",
        details="See [Several datasets](#several-datasets): a list of tables with `path`, `repeats`, `loss_weight` and `hash` as above.",
        why="One dataset is the usual case.",
    )
    balance_regularisation: bool = setting(
        True,
        "Shows as many regularisation images as other images in an epoch. When off, each is shown as often as its folder says.",
        details="Counted with repeats, by kohya's rule: surplus ones are left out, and too few are repeated. The plan shows the ratio.",
        why="kohya's rule: the regularisation set does not outweigh the subject, whatever its size.",
    )
