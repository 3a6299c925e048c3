"""The first error of the first failing rank, found in the errors of all ranks."""

import contextlib

import pytest

from aent.runtime import failures
from wording import assert_names


def fail(run_dir, rank, error):
    with pytest.raises(type(error)), failures.recorded(run_dir, rank):
        raise error


class RankZeroFailed(RuntimeError):
    pass


def test_the_first_that_failed_by_itself_is_told(tmp_path):
    assert failures.first(tmp_path) is None
    fail(tmp_path, 3, RankZeroFailed("rank 0 failed"))
    fail(tmp_path, 1, ValueError("NaN in layer 7"))
    fail(tmp_path, 2, ConnectionError("closed by peer"))
    told = failures.first(tmp_path)
    assert_names(told, "rank 1", 2)
    assert told.endswith("ValueError: NaN in layer 7")
    failures.clear(tmp_path)
    assert failures.first(tmp_path) is None


def test_a_password_in_a_reason_is_hidden(tmp_path):
    fail(tmp_path, 0, OSError("http://me:hunter2@tracker:5000 is away"))
    assert "hunter2" not in (tmp_path / "failures" / "rank0.json").read_text()
    assert "me:***@tracker" in failures.first(tmp_path)


def test_a_follower_is_told_where_nobody_else_has_written(tmp_path):
    fail(tmp_path, 3, RankZeroFailed("rank 0 failed (sampling): out of memory"))
    assert "out of memory" in failures.first(tmp_path)


def test_the_reason_has_its_room_before_the_disk_is_full(tmp_path, capsys):
    place = tmp_path / "failures" / "rank0.partial"

    def measured_then_failing() -> tuple[int, int]:
        with contextlib.suppress(ValueError), failures.recorded(tmp_path, 0):
            taken = place.stat()
            raise ValueError("x" * 10**6)
        return taken.st_size, taken.st_ino

    room, inode = measured_then_failing()
    assert room == failures.ROOM
    file = tmp_path / "failures" / "rank0.json"
    assert file.stat().st_ino == inode  # written where the room was taken
    assert file.stat().st_size == failures.ROOM
    assert [p.name for p in file.parent.iterdir()] == ["rank0.json"]
    assert_names(failures.first(tmp_path), "rank 0")
    file.write_text('{"rank": 0, "ho')  # torn
    assert failures.first(tmp_path) is None
    with failures.recorded(tmp_path, 1):
        pass
    assert not place.with_name("rank1.partial").exists()


def test_a_rank_that_cannot_write_its_reason_still_fails_of_it(tmp_path, capsys):
    (tmp_path / "failures").write_text("a file is in the way")
    fail(tmp_path, 0, ValueError("NaN in layer 7"))
    assert_names(capsys.readouterr().err, tmp_path / "failures")
