"""Signs of life: renewed by a thread, missed when a process is stopped."""

import json
import os
import time

from aent.runtime import heartbeats
from aent.runtime.heartbeats import Watch


def beat(run_dir, rank, silent_s=0.0):
    """A rank's file, as ``phases`` writes it, last renewed so long ago."""
    file = run_dir / "heartbeats" / f"rank{rank}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"step": 7, "phase": "train", "since": time.time() - 90}))
    os.utime(file, (time.time() - silent_s,) * 2)
    return file


def test_the_silent_rank_is_named_with_its_step_and_phase(tmp_path):
    watch = Watch(tmp_path, 60)
    assert watch.look() is None
    beat(tmp_path, 0)
    beat(tmp_path, 3, silent_s=300)
    beat(tmp_path, 4, silent_s=300)
    assert watch.look() is None  # the machine may have been suspended, and they with it
    beat(tmp_path, 4)
    told = watch.look()
    assert told.startswith("rank 3 shows no sign of life for 300 s (step 7, phase train)")
    assert "rank 0" not in told
    assert "rank 4" not in told
    patient = Watch(tmp_path, 600)
    assert [patient.look(), patient.look()] == [None, None]
    places = heartbeats.places(tmp_path)
    assert list(places) == [0, 3, 4]
    assert places[3].startswith("step 7, train for 90 s, no sign of life for 300 s")
    heartbeats.clear(tmp_path)
    assert heartbeats.places(tmp_path) == {}


def test_a_rank_that_waits_long_gives_signs_and_leaves_none_after_a_good_end(tmp_path, monkeypatch):
    monkeypatch.setattr(heartbeats, "BEAT_S", 0.01)
    with heartbeats.beating(tmp_path, 1):  # before the rank has written anything, too
        file = beat(tmp_path, 1, silent_s=300)
        deadline = time.monotonic() + 60
        while time.time() - file.stat().st_mtime > 200:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert not file.exists()


def test_the_file_of_a_rank_that_fails_stays(tmp_path):
    file = beat(tmp_path, 1)
    try:
        with heartbeats.beating(tmp_path, 1):
            raise ValueError
    except ValueError:
        pass
    assert file.exists()
