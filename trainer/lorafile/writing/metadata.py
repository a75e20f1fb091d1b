"""Metadata of a trained LoRA: kohya's keys (``ss_*``) and Stability's model specification (``modelspec.*``).

Every value is text, as safetensors requires. Lists and tables are JSON text, as readers of kohya's files expect. A value that does not
apply is the text ``None``. docs/compatibility.md lists which tool reads which key.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Mapping

from ... import __version__
from ..naming.family_layouts import FAMILY_LAYOUTS
from ..thumbnail import to_data_url
from .training_facts import SubsetFacts, TrainingFacts

# Characters of the table of tags, which is written twice. Every program reads the whole header, which may have 100 MB. Ten thousand booru
# tags take 0.2 MB, but captions in sentences, each of which counts as a tag, have no such limit.
LONGEST_TAGS = 2_000_000


def build_metadata(facts: TrainingFacts) -> dict[str, str]:
    """All metadata of a run except the file hashes, which ``save_lora`` adds. Equal facts give equal metadata."""
    values: dict[str, object] = {**_run(facts), **_base(facts), **_optimisation(facts), **_dataset(facts)}
    metadata = {key: str(value) for key, value in values.items()}
    metadata.update(_modelspec(facts))
    metadata.update({str(key): str(value) for key, value in facts.extra.items()})
    return metadata


def trigger_phrase(facts: TrainingFacts) -> str:
    """The trigger word, followed by the class description if there is one."""
    return " ".join(part for part in (facts.trigger.strip(), facts.class_description.strip()) if part)


def _run(facts: TrainingFacts) -> dict[str, object]:
    # kohya draws the session number at random; a hash of the facts keeps the metadata of equal runs equal
    seed_text = f"{facts.name}|{facts.base_hash}|{facts.dataset_hash}|{facts.seed}|{facts.steps}|{facts.lr}|{facts.rank}"
    session = int.from_bytes(hashlib.sha256(seed_text.encode("utf-8")).digest()[:4], "little")
    values: dict[str, object] = {
        "ss_session_id": session,
        "ss_training_started_at": facts.started_at,
        "ss_training_finished_at": facts.finished_at,
        "ss_output_name": facts.name,
        "ss_training_comment": facts.comment or None,
        "ss_epoch": facts.epochs,
        "ss_num_epochs": facts.planned_epochs or facts.epochs,
        "ss_steps": facts.steps,
        "ss_max_train_steps": facts.max_steps or facts.steps,
        "ss_seed": facts.seed,
        "ss_network_module": FAMILY_LAYOUTS[facts.family].network_module if facts.family in FAMILY_LAYOUTS else "networks.lora",
        "ss_network_dim": facts.rank,
        "ss_network_alpha": facts.alpha,
        "ss_network_dropout": facts.network_dropout,
    }
    if facts.network_args:
        values["ss_network_args"] = json.dumps(dict(facts.network_args))
    if facts.loss is not None:
        values["animelora.loss"] = facts.loss
    return values


def _base(facts: TrainingFacts) -> dict[str, object]:
    layout = FAMILY_LAYOUTS.get(facts.family)
    values: dict[str, object] = {
        "ss_base_model_version": layout.base_version if layout else facts.family,
        "ss_v2": bool(layout and layout.is_v2),
        "ss_sd_model_name": facts.base_name or None,
        "ss_clip_skip": facts.clip_skip,
        "ss_max_token_length": None if facts.max_tokens == 75 else facts.max_tokens,  # as in kohya's trainer
    }
    if facts.base_legacy_hash:
        values["ss_sd_model_hash"] = facts.base_legacy_hash
    if facts.base_hash:
        values["ss_new_sd_model_hash"] = facts.base_hash
    return values


def _optimisation(facts: TrainingFacts) -> dict[str, object]:
    arguments = ",".join(f"{key}={value}" for key, value in facts.optimizer_args.items())
    return {
        "ss_learning_rate": facts.lr,
        "ss_unet_lr": facts.lr if facts.trains_unet else None,
        "ss_text_encoder_lr": facts.text_encoder_lr,
        "ss_network_train_unet_only": facts.text_encoder_lr is None,
        "ss_network_train_text_encoder_only": not facts.trains_unet,
        "ss_optimizer": f"{facts.optimizer}({arguments})" if arguments else facts.optimizer,
        "ss_lr_scheduler": facts.scheduler,
        "ss_lr_warmup_steps": facts.warmup_steps,
        "ss_max_grad_norm": facts.max_grad_norm,
        "ss_gradient_checkpointing": facts.gradient_checkpointing,
        "ss_gradient_accumulation_steps": facts.accumulation,
        "ss_mixed_precision": facts.precision,
        "ss_full_fp16": False,
        "ss_cache_latents": True,
        "ss_lowram": False,
        "ss_min_snr_gamma": facts.min_snr_gamma,
        "ss_noise_offset": facts.noise_offset,
        "ss_adaptive_noise_scale": None,
        "ss_multires_noise_iterations": None,
        "ss_multires_noise_discount": None,
        "ss_ip_noise_gamma": None,
        "ss_zero_terminal_snr": False,
        "ss_debiased_estimation": False,
        "ss_loss_type": "l2",
        "ss_prior_loss_weight": 1.0,
        "ss_scale_weight_norms": None,
        "ss_caption_dropout_rate": facts.caption_dropout,
        "ss_caption_tag_dropout_rate": facts.tag_dropout,
        "ss_caption_dropout_every_n_epochs": 0,
    }


def _dataset(facts: TrainingFacts) -> dict[str, object]:
    width, height = _resolution(facts)
    batch = facts.batch_size * facts.devices
    subsets = facts.subsets or (_only_subset(facts),)
    seen = sum(subset.images_seen for subset in subsets)
    sizes = [[int(side) for side in name.split("x")] for name in sorted(facts.buckets)]
    counts = [facts.buckets[name] for name in sorted(facts.buckets)]
    buckets = {str(index): {"resolution": size, "count": count} for index, (size, count) in enumerate(zip(sizes, counts, strict=True))}
    bucket_info = {"buckets": buckets, "mean_img_ar_error": 0.0} if buckets else None
    frequency = {subset.name: dict(subset.tag_frequency) for subset in facts.subsets}
    frequency = frequency or {name: dict(tags) for name, tags in facts.tag_frequency.items()}
    frequency, left_out = most_frequent(frequency)
    directories = {s.name: {"n_repeats": s.repeats, "img_count": s.image_count} for s in subsets if s.name}
    dataset = {
        "is_dreambooth": True, "batch_size_per_device": facts.batch_size, "num_train_images": seen,
        "num_reg_images": facts.regularisation_count, "resolution": [width, height], "enable_bucket": len(buckets) > 1,
        "tag_frequency": frequency, "bucket_info": bucket_info, "subsets": [_subset(subset) for subset in subsets],
    }  # fmt: skip
    return {
        "ss_num_train_images": seen,
        "ss_num_reg_images": facts.regularisation_count,
        "ss_num_batches_per_epoch": -(-seen // batch),
        "ss_batch_size_per_device": facts.batch_size,
        "ss_total_batch_size": batch * facts.accumulation,
        "ss_resolution": f"({width}, {height})",
        "ss_enable_bucket": len(buckets) > 1,
        "ss_bucket_no_upscale": False,
        "ss_min_bucket_reso": min(map(min, sizes), default=None),
        "ss_max_bucket_reso": max(map(max, sizes), default=None),
        "ss_bucket_info": json.dumps(bucket_info),
        "ss_shuffle_caption": facts.shuffle_caption,
        "ss_keep_tokens": facts.keep_tokens,
        "ss_flip_aug": facts.flip,
        "ss_color_aug": False,
        "ss_random_crop": False,
        "ss_face_crop_aug_range": None,
        "ss_dataset_dirs": json.dumps(directories, ensure_ascii=False),
        "ss_reg_dataset_dirs": json.dumps({}),
        "ss_tag_frequency": json.dumps(frequency, ensure_ascii=False),
        "ss_datasets": json.dumps([dataset], ensure_ascii=False),
        **({"animelora.tags_left_out": left_out} if left_out else {}),
    }


def most_frequent(frequency: Mapping[str, Mapping[str, int]], limit: int = LONGEST_TAGS) -> tuple[dict[str, dict[str, int]], int]:
    """The most frequent tags of all folders, in file order, up to ``limit`` characters of JSON, and the number of the other tags."""
    entries = [(count, folder, tag) for folder, tags in frequency.items() for tag, count in tags.items()]
    kept: set[tuple[str, str]] = set()
    for count, folder, tag in sorted(entries, key=lambda entry: -entry[0]):
        size = len(json.dumps(tag, ensure_ascii=False)) + len(str(count)) + 4
        if size <= limit:
            limit -= size
            kept.add((folder, tag))
    shorter = {folder: {tag: count for tag, count in tags.items() if (folder, tag) in kept} for folder, tags in frequency.items()}
    return shorter, len(entries) - len(kept)


def _only_subset(facts: TrainingFacts) -> SubsetFacts:
    folder = next(iter(facts.tag_frequency), facts.dataset_name)
    return SubsetFacts(
        name=folder, image_count=facts.image_count, repeats=facts.repeats,
        images_seen=facts.images_seen or facts.image_count * facts.repeats,
        tag_frequency=facts.tag_frequency.get(folder, {}), class_tokens=trigger_phrase(facts), shuffle_caption=facts.shuffle_caption,
        keep_tokens=facts.keep_tokens, flip=facts.flip,
    )  # fmt: skip


def _subset(subset: SubsetFacts) -> dict[str, object]:
    values: dict[str, object] = {
        "img_count": subset.image_count, "num_repeats": subset.repeats, "color_aug": False, "flip_aug": subset.flip, "random_crop": False,
        "shuffle_caption": subset.shuffle_caption, "keep_tokens": subset.keep_tokens, "image_dir": subset.name,
        "class_tokens": subset.class_tokens or None, "is_reg": False,
    }  # fmt: skip
    if subset.caption_dropout or subset.tag_dropout:
        values |= {"caption_dropout_rate": subset.caption_dropout, "caption_tag_dropout_rate": subset.tag_dropout}
    if subset.loss_weight != 1:
        values["loss_weight"] = subset.loss_weight  # our own key: kohya has one only for regularisation images
    return values


def _modelspec(facts: TrainingFacts) -> dict[str, str]:
    width, height = _resolution(facts)
    layout = FAMILY_LAYOUTS.get(facts.family)
    moment = datetime.datetime.fromtimestamp(int(facts.finished_at or facts.started_at), tz=datetime.timezone.utc)
    values = {
        "sai_model_spec": "1.0.1",
        "architecture": _architecture(facts),
        "implementation": layout.implementation if layout else "diffusers",
        "implementation_version": f"AnimeLoRA/{__version__}",
        "title": facts.title or facts.name,
        "resolution": f"{width}x{height}",
        "prediction_type": {"v_prediction": "v"}.get(facts.prediction_type, facts.prediction_type),
        "date": moment.replace(tzinfo=None).isoformat() if facts.started_at or facts.finished_at else "",
        "trigger_phrase": trigger_phrase(facts),
        "author": facts.author,
        "description": facts.description,
        "license": facts.licence,
        "tags": ", ".join(facts.tags),
        "usage_hint": facts.usage_hint,
        "encoder_layer": "" if facts.clip_skip is None else str(facts.clip_skip),
        "thumbnail": to_data_url(facts.thumbnail) if facts.thumbnail is not None else "",
    }
    return {f"modelspec.{key}": value for key, value in values.items() if value}


def _architecture(facts: TrainingFacts) -> str:
    layout = FAMILY_LAYOUTS.get(facts.family)
    if layout is None:
        return f"{facts.family}/lora"
    predicts_velocity = facts.prediction_type.startswith("v")
    return layout.velocity_architecture if predicts_velocity and layout.velocity_architecture else layout.architecture


def _resolution(facts: TrainingFacts) -> tuple[int, int]:
    size = facts.resolution
    return (size, size) if isinstance(size, int) else (size[0], size[1])
