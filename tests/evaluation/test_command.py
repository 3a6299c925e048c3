import json

import psutil
import pytest
from typer.testing import CliRunner

from aent.cli.main import app
from aent.evaluation import command, suites
from aent.evaluation.command import Evaluation
from aent.inference import engine, registry
from aent.models import model_source
from aent.recipe.load import dump
from aent.recipe.schema import ModelSection, Recipe
from aent.recipe.sources import SourceSection
from processes import command_line, runs
from wording import assert_names

RECIPE = Recipe.model_validate(
    {
        "name": "eval",
        "model": {"bundled": "smollm2-135m-instruct"},  # not used: the folder's policy is
        "task": {
            "config": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
            "heldout": 8,
            "size": 8,
            "graders": [{"kind": "last_number"}],
        },
        "rollout": {"max_response_tokens": 12, "engine": {"kv_cache_gib": 0.1}},
        "controller": {"initial": 0.0},
    }
)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AENT_CACHE", str(tmp_path_factory.mktemp("cache")))
        return model_source.resolve(ModelSection(bundled="tiny-qwen2"))


def started_here():
    alive = filter(runs, psutil.Process().children(recursive=True))
    return {p for p in alive if "resource_tracker" not in " ".join(command_line(p))}


@pytest.mark.slow
def test_a_runs_held_out_questions_beside_its_mlflow_run(policy, tmp_path, monkeypatch, capsys):
    from mlflow import MlflowClient

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "policy").symlink_to(policy)
    (run_dir / "recipe.yaml").write_text(dump(RECIPE))
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.create_experiment("x", (tmp_path / "artifacts").as_uri())
    parent = client.create_run(experiment).info.run_id
    (run_dir / "mlflow_run_id").write_text(parent + "\n")
    asked = Evaluation(str(run_dir), suites.of_recipe(RECIPE), RECIPE)
    before = started_here()
    assert command.run(asked) == 0
    assert started_here() <= before  # some of other tests may have ended meanwhile

    (folder,) = (run_dir / "evaluation").iterdir()
    rows = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    assert sorted(r["question"] for r in rows) == list(range(8))
    for row in rows:
        # a token is a character, or a special token that is not shown, as the <eos> of the end
        assert len(row["response"]) <= row["length"] <= 12
        assert row["error"] == ""
    # greedy answers differ with their prompts: the model is not uniform and does read
    assert len({r["response"] for r in rows}) > 1
    summary = json.loads((folder / "summary.json").read_text())
    assert f"pass@1                {summary['pass_at_k']['1']:.3f}" in capsys.readouterr().out

    # once more: nothing is asked, nothing is logged twice
    monkeypatch.setattr(engine, "start", None)
    assert command.run(asked) == 0
    (child,) = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    assert child.info.status == "FINISHED"
    assert child.data.metrics["suite/heldout/mean_reward"] == summary["mean_reward"]
    assert {a.path for a in client.list_artifacts(child.info.run_id)} == {
        "answers.jsonl",
        "settings.json",
        "summary.json",
    }


