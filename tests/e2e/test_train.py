"""A whole run with all real parts, from prompt to new weights: one run, inspected in full."""

from __future__ import annotations

import csv
import itertools
import json
import subprocess
import sys

import pytest
import torch

from aent.analysis import timeline
from aent.estimate.memory import estimate
from aent.recipe.load import load
from analysis.test_timeline import assert_valid
from e2e.jobs import PATIENCE_S, Job

pytestmark = pytest.mark.slow

STEPS = 10
STEP_METRICS = {
    "reward/mean", "reward/groups_replaced", "reward/penalty",
    "reward/judged_mean", "reward/rerolled",
    "response/length_mean", "response/truncated_share", "policy/masked_share",
    "policy/entropy", "policy/clamped_entropy", "policy/kept_mass", "policy/logprob_gap",
    "policy/kl_behaviour", "policy/clip_fraction", "update/grad_norm",
    "controller/coefficient", "controller/next_coefficient", "controller/low", "controller/high",
    "controller/error", "controller/move", "controller/at_bound", "controller/steps_at_bound",
    "gradient/policy", "gradient/entropy", "gradient/bonus_share", "gradient/product",
    "gradient/neutral_coefficient", "gradient/predicted_policy", "gradient/predicted_bonus",
    "time/sample", "time/train", "time/sync", "time/trainer_idle", "time/engines_busy",
    "tokens/per_s", "time/trainer_idle_share", "time/engines_idle_share", "compute/tflop",
    "compute/tflop_per_s", "compute/bubble_share", "compute/mfu", "compute/train_mfu",
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    job = Job(folder, f"steps={STEPS}", "profile.measure_peak=true")
    assert job.wait() == 0, job.text
    return job


@pytest.fixture(scope="module")
def recorded(finished):
    """(MlflowClient, run) of the finished job."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{finished.run_dir.parent / 'mlflow.db'}")
    run_id = (finished.run_dir / "mlflow_run_id").read_text().strip()
    return client, client.get_run(run_id)


def series(recorded, key: str) -> list[float]:
    client, run = recorded
    history = client.get_metric_history(run.info.run_id, key)
    return [point.value for point in sorted(history, key=lambda point: point.step)]


def test_output_shows_steps_summary_and_where_things_lie(finished):
    for step in range(1, STEPS + 1):
        assert f"step {step:2d}/{STEPS}" in finished.text
    assert "held-out accuracy" in finished.text
    assert str(finished.run_dir / "policy") in finished.text


def test_mlflow_holds_every_metric_of_every_step(recorded):
    assert recorded[1].info.status == "FINISHED"
    for key in STEP_METRICS:
        assert len(series(recorded, key)) == STEPS, key
    assert len(series(recorded, "evaluation/accuracy")) == 2
    assert min(series(recorded, "time/engines_busy")) > 0
    assert recorded[1].data.params["trainer.tensor_parallel"] == "2"


def test_shares_of_time_and_peak_are_shares(recorded):
    for key in ("time/trainer_idle_share", "time/engines_idle_share", "compute/bubble_share",
                "compute/mfu", "compute/train_mfu"):  # fmt: skip
        assert all(0 < share < 1 for share in series(recorded, key)), key


def test_the_timeline_has_every_process_and_phase(finished):
    found = timeline.trace(finished.run_dir)
    assert_valid(found)
    events = found["traceEvents"]
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    drawn = [(names[e["pid"]], e["name"], e["args"]) for e in events if e["ph"] == "X"]
    for rank in range(4):
        for phase in ("sample", "score", "train", "sync"):
            steps = [a["step"] for who, what, a in drawn if (who, what) == (f"rank {rank}", phase)]
            assert set(steps) == set(range(STEPS))
        assert (f"rank {rank}", "start", {}) in drawn
        waits = [what for who, what, _ in drawn if who == f"rank {rank}"]
        assert any(what.startswith("waits: sampling") for what in waits) == (rank > 0)
    for part in ("pause", "write", "load", "verify", "resume"):
        assert sum(who == "rank 0" and what == part for who, what, _ in drawn) >= STEPS
    (engine,) = {name for name in names.values() if name.startswith("engine http")}
    assert sum(who == engine and what == "request" for who, what, _ in drawn) >= 16 * STEPS
    assert sum((who, what) == ("judges", "last_number") for who, what, _ in drawn) >= 16 * STEPS


def test_the_report_names_the_bottleneck(finished):
    argv = [sys.executable, "-m", "aent", "report", str(finished.run_dir)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("The bottleneck is ")


def test_memory_is_within_15_percent_of_the_estimate(finished, recorded):
    expected = estimate(load(finished.run_dir / "recipe.yaml")).per_rank
    for rank, memory in enumerate(expected):
        (peak,) = series(recorded, f"memory/rank_{rank}_peak_gib")
        assert memory.total / 2**30 == pytest.approx(peak, rel=0.15)


def test_mlflow_holds_recipe_samples_and_figure(recorded):
    client, run = recorded
    names = {a.path for a in client.list_artifacts(run.info.run_id)}
    assert {"recipe.yaml", "figure.png", "samples"} <= names
    assert len(client.list_artifacts(run.info.run_id, "samples")) == STEPS


def test_mlflow_has_traces_data_sets_and_the_policy(finished, recorded):
    """Four responses of each step, of different prompts, as the tables have them."""
    client, run = recorded
    place, run_id = [run.info.experiment_id], run.info.run_id
    chosen = f"metadata.`mlflow.sourceRun` = '{run_id}'"
    traces = client.search_traces(locations=place, filter_string=chosen, max_results=500)
    assert len(traces) == 4 * STEPS
    for step in range(STEPS):
        table = json.loads((finished.run_dir / f"samples/step_{step:06d}.json").read_text())
        rows = [dict(zip(table["columns"], row)) for row in table["data"]]
        of_step = [t for t in traces if t.info.trace_metadata["aent.step"] == str(step)]
        assert len({t.info.trace_metadata["aent.group"] for t in of_step}) == 4
        for trace in of_step:
            row = rows[int(trace.info.trace_metadata["aent.sample"])]
            root, grading = trace.data.spans
            for name, column in (("entropy", "entropy"), ("length", "tokens"),
                                 ("weight_version", "version"), ("reward", "reward")):  # fmt: skip
                assert root.attributes[name] == row[column]
            assert root.outputs["choices"][0]["message"]["content"] == row["response"]
            assert (grading.name, grading.outputs) == (
                "grader/last_number", {"reward": row["reward"]}
            )  # fmt: skip
            said = {a.name: a.value for a in trace.info.assessments}
            assert said == {"reward": row["reward"], "last_number": row["reward"]}
    rows_of = {
        i.tags[0].value: json.loads(i.dataset.profile)["num_rows"]
        for i in run.inputs.dataset_inputs
    }
    assert rows_of == {"training": 64, "evaluation": 8}
    (model,) = client.search_logged_models(place, f"source_run_id = '{run_id}'")
    assert (model.name, model.tags["aent.folder"]) == (
        f"tiny-{STEPS}", str(finished.run_dir / "policy")
    )  # fmt: skip


def test_controller_follows_the_papers_rule(recorded):
    """lambda(t+1) = clip(lambda(t) - step_size * distance outside the band), from the log."""
    _, run = recorded
    number = {k: float(run.data.params[f"controller.{k}"])
              for k in ("initial", "low", "high", "step_size", "min", "max")}  # fmt: skip
    coefficient = series(recorded, "controller/coefficient")
    assert coefficient[0] == number["initial"]
    following = series(recorded, "controller/next_coefficient")
    assert coefficient[1:] == following[:-1]
    for now, entropy, after in zip(
        coefficient, series(recorded, "policy/clamped_entropy"), following
    ):
        outside = min(0, entropy - number["low"]) + max(0, entropy - number["high"])
        expected = min(max(now - number["step_size"] * outside, number["min"]), number["max"])
        assert after == pytest.approx(expected, abs=1e-12)


def test_engine_and_trainer_agree_at_every_step(recorded):
    assert max(series(recorded, "policy/logprob_gap")) < 1e-3


def test_samples_carry_the_version_that_wrote_them(finished):
    tables = sorted((finished.run_dir / "samples").glob("*.json"))
    for step, path in enumerate(tables):
        table = json.loads(path.read_text())
        column = table["columns"].index("version")
        assert {row[column] for row in table["data"]} == {step}


def test_the_entropy_of_the_samples_is_that_of_the_step(finished, recorded):
    """Token-weighted, over two mini-batches and a pipeline: each response has its own."""
    measured = series(recorded, "policy/clamped_entropy")
    tables = sorted((finished.run_dir / "samples").glob("*.json"))
    for path, expected in zip(tables, measured, strict=True):
        table = json.loads(path.read_text())
        entropy, tokens = (table["columns"].index(name) for name in ("entropy", "tokens"))
        total = sum(row[entropy] * row[tokens] for row in table["data"])
        mean = total / sum(row[tokens] for row in table["data"])
        assert mean == pytest.approx(expected, rel=1e-5)


def test_the_bonus_has_a_share_of_the_gradient_while_it_has_a_coefficient(recorded):
    shares = series(recorded, "gradient/bonus_share")
    for coefficient, share in zip(series(recorded, "controller/coefficient"), shares):
        assert (0 < share <= 1) if coefficient > 0 else share == 0


def test_what_was_predicted_of_the_entropy_stands_beside_what_it_did(recorded):
    """By a step of length 1 against each gradient: -<dL, dH> and coefficient x ||dH||^2."""
    products, norms, coefficients = (
        series(recorded, name)
        for name in ("gradient/product", "gradient/entropy", "controller/coefficient")
    )
    raised = [c * norm**2 for c, norm in zip(coefficients, norms)]
    assert series(recorded, "gradient/predicted_bonus") == pytest.approx(raised, rel=1e-6)
    assert series(recorded, "gradient/predicted_policy") == [-p for p in products]
    entropies = series(recorded, "policy/clamped_entropy")
    moves = [after - before for before, after in itertools.pairwise(entropies)]
    assert series(recorded, "entropy/change") == pytest.approx(moves, abs=1e-5)


def test_policy_is_a_hugging_face_folder_that_training_has_changed(finished):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from aent.models.model_source import resolve
    from aent.recipe.schema import ModelSection

    policy = AutoModelForCausalLM.from_pretrained(finished.run_dir / "policy")
    first = AutoModelForCausalLM.from_pretrained(resolve(ModelSection(bundled="tiny-qwen2")))
    assert AutoTokenizer.from_pretrained(finished.run_dir / "policy").encode("1 + 1")
    after, before = policy.state_dict(), first.state_dict()
    assert after.keys() == before.keys()
    for name, value in after.items():
        assert torch.isfinite(value).all(), name
        assert not torch.equal(value, before[name]), f"{name} has not moved"


def test_nothing_is_left_running_and_the_folder_is_not_reused(finished):
    again = Job(finished.run_dir.parent)
    assert again.wait() == 2
    assert "run_dir" in again.text


def test_a_replay_gives_the_coefficients_that_were_logged(finished, recorded):
    argv = [sys.executable, "-m", "aent", "replay", str(finished.run_dir)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    rows = list(csv.DictReader(done.stdout.splitlines()))
    for name in ("coefficient", "next_coefficient"):
        logged = series(recorded, f"controller/{name}")
        assert [float(row[name]) for row in rows] == pytest.approx(logged, abs=1e-12)
