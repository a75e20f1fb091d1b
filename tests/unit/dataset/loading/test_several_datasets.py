"""Several datasets in one run: each keeps what is its own, and the shares mean what they say."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from tests.unit.training_helpers import configuration, make_dataset, make_pictures, train_here
from trainer.config import run_config
from trainer.config.sections.dataset import DatasetSection, MoreDataset
from trainer.config.sections.objective import ObjectiveSection
from trainer.dataset import (
    Dataset,
    PrepareSettings,
    TrainingHints,
    WeightedDataset,
    combine_datasets,
    open_dataset,
    prepare_dataset,
    select_items,
)
from trainer.dataset.loading import batch_order
from trainer.dataset.loading.caption_variation import caption_at
from trainer.dataset.loading.open import open_datasets
from trainer.families import open_checkpoint
from trainer.families.sd1 import FAMILY
from trainer.families.stable_diffusion.noise_schedule import SCHEDULE
from trainer.launch.prepared_run import prepare_run
from trainer.objective.diffusion import Diffusion
from trainer.runs import events
from trainer.training.caching.cache import Cache
from trainer.training.caching.latent_cache import fill_latents
from trainer.training.caching.prompt_cache import fill_prompts
from trainer.training.micro_batch import build_micro_batch

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Three pictures of a style; two of a hero, mirrored and shuffled, with a regularisation picture."""
    root = tmp_path_factory.mktemp("several")
    style = make_dataset(root / "style", 3, seed=1)
    hints = {"flip": True, "shuffle_caption": True, "keep_tokens": 0}
    settings = PrepareSettings(trigger="myHero", class_description="girl", resolution=64, repeats=2, training=hints)  # type: ignore[arg-type]
    source = make_pictures(root / "hero-pictures", 2, seed=2)
    for index in range(2):
        (source / f"{index:02d}.txt").write_text("red hair, hat, smile, blue eyes, standing", encoding="utf-8")
    other = make_pictures(root / "other", 1, seed=3)
    hero = prepare_dataset(source, root / "datasets", settings, regularisation=other).dataset.path
    return style, hero


def share_of(folder: Path, repeats: int = 1, loss_weight: float = 1.0) -> WeightedDataset:
    return WeightedDataset(open_dataset(folder), repeats, loss_weight)


def test_one_dataset_alone_stays_what_it_is(folders: tuple[Path, Path]) -> None:
    alone = open_dataset(folders[0])
    assert combine_datasets([WeightedDataset(alone)]) is alone
    assert combine_datasets([WeightedDataset(alone, repeats=2)]).hash != alone.hash


def test_an_epoch_has_each_image_its_own_repeats_times_those_of_its_dataset(folders: tuple[Path, Path]) -> None:
    both = combine_datasets([share_of(folders[0], 3), share_of(folders[1], 5)])
    style, hero = (open_dataset(folder) for folder in folders)
    sizes, repeats = [(item.width, item.height) for item in both.items], [item.repeats for item in both.items]
    seen: Counter[str] = Counter()
    for batch in batch_order.epoch_batches(sizes, repeats, 4, seed=3, epoch=1):
        assert len({sizes[slot.item] for slot in batch}) == 1
        seen.update(both.items[slot.item].sha256 for slot in batch)
    expected = {item.sha256: 3 * item.repeats for item in style.items} | {item.sha256: 5 * item.repeats for item in hero.items}
    assert dict(seen) == expected
    assert both.buckets() == {"64x64": len(style.items) + len(hero.items)}


