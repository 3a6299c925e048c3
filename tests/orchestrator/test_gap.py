"""What ends a run whose engine and trainer disagree."""

import math

import pytest

from aent.orchestrator.gap import check_gap
from wording import naming


@pytest.mark.parametrize(("gap", "before"), [(0.01, None), (0.01, 0.008), (0.05, 0.04), (1e-3, 0)])
def test_a_usual_gap_passes(gap, before):
    check_gap(3, gap, bound=0.05, before=before)


@pytest.mark.parametrize("gap", [0.051, math.nan, math.inf])
def test_a_gap_beyond_the_bound_names_the_field(gap):
    with pytest.raises(RuntimeError, match=naming("step 3", "rollout.max_logprob_gap", 0.05)):
        check_gap(3, gap, bound=0.05, before=None)


def test_a_jump_after_a_resume_says_so():
    with pytest.raises(RuntimeError, match=naming("resume", "step 3", 0.04, 0.01)):
        check_gap(3, 0.04, bound=0.05, before=0.01)
