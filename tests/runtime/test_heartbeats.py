"""Heartbeats: missing if a process is stopped, present if its work hangs."""

import errno
import json
import os
import re
import time

from aent.runtime import heartbeats
from aent.runtime.heartbeats import Watch
from wording import assert_names


def beat(run_dir, rank, silent_s=0.0):
    """A rank's file, as ``phases`` writes it, last renewed so long ago."""
    file = heartbeats.file_of(run_dir, rank)
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
    assert_names(told, "rank 3", "step 7", "train")
    assert re.search(r"\b3\d\d s\b", told)
    assert "phase_timeout_s" not in told
    assert "rank 0" not in told
    assert "rank 4" not in told
    patient = Watch(tmp_path, 600)
    assert [patient.look(), patient.look()] == [None, None]
    places = heartbeats.places(tmp_path)
    assert list(places) == [0, 3, 4]
    assert_names(places[3], "step 7", "train")
    assert re.search(r"\b3\d\d s\b", places[3])
    heartbeats.clear(tmp_path)
    assert heartbeats.places(tmp_path) == {}


def test_a_rank_that_says_it_is_stuck_is_named_at_once(tmp_path):
    file = beat(tmp_path, 2)
    file.write_text(json.dumps({"step": 7, "phase": "sync", "since": 0.0, "stuck_s": 1801}))
    told = Watch(tmp_path, 60).look()
    assert_names(told, "rank 2", "1801 s", "step 7", "sync", "trainer.phase_timeout_s")


def test_a_look_that_fails_says_nothing_of_the_ranks(tmp_path, monkeypatch, capsys):
    def stale(*_: object) -> float:
        raise OSError(errno.ESTALE, "Stale file handle")

    beat(tmp_path, 0, silent_s=300)
    watch = Watch(tmp_path, 60)
    with monkeypatch.context() as failing:
        failing.setattr(heartbeats, "_clock", stale)
        assert [watch.look(), watch.look()] == [None, None]
        assert heartbeats.places(tmp_path) == {}
        assert capsys.readouterr().err == ""
        watch._seen -= heartbeats.BLIND_S
        assert [watch.look(), watch.look()] == [None, None]
        assert capsys.readouterr().err.count("Stale file handle") == 1
    assert watch.look() is None
    assert_names(watch.look(), "rank 0")


def test_an_empty_file_is_a_sign_of_life(tmp_path):
    file = beat(tmp_path, 0)
    file.write_text("")
    watch = Watch(tmp_path, 60)
    assert [watch.look(), watch.look()] == [None, None]
    os.utime(file, (time.time() - 300,) * 2)
    assert watch.look() is None
    assert_names(watch.look(), "rank 0")
