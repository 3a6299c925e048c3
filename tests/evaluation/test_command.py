import os

import psutil
import pytest

from aent import model_source
from aent.evaluation import command
from aent.recipe.schema import ModelSection, Recipe


@pytest.mark.slow
def test_tiny_model_is_evaluated_on_a_real_engine(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("AENT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    folder = model_source.resolve(ModelSection(bundled="tiny-qwen2"))
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "policy").symlink_to(folder)
    recipe = Recipe.model_validate(
        {
            "name": "eval",
            "model": {"bundled": "smollm2-135m-instruct"},  # not used: the run folder's policy is
            "task": {
                "config": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
                "heldout": 8,
                "size": 8,
                "verifier": "last_number",
            },
            "rollout": {"max_response_tokens": 12, "engine": {"kv_cache_gib": 0.1}},
            "controller": {"initial": 0.0},
        }
    )
    me = psutil.Process(os.getpid())
    before = set(me.children(recursive=True))  # other tests' helpers, as multiprocessing's tracker
    result = command.evaluate_folder(run_dir, recipe)
    assert len(result.answers) == 8
    assert len({a.question.prompt for a in result.answers}) == 8
    for answer in result.answers:
        # a token is a character, or a special token that is not shown, as the <eos> of the end
        assert len(answer.response) <= answer.length <= 12
        assert answer.length == 12 if answer.truncated else answer.length > len(answer.response)
        assert answer.error == ""
    # greedy answers differ with their prompts: the model is not uniform and does read
    assert len({a.response for a in result.answers}) > 1
    printed = command.describe(result)
    assert f"{result.accuracy:.3f}" in printed
    left = [p for p in me.children(recursive=True) if p.is_running() and p not in before]
    assert [p.cmdline() for p in left if p.status() != psutil.STATUS_ZOMBIE] == []
