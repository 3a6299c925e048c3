"""The data kept of a response for its trace, and the choice of responses."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from aent.tracking.traced import TracedStep, spread
from tracking.examples import traced, traced_step


def test_a_step_comes_back_as_it_was_written() -> None:
    step = traced_step(3)
    assert TracedStep.from_json(step.to_json()) == step


def test_numbers_that_are_not_finite_are_left_out() -> None:
    strange = dataclasses.replace(traced(1, 0), entropy=math.nan, reward=-math.inf)
    text = TracedStep(1, 5, (strange,)).to_json()
    json.loads(text, parse_constant=pytest.fail)
    (response,) = TracedStep.from_json(text).responses
    assert (response.entropy, response.reward) == (None, None)


def test_as_many_prompts_as_there_are_come_first() -> None:
    groups = [0, 0, 0, 1, 2, 2, 2, 2]
    assert spread(groups, 0) == []
    assert spread(groups, 2) == [0, 3]
    assert spread(groups, 4) == [0, 1, 3, 4]
    assert spread(groups, 5) == [0, 1, 3, 4, 5]
    assert spread(groups, 100) == list(range(8))
