"""The first error of the first failing rank, out of what each has written."""

import pytest

from aent import failures


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
    assert "rank 1 on" in told
    assert "failed first (2 more followed)" in told
    assert told.endswith("ValueError: NaN in layer 7")
    failures.clear(tmp_path)
    assert failures.first(tmp_path) is None


def test_a_follower_is_told_where_nobody_else_has_written(tmp_path):
    fail(tmp_path, 3, RankZeroFailed("rank 0 failed (sampling): out of memory"))
    assert "out of memory" in failures.first(tmp_path)
