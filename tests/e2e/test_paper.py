"""One of the paper's recipes end to end, in its small form: questions from a file, math-verify."""

from __future__ import annotations

import json

import pytest

from aent.recipe.load import load
from e2e.jobs import Job

pytestmark = pytest.mark.slow


def test_the_first_settings_smoke_recipe_trains_outside_a_checkout(shared_engine, tmp_path):
    (tmp_path / "data").mkdir()
    rows = [{"question": "1 + 1?", "answer": "2"}, {"question": "2 + 2?", "answer": "4"}]
    (tmp_path / "data" / "amc.jsonl").write_text("\n".join(map(json.dumps, rows)))
    job = Job(
        tmp_path, "evaluation.suites=[amc]", "rollout.max_response_tokens=16", *shared_engine,
        recipe="recipes/paper/math-smoke.yaml", cwd=tmp_path,
    )  # fmt: skip
    assert job.wait() == 0, job.text
    for words in ("step 2/2", "held-out accuracy", "amc after 0 steps", "amc after 2 steps"):
        assert words in job.text
    resolved = load(job.run_dir / "recipe.yaml")  # whole: it needs no base
    assert resolved.controller.low == 0.15
    samples = (job.run_dir / "samples" / "step_000001.json").read_text()
    assert "put your final answer within" in samples
    assert list((job.run_dir / "policy").glob("*.safetensors"))