@pytest.mark.slow
def test_a_suite_on_a_running_engine_goes_on_where_it_stopped(policy, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    questions = [{"question": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(3)]
    (tmp_path / "amc.jsonl").write_text("\n".join(map(json.dumps, questions)))
    suite = suites.find("amc", ["samples=2", "max_tokens=16", "instruction=null"])
    settings = engine.EngineSettings(
        model_path=policy,
        served_name="tiny",
        log_path=tmp_path / "engine.log",
        max_model_len=256,
        kv_cache_gib=0.05,
        cpu_threads=1,
        token_path=registry.make_token(tmp_path),
    )
    started = engine.start(settings)
    try:
        started.wait_ready(900)
        asked = Evaluation(
            started.url,
            suite,
            RECIPE,
            out=tmp_path / "out",
            data=tmp_path,
            token_file=tmp_path / "token",
        )
        summary, answers = command.evaluate(asked)
        assert (summary.questions, summary.samples, len(answers.rows)) == (3, 2, 6)
        lines = answers.path.read_text().splitlines(keepends=True)
        answers.path.write_text("".join(lines[:4]) + lines[4][:20])
        _, again = command.evaluate(asked)
        assert again.path.read_text().startswith("".join(lines[:4]))
        assert again.rows.keys() == answers.rows.keys()
        # the engine obeys top-k: with the likeliest token only, all samples are alike
        likeliest = suites.changed(suite, ["top_k=1"])
        other = Evaluation(
            started.url, likeliest, RECIPE, tmp_path / "top", tmp_path, None, tmp_path / "token"
        )
        _, alike = command.evaluate(other)
        for question in range(3):
            assert alike.rows[question, 0].response == alike.rows[question, 1].response
        # 300 more tokens than the engine has room for
        long = Evaluation(
            started.url,
            suites.changed(suite, ["max_tokens=300"]),
            RECIPE,
            tmp_path / "long",
            tmp_path,
            policy,
            tmp_path / "token",
        )
        with pytest.raises(ValueError, match=r"\b256\b.*max_tokens=\d"):
            command.evaluate(long)
    finally:
        started.stop()


def test_a_folder_that_is_no_model_is_one_clear_sentence(tmp_path, capsys):
    assert command.run(Evaluation(str(tmp_path), suites.of_recipe(RECIPE), RECIPE)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert_names(line, tmp_path, "config.json")


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ([], "recipe.yaml --suite --recipe"),
        (["--suite", "amcs"], "'amcs' amc"),
        (["--suite", "amc", "samples=x"], 'amc samples "x"'),
        (["--suite", "amc", "sample=2"], "sample=2"),
        (["--suite", "amc"], "amc data/amc.jsonl evaluation/data/amc23/test.jsonl"),
    ],
)
def test_what_cannot_be_evaluated_is_one_sentence(policy, tmp_path, monkeypatch, arguments, names):
    monkeypatch.chdir(tmp_path)
    options = [a for a in arguments if "=" not in a]
    overrides = [a for a in arguments if "=" in a]
    done = CliRunner().invoke(app, ["eval", str(policy), *overrides, *options])
    assert done.exit_code == 2
    assert len(done.output.strip().splitlines()) == 1
    assert_names(done.output, *names.split())
    assert list(tmp_path.iterdir()) == []


def test_an_address_with_a_password_is_refused_and_does_not_show_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    address = "http://me:hunter2@127.0.0.1:9"
    done = CliRunner().invoke(app, ["eval", address, "--suite", "amc"])
    assert done.exit_code == 2
    assert_names(done.output, "--token-file", "127.0.0.1")
    assert "hunter2" not in done.output
    assert list(tmp_path.iterdir()) == []


def test_a_response_that_does_not_fit_is_refused_before_an_engine_starts(policy, tmp_path, capsys):
    (tmp_path / "amc.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}')
    asked = Evaluation(str(policy), suites.find("amc"), RECIPE, out=tmp_path / "out", data=tmp_path)
    assert command.run(asked) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert_names(error, "max_tokens=3072", 1024)
    assert error.count("max_tokens=") == 2  # and one that would do


@pytest.mark.parametrize("field", ["instruction", "system_prompt"])
def test_held_out_questions_are_asked_with_the_words_of_this_evaluation(
    policy, tmp_path, monkeypatch, capsys, field
):
    """A token of this model is a character: 2,000 do not fit."""
    monkeypatch.setattr(engine, "start", None)
    source = {"name": "chain_sum", "kind": "reasoning_gym", "heldout": 2}
    changes = {"sources": (SourceSection.model_validate(source),), "system_prompt": "Add."}
    recipe = RECIPE.model_copy(update={"task": RECIPE.task.model_copy(update=changes)})
    suite = suites.of_recipe(recipe, [f"{field}={'x' * 2000}"])
    assert command.run(Evaluation(str(policy), suite, recipe, out=tmp_path / "out")) == 2
    assert_names(capsys.readouterr().err.splitlines()[-1], "max_tokens=12", 1024)
