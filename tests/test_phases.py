"""Where a rank says it is."""

from __future__ import annotations

import json
import time

from aent.phases import Phases


def test_heartbeat_says_step_and_phase_from_the_phase_begin(tmp_path):
    file = tmp_path / "rank0.json"
    phases = Phases(file, step=3)
    before = time.time()
    with phases("train"):
        said = json.loads(file.read_text())
    assert (said["step"], said["phase"]) == (3, "train")
    assert before <= said["since"] <= time.time()
    assert list(phases.take()) == ["train"]
    assert phases.take() == {}
    assert [p.name for p in tmp_path.iterdir()] == ["rank0.json"]
