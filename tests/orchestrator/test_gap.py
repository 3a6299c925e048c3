"""A train-inference mismatch that ends a run."""

import math

import pytest
import torch

from aent.orchestrator.gap import Gaps, check_gap
from data.test_batch import make_batch
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


def test_tokens_of_older_weights_have_a_gap_of_their_own():
    batch = make_batch()
    newest = int(batch.versions.max())
    same = batch.versions == newest
    ours = batch.behaviour_logprobs + torch.where(same, 0.25, 1.0)
    gaps = Gaps.of(batch, ours, newest)
    assert gaps.same == pytest.approx(0.25)
    later = Gaps.of(batch, batch.behaviour_logprobs + 0.5, newest + 1)
    assert (later.same, later.stale) == (None, pytest.approx(0.5))
    check_gap(3, later.same, bound=0.05, before=0.01)  # nothing to compare
