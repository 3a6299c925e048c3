"""The recorded runs of ``golden/``: bit for bit on the processor they were made on, elsewhere to
rounding."""

from __future__ import annotations

import json
import warnings

import pytest

from e2e.golden.replay import CASES, EXPECTED, Case, processor, replay

RENAMED: dict[str, str] = {}  # metrics of the recordings, and what they are called now
ROUNDING = 1e-3  # of sums in another order, after a few optimizer steps


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_recorded_run_gives_the_same_numbers(name, shared_engine, tmp_path):
    expected = json.loads(EXPECTED.read_text())
    want, got = expected["cases"][name], replay(CASES[name], tmp_path, shared_engine)
    made_here = expected["processor"] == processor()
    series = {RENAMED.get(key, key): values for key, values in want["series"].items()}
    assert series.keys() <= got["series"].keys()
    got["series"] = {key: got["series"][key] for key in series}
    if made_here:
        assert got["series"] == series
        assert got["weights"] == want["weights"]
    else:
        warnings.warn(f"compared to rounding: recorded on {expected['processor']}", stacklevel=1)
        for key, values in series.items():
            assert got["series"][key] == pytest.approx(values, rel=ROUNDING, abs=1e-5), key
        assert got["weights"]["norms"] == pytest.approx(want["weights"]["norms"], rel=ROUNDING)


SHARING = Case(
    "plain",
    ("trainer.tensor_parallel=1", "trainer.pipeline_parallel=1", "trainer.context_parallel=2"),
)
SAMPLED = "gradient/"  # of some tokens of each rank


@pytest.mark.slow
@pytest.mark.full
def test_context_parallel_ranks_go_on_with_a_recorded_run(shared_engine, tmp_path):
    """From a checkpoint of ranks that share layers, to the numbers of those."""
    want = json.loads(EXPECTED.read_text())["cases"]["pipeline parallel"]
    got = replay(SHARING, tmp_path, shared_engine)
    told = {RENAMED.get(key, key): values for key, values in want["series"].items()}
    for key, values in told.items():
        if not key.startswith(SAMPLED):
            assert got["series"][key] == pytest.approx(values, rel=ROUNDING, abs=1e-5), key
    assert got["weights"]["norms"] == pytest.approx(want["weights"]["norms"], rel=ROUNDING)
