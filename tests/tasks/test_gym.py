"""A data set of reasoning-gym that is imported by itself is the one that the package has."""

from __future__ import annotations

import subprocess
import sys

import pytest

# in a process of its own: another test may have imported the package here
PROGRAM = """
import sys
from aent.tasks.gym import gym

names = ["chain_sum", "leg_counting", "spell_backward"]
alone = [gym(name) for name in names]
assert [set(each.datasets) - {"composite"} for each in alone] == [{name} for name in names]
assert not {"sympy", "matplotlib", "reasoning_gym"} & sys.modules.keys()

import reasoning_gym  # as a grader of one's own may: it gets the whole package

for name, each in zip(names, alone):
    ours, theirs = (
        create(name, seed=3, size=5) for create in (each.create, reasoning_gym.create_dataset)
    )
    assert list(ours) == list(theirs), name
    for entry in theirs:
        for answer in (entry["answer"], "no answer"):
            assert ours.score_answer(answer, entry) == theirs.score_answer(answer, entry), name
assert alone[0].extract_answer("<answer> 7</answer>") == "7"
assert alone[0].keys("chain_sum") > {"min_terms", "seed", "size"}

for other in ("composite", "no_such_data_set"):
    assert set(names) < gym(other).datasets.keys()
"""


@pytest.mark.slow
def test_a_data_set_by_itself_is_that_of_the_package() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
