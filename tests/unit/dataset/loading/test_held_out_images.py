"""Which images are held out for validation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.training_helpers import make_dataset
from trainer.config.sections.validation import ValidationSection
from trainer.core.errors import UserError
from trainer.dataset import Dataset, open_dataset
from trainer.dataset.loading.open import hold_out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"), 6)


def held(dataset: Dataset, **section: Any) -> set[str]:
    return {item.sha256 for item in hold_out(dataset, ValidationSection(**section))[1].items}


def test_held_out_images_are_not_trained_on_and_chosen_by_content_alone(folder: Path) -> None:
    dataset = open_dataset(folder)
    training, out = hold_out(dataset, ValidationSection(share=0.34))
    assert len(out.items) == 2 == round(0.34 * 6)
    assert {item.sha256 for item in training.items} == {item.sha256 for item in dataset.items} - {item.sha256 for item in out.items}
    changed = [replace(item, caption="other", file=f"x{index}.png") for index, item in enumerate(reversed(dataset.items))]
    assert held(replace(dataset, items=changed), share=0.34) == {item.sha256 for item in out.items}
    assert held(dataset, share=0.5) > held(dataset, share=0.34) > held(dataset, share=0.01) != set()
    assert len({frozenset(held(dataset, share=0.34, seed=seed)) for seed in range(8)}) > 1
    assert len(held(dataset, share=0.5, max_pictures=1)) == 1
    assert hold_out(dataset, ValidationSection())[0] is dataset


def test_copies_are_held_out_together_and_regularisation_images_never(folder: Path) -> None:
    dataset = open_dataset(folder)
    chosen = next(index for index, item in enumerate(dataset.items) if item.sha256 in held(dataset, share=0.01))
    twice = replace(dataset, items=[*dataset.items, replace(dataset.items[chosen], file="copy.png")])
    training, out = hold_out(twice, ValidationSection(share=0.01))
    assert (len(training.items), len(out.items)) == (5, 1)
    prior = replace(dataset, items=[replace(item, is_regularisation=index != 0) for index, item in enumerate(dataset.items)])
    with pytest.raises(UserError, match="none can be held out"):
        hold_out(prior, ValidationSection(share=0.1))
