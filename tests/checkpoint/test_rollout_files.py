"""Rollouts on disk come back exactly, or not at all."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from aent.checkpoint import rollout_files
from aent.data.rollout import Grade, Rollout, Verdict
from aent.data.sample import Sample


def rollout(seed: int = 0) -> Rollout:
    r = random.Random(seed)
    samples = [
        Sample(
            prompt_ids=[r.randrange(50000) for _ in range(p)],
            response_ids=[r.randrange(50000) for _ in range(n)],
            logprobs=[-r.expovariate(1.0) for _ in range(n)],
            versions=[seed] * n,
            finish_reason=r.choice(["stop", "length"]),
            group=i // 2,
            item=7 * i,
            reward=r.random(),
            replaced=i,
            rerolled=i == 2,
            source="ab"[i % 2],
        )
        for i, (p, n) in enumerate([(3, 5), (3, 1), (9, 2)])
    ]
    grades = (Grade("a", 0.5, {"short": 0.25}), Grade("b", None, seconds=2.0))
    verdicts = [Verdict(0.25, "", grades), Verdict(0.0, "timeout"), Verdict(1.0)]
    prompts, responses = ["1 + 1?", "1 + 1?", "é\n😀"], ["2", "", "x" * 40]
    return Rollout(samples, prompts, responses, verdicts, 1 / 3, {0: (1, 2), 21: (0, 0)})


def test_what_was_written_is_read_to_the_last_bit(tmp_path):
    rollout_files.write(tmp_path, 3, rollout())
    assert rollout_files.read(tmp_path, 3) == rollout()
    assert rollout_files.read(tmp_path, 4) is None
    assert [p.name for p in (tmp_path / "rollouts").iterdir()] == ["step_000003.npz"]


def test_a_file_of_before_temperatures_were_recorded_is_read(tmp_path):
    before = replace(rollout(), temperature=None, anew=True)
    rollout_files.write(tmp_path, 3, before)
    assert rollout_files.read(tmp_path, 3) == before


@pytest.mark.parametrize("harm", ["cut", "flip", "empty"])
def test_a_damaged_file_is_named_and_left_out(tmp_path, capsys, harm):
    rollout_files.write(tmp_path, 0, rollout())
    path = rollout_files.path_of(tmp_path, 0)
    data = bytearray(path.read_bytes())
    if harm == "flip":
        data[data.index(b'"prompt"')] ^= 1  # content: a header's unused bytes have no checksum
    path.write_bytes({"cut": data[:-100], "flip": data, "empty": b""}[harm])
    assert rollout_files.read(tmp_path, 0) is None
    assert str(path) in capsys.readouterr().err


def test_the_newest_step_that_was_begun_is_known(tmp_path):
    assert rollout_files.begun(tmp_path) is None
    assert [rollout_files.begin(tmp_path, step) for step in (3, 4, 4, 3, 5)] == [
        False, False, True, True, False,
    ]  # fmt: skip
    assert rollout_files.begun(tmp_path) == 5
    rollout_files.forget(tmp_path, before=9)
    assert rollout_files.recorded(tmp_path) == {}


def test_recorded_steps_end_where_one_is_missing(tmp_path):
    for step in (2, 3, 4, 6):
        rollout_files.write(tmp_path, step, rollout(step))
    assert rollout_files.recorded_until(tmp_path, 2) == 5
    assert rollout_files.recorded_until(tmp_path, 5) == 5
    rollout_files.forget(tmp_path, before=3, from_step=6)
    assert rollout_files.recorded_until(tmp_path, 2) == 2
    assert rollout_files.recorded_until(tmp_path, 3) == 5
    assert rollout_files.recorded_until(tmp_path, 6) == 6
