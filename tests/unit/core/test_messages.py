"""Messages are strings that keep the settings, files and actions they name."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable

import pytest

from trainer.core.errors import UserError
from trainer.core.messages import Action, DatasetSetting, ExportOption, File, Message, Setting, from_json, join_messages, mentions

PARTS = (
    Setting("training.memory", "auto"),
    Setting("network.rank", 8),
    Setting("optimizer.lr", 1e-4),
    Setting("training.gradient_checkpointing", True),
    Setting("base.vae"),
    DatasetSetting("captions.remove"),
    ExportOption("dtype", "fp32"),
    ExportOption("rank"),
    File("/runs/a, b.log"),
    Action.PREPARE_DATASET,
)
EVERYTHING = Message("Parts: ", join_messages(", ", PARTS), ".")


@pytest.mark.parametrize(
    ("part", "text"),
    [
        (Setting("training.memory"), "training.memory"),
        (Setting("training.memory", "auto"), 'training.memory = "auto"'),
        (Setting("training.gradient_checkpointing", True), "training.gradient_checkpointing = true"),
        (DatasetSetting("training.wildcards"), "training.wildcards"),
        (ExportOption("dtype", "fp32"), "--dtype fp32"),
        (File("child.log"), "child.log"),
        (Action.READ_ABOUT_DATASET_SETTINGS, "docs/datasets.md"),
    ],
)
def test_a_message_is_a_string_in_the_words_of_the_command_line(part: Setting, text: str) -> None:
    message = Message("See ", part, ".")
    assert message == f"See {text}." and message.mentions == (part,)


def test_a_message_in_a_message_keeps_what_it_names() -> None:
    inner = Message("set ", Setting("network.rank", 8))
    assert Message("Failed: ", inner, " or ", Setting("network.alpha")).mentions == (Setting("network.rank", 8), Setting("network.alpha"))


def test_join_messages_puts_the_separator_between_parts_only() -> None:
    assert join_messages("; ", ["a", Setting("b.c"), "d"]) == "a; b.c; d"
    assert join_messages("; ", []) == ""


def test_each_face_words_what_a_message_names() -> None:
    assert Message("Set ", Setting("network.rank", 8), " here.").worded(lambda part: f"<{type(part).__name__}>") == "Set <Setting> here."


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_copies_keep_the_parts(copied: Callable[[Message], Message]) -> None:
    assert copied(EVERYTHING) == EVERYTHING and copied(EVERYTHING).parts == EVERYTHING.parts


def test_parts_survive_json() -> None:
    restored = from_json(json.loads(json.dumps(EVERYTHING.to_json())))
    assert restored == EVERYTHING and restored.mentions == PARTS


@pytest.mark.parametrize(
    "data",
    [
        None,
        "text",
        {"setting": "network.rank"},
        [1],
        [{}],
        [{"setting": 5}],
        [{"setting": "network.rank", "value": [1]}],
        [{"setting": "network.rank", "value": 1, "more": 2}],
        [{"action": "delete_everything"}],
        [{"file": "a", "value": 1}],
        [{"unknown": "a"}],
    ],
)
def test_from_json_rejects_other_values(data: object) -> None:
    with pytest.raises(ValueError, match="not a"):
        from_json(data)


def test_an_error_knows_what_it_is_about() -> None:
    error = UserError(Message("No room on ", File("/disk")), Message("Set ", Setting("training.memory", "auto"), "."))
    assert error.about == (File("/disk"), Setting("training.memory", "auto"))
    assert str(error) == 'No room on /disk\nSet training.memory = "auto".'
    assert UserError("plain", "text").about == mentions("plain") == ()
