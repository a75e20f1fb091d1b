"""The pace behind the time left: a mean that one slow step does not move much."""

from __future__ import annotations

import pytest

from trainer.training.monitoring.step_log import Pace


def test_the_first_step_counts_only_until_there_is_another() -> None:
    pace = Pace()
    assert pace.add(0.1) == pytest.approx(10.0)  # compiles, warms up
    assert pace.add(2.0) == pytest.approx(0.5)


def test_the_pace_is_the_mean_of_the_steps_so_far() -> None:
    pace = Pace()
    assert [pace.add(1 / seconds) for seconds in (9.0, 1.0, 3.0, 2.0)] == pytest.approx([9.0, 1.0, 2.0, 2.0])


def test_one_slow_step_hardly_moves_the_pace_and_a_lasting_change_arrives() -> None:
    pace = Pace()
    for _ in range(40):
        pace.add(1.0)
    assert pace.add(0.1) == pytest.approx(1.45)  # ten seconds once: 0.95 + 0.05 * 10
    for _ in range(100):
        last = pace.add(0.5)
    assert last == pytest.approx(2.0, abs=0.01)
