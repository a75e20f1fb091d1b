"""Start training from a LoRA file, of this pack or of another tool."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import UserError
from ..core.messages import Action, Message, Setting, join_messages
from ..families.checkpoints.digests import cached_digest
from . import adapter

if TYPE_CHECKING:
    import torch
    from torch import nn


def lora_identity(path: Path, cache_dir: Path) -> str:
    """SHA-256 of the file's bytes; cached in ``cache_dir`` while the file stays unchanged."""
    return cached_digest(path, cache_dir, full=False)


def require_lora(path: Path) -> None:
    """Check the file, before anything slow. Raises UserError when it is missing, damaged or no LoRA, or changes what cannot be trained."""
    from ..lorafile import read_lora
    from ..lorafile.biases import bias_of
    from ..lorafile.comfyui_dora import uses_base_norm

    if not path.is_file():
        raise UserError(
            f"The LoRA to start from was not found: {path}.", Message("Check ", Setting("base.lora"), ", or leave it empty."), kind="lora"
        )
    weights = read_lora(path)
    if uses_base_norm(weights.metadata):
        raise _unfit(path, "its DoRA was exported for ComfyUI's own loader", "Give the LoRA that it was exported from.")
    if changed := [module.name for module in weights if bias_of(module) is not None or module.algorithm in ("norm", "set")]:
        hint = Message(
            "Training changes weights only. Train on a checkpoint that the LoRA was merged into. To merge it, use ", Action.MERGE_LORA, "."
        )
        raise _unfit(path, f"it changes biases or normalisations of {len(changed)} layers, for example {changed[0]}", hint)


def load_lora(model: nn.Module, path: Path) -> None:
    """Load the file's weights into the LoRA layers of ``model`` (see ``adapter.as_one_model``), scaled so that they have the same effect
    with the alpha of this run.

    The file must have the layers and ranks of ``model``. Layers of a denoiser or text encoder that is not trained are left
    alone (see ``frozen_lora``). A text encoder without layers in the file starts from zero. Raises UserError that names the difference.
    """
    from ..lorafile import read_lora

    wanted = {pair.module: pair for pair in adapter.pairs(model)}
    trained = {adapter.component_of(name) for name in wanted}
    modules = [module for module in read_lora(path) if module.component in trained]
    in_file = {module.name if module.component == "unet" else f"{module.component}.{module.name}": module for module in modules}
    present = {adapter.component_of(name) for name in in_file} | {"unet"}
    values: dict[str, torch.Tensor] = {name: tensor for pair in wanted.values() for name, tensor in pair.tensors.items()}
    wanted = {name: pair for name, pair in wanted.items() if adapter.component_of(name) in present}
    _same_layers(path, set(in_file), set(wanted))
    for name, pair in wanted.items():
        module = in_file[name]
        if module.algorithm != "lora" or "lora_mid.weight" in module.tensors or module.is_dora != (pair.magnitude is not None):
            kind = "dora" if module.is_dora else module.algorithm
            raise _unfit(
                path,
                f"its layer {name} is of the kind {kind}",
                Message("Set ", Setting("network.dora"), " as in the file. LoHa and LoKr files cannot be trained further."),
            )
        down, up = module.tensors["lora_down.weight"].float(), module.tensors["lora_up.weight"].float()
        if module.rank != pair.down.shape[0]:
            ranks = join_messages(", ", (Setting("network.conv_rank"), Setting("network.block_ranks")))
            hint = Message(
                "Set ", Setting("network.rank", module.rank), " (or ", ranks, "), or change the file with ", Action.EXPORT_LORA, "."
            )
            raise _unfit(path, f"its layer {name} has rank {module.rank}, the settings say {pair.down.shape[0]}", hint)
        if down.numel() != pair.down.numel() or up.numel() != pair.up.numel():
            raise _unfit(path, f"its layer {name} has other sizes", "Was it made for another kind of checkpoint?")
        values[f"{name}.down"] = down.reshape(pair.down.shape)
        values[f"{name}.up"] = up.reshape(pair.up.shape) * (module.scale / pair.scale)
        if pair.magnitude is not None:
            values[f"{name}.magnitude"] = module.tensors["dora_scale"].float().reshape(pair.magnitude.shape)
    adapter.load_state(model, values)


def _same_layers(path: Path, in_file: set[str], wanted: set[str]) -> None:
    if in_file == wanted:
        return
    more, fewer = sorted(in_file - wanted), sorted(wanted - in_file)
    parts = [f"it has {len(more)} layers that are not trained here, for example {more[0]}"] if more else []
    parts += [f"it lacks {len(fewer)} layers, for example {fewer[0]}"] if fewer else []
    hint = Message(
        "Set ", Setting("network.targets"), " and ", Setting("network.block_ranks"), " as in the file; see ", Action.INSPECT_LORA, "."
    )
    raise _unfit(path, "; ".join(parts), hint)


def _unfit(path: Path, reason: str, hint: str) -> UserError:
    return UserError(f"{path.name} does not fit this run: {reason}.", hint, kind="lora")
