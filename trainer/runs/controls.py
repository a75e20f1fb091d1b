"""What a parent asks its training child to do: one JSON object per line on the child's standard input, whose end asks it to stop.

The child does it between two steps. Nothing of it changes the weights that the run ends with.
"""

from __future__ import annotations

import json
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from ..config.sample_prompts import read_prompt

Action = Literal["save_now", "sample_now", "stop_after_epoch", "pause", "resume", "edit_prompts"]
ACTIONS: tuple[str, ...] = get_args(Action)
_MOST_PROMPTS, _LONGEST_PROMPT = 50, 4000  # so that a line fits into a pipe that nobody reads yet


class Control(BaseModel):
    """One request.

    ``save_now`` writes a state and a LoRA, ``sample_now`` makes validation images, ``stop_after_epoch`` stops at the end of the epoch,
    ``pause`` waits after the step until ``resume``, and ``edit_prompts`` replaces the validation prompts from the next images on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    action: Action
    prompts: tuple[str, ...] = ()

    @field_validator("prompts")
    @classmethod
    def _are_prompts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(value) > _MOST_PROMPTS:
            raise ValueError(f"at most {_MOST_PROMPTS} prompts")
        for prompt in value:
            if len(prompt) > _LONGEST_PROMPT:
                raise ValueError(f"a prompt has at most {_LONGEST_PROMPT} characters")
            read_prompt(prompt)
        return value

    @model_validator(mode="after")
    def _prompts_only_to_edit_them(self) -> Control:
        if bool(self.prompts) != (self.action == "edit_prompts"):
            raise ValueError("edit_prompts needs prompts, and nothing else has them")
        return self

    def to_line(self) -> bytes:
        """The request as a line with its end, in ASCII."""
        return json.dumps(self.model_dump(mode="json", exclude_defaults=True)).encode() + b"\n"


def read_control(line: bytes) -> Control | None:
    """The request on a line; None if it holds none, such as one of a newer parent."""
    try:
        return Control.model_validate_json(line)
    except ValidationError:
        return None
