import errno
import os
import stat

import pytest

from aent.runtime import files
from aent.runtime.files import read_again, write_whole


def test_read_again_gives_up_after_some_attempts(monkeypatch):
    monkeypatch.setattr(files, "PAUSE_S", 0.0)
    calls = []

    def read():
        calls.append(1)
        if len(calls) < 3:
            raise OSError(errno.ESTALE, "Stale file handle")
        return "content"

    assert read_again(read) == "content"
    with pytest.raises(OSError, match="always"):
        read_again(lambda: (_ for _ in ()).throw(OSError(errno.EIO, "always")))


def test_write_whole_replaces_or_leaves_alone(tmp_path, monkeypatch):
    path = tmp_path / "recipe.yaml"
    write_whole(path, "one", mode=0o600)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, "two")
    assert path.read_text() == "one"
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.yaml"]