def test_an_image_gives_the_batch_of_its_own_dataset_except_for_the_weight(
    folders: tuple[Path, Path], shallow_checkpoint: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "masked"
    shutil.copytree(folders[1], moved)
    Image.linear_gradient("L").resize((64, 64)).rotate(90).save(moved / "mask.png")
    opened = open_dataset(moved)
    hero = replace(opened, items=[replace(item, mask="mask.png") for item in opened.items])
    style = open_dataset(folders[0])
    both = combine_datasets([WeightedDataset(style), WeightedDataset(hero, loss_weight=0.25)])
    cache, checkpoint = Cache(tmp_path / "cache", "base", FAMILY.latents), open_checkpoint(str(shallow_checkpoint))
    fill_latents(cache, both, FAMILY, checkpoint, CPU, lambda *_: None, lambda: False)
    captions = set()
    plain, process = ObjectiveSection(), Diffusion(SCHEDULE)
    for part, first in ((style, 0), (hero, len(style.items))):
        for index, item in enumerate(part.items):
            for position in range(3):
                slots = [[batch_order.Slot(number, position)] for number in (first + index, index)]
                caption = caption_at(item, part.training, seed=1, epoch=0, position=position)
                captions.add(caption)
                fill_prompts(cache, [caption], FAMILY, checkpoint, CPU, lambda *_: None, lambda: False)
                together = build_micro_batch(slots[0], both, cache, plain, process, seed=1, epoch=0)
                alone = build_micro_batch(slots[1], part, cache, plain, process, seed=1, epoch=0)
                assert torch.equal(together.latents, alone.latents)
                assert torch.equal(together.conditions[0]["embeds"], alone.conditions[0]["embeds"])
                assert (together.masks is None) == (part is style)
                assert together.masks is None or (alone.masks is not None and torch.equal(together.masks, alone.masks))
                assert together.weights.item() == alone.weights.item() * (0.25 if part is hero else 1)
    assert len(captions) > 4  # the hero's are shuffled


def test_selected_images_stay_with_their_dataset(folders: tuple[Path, Path]) -> None:
    both = combine_datasets([share_of(folder) for folder in folders])
    some = select_items(both, [4, 0])
    assert [some.member(index).name for index in range(2)] == [both.member(4).name, both.member(0).name]
    assert [item.sha256 for item in some.items] == [both.items[4].sha256, both.items[0].sha256]
    assert some.image_path(some.items[0]).is_file() and some.image_path(some.items[1]).is_file()
    single = open_dataset(folders[0])
    assert select_items(single, [1]).member(0) is single


def test_the_datasets_and_their_settings_change_the_run(folders: tuple[Path, Path], shallow_checkpoint: Path, tmp_path: Path) -> None:
    style, hero = map(str, folders)

    def run(changes: dict[str, object]) -> str:
        return prepare_run(configuration(shallow_checkpoint, folders[0], tmp_path, changes)).folder.path.name

    more = [{"path": hero}]
    names = [
        run({}),
        run({"dataset.more": more}),
        run({"dataset.more": [{"path": hero, "repeats": 2}]}),
        run({"dataset.more": [{"path": hero, "loss_weight": 0.5}]}),
        run({"dataset.more": more, "dataset.repeats": 2}),
        run({"dataset.path": hero, "dataset.more": [{"path": style}]}),
    ]
    assert len(set(names)) == len(names)
    assert run({"dataset.more": more}) == names[1]


def test_paths_of_further_datasets_are_relative_to_the_file_as_the_first_one_is(tmp_path: Path) -> None:
    text = '[base]\ncheckpoint = "m.safetensors"\n[dataset]\npath = "a"\n[[dataset.more]]\npath = "b"\nrepeats = 3\n'
    (tmp_path / "run.toml").write_text(text, encoding="utf-8")
    section = run_config.load_config(tmp_path / "run.toml").dataset
    assert [Path(place.path) for place in (section, *section.more)] == [tmp_path / "a", tmp_path / "b"]
    assert section.more[0].repeats == 3


def test_a_section_opens_as_its_datasets_combined(folders: tuple[Path, Path]) -> None:
    section = DatasetSection(path=str(folders[1]), repeats=2, more=(MoreDataset(path=str(folders[0])),))
    opened = open_datasets(section)
    assert opened.hash == combine_datasets([share_of(folders[1], 2), share_of(folders[0])]).hash
    assert opened.trigger == "myHero girl, myStyle anime_face"


def test_the_same_dataset_twice_has_two_names(folders: tuple[Path, Path]) -> None:
    twice = combine_datasets([share_of(folders[0]), share_of(folders[0])])
    assert len({member.name for member in twice.members}) == 2


@pytest.fixture(scope="module")
def metadata(folders: tuple[Path, Path], shallow_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of a LoRA that was trained on both for a step."""
    changes = {"dataset.more": [{"path": str(folders[1]), "repeats": 2, "loss_weight": 0.5}], "training.max_steps": 1}
    trained = train_here(configuration(shallow_checkpoint, folders[0], tmp_path_factory.mktemp("run"), changes))
    plan = next(event for event in trained.told if isinstance(event, events.Plan))
    # 3 images once, 2 images twice and that twice, and the regularisation image as often as all of them; two batches of one a step
    assert plan.buckets == {"64x64": 2 * (3 + 2 * 2 * 2)}
    assert plan.steps_per_epoch == -(-plan.buckets["64x64"] // 2)
    with safe_open(str(trained.run.lora), "pt") as file:
        told: dict[str, str] = file.metadata()
    return told


def test_the_metadata_lists_every_dataset_with_its_tags(metadata: dict[str, str], folders: tuple[Path, Path]) -> None:
    style, hero = (open_dataset(folder) for folder in folders)
    assert json.loads(metadata["ss_dataset_dirs"]) == {
        style.name: {"n_repeats": 1, "img_count": 3},
        hero.name: {"n_repeats": 4, "img_count": 2},
    }
    assert json.loads(metadata["ss_tag_frequency"]) == {part.name: tags_of(part) for part in (style, hero)}
    assert metadata["ss_num_train_images"] == str(3 + 2 * 4)
    assert metadata["modelspec.trigger_phrase"] == "myStyle anime_face, myHero girl"


def test_the_metadata_of_each_dataset_has_its_own_settings(metadata: dict[str, str]) -> None:
    subsets = json.loads(metadata["ss_datasets"])[0]["subsets"]
    told = [(s["class_tokens"], s["shuffle_caption"], s["flip_aug"], s["num_repeats"], s.get("loss_weight", 1.0)) for s in subsets]
    assert told == [("myStyle anime_face", False, False, 1, 1.0), ("myHero girl", True, True, 4, 0.5)]


def tags_of(dataset: Dataset) -> dict[str, int]:
    counts: dict[str, int] = {}
    for item in dataset.items:
        for tag in [] if item.is_regularisation else item.caption.split(","):
            counts[tag.strip()] = counts.get(tag.strip(), 0) + 1
    return counts


def test_caption_settings_are_those_of_each_dataset(folders: tuple[Path, Path]) -> None:
    both = combine_datasets([share_of(folder) for folder in folders])
    assert [both.member(index).training.flip for index in range(len(both.items))] == [False] * 3 + [True] * 3
    assert both.training == TrainingHints()
