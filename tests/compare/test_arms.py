"""The runs of a comparison, their order, and recipes that cannot be compared."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aent.cli.main import app
from aent.compare.arms import plan
from aent.recipe.load import RecipeError, dump, flatten, load
from aent.slurm import prepare
from aent.tracking import journal
from aent.tracking.journal import JOURNAL_FILE, Status
from compare.conftest import write_recipes
from wording import assert_names, naming


def test_all_arms_come_with_a_seed_before_the_next_seed(tmp_path):
    sources = write_recipes(tmp_path)
    sources += [sources[0], f"{tmp_path}/../{tmp_path.name}/held.yaml"]  # again: once is enough
    runs = plan(sources, ["steps=7"], 2, tmp_path / "out")
    assert [str(run) for run in runs] == [
        "plain, seed 0", "held, seed 0", "plain, seed 1", "held, seed 1",
    ]  # fmt: skip
    assert [run.recipe.seed for run in runs] == [0, 0, 1, 1]
    assert {run.recipe.steps for run in runs} == {7}
    assert runs[3].run_dir == tmp_path / "out" / "held-seed1"
    assert {run.recipe.resume for run in runs} == {"auto"}
    assert list(tmp_path.glob("out")) == []


@pytest.mark.parametrize(
    ("family", "arms", "differ"),
    [
        ("sets", "none constant full drop33 top8", {"name", "entropy", "controller"}),
        ("drives", "none bonus upper-clip zeta share", {"name", "controller"}),
    ],
)
def test_the_recipes_of_both_comparisons_can_start(
    family: str, arms: str, differ: set[str], tmp_path: Path
) -> None:
    """Six seeds of five arms, which differ in what is compared and in nothing else."""
    sources = sorted((Path(__file__).parents[2] / "recipes/compare").glob(f"{family}-*.yaml"))
    out = tmp_path / "out"
    command = ["compare", *map(str, sources), "--seeds", "6", "--out", str(out), "--dry-run"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    planned = [line for line in done.stdout.splitlines() if ": " in line]
    assert sorted(planned) == sorted(
        f"{arm}, seed {seed}: {out / f'{arm}-seed{seed}'}"
        for arm in arms.split()
        for seed in range(6)
    )
    flat = [flatten(load(source)) for source in sources]
    changed = {key for one in flat for key in one.keys() | flat[0].keys()
               if one.get(key) != flat[0].get(key)}  # fmt: skip
    assert {key.partition(".")[0] for key in changed} == differ
    assert not out.exists()


def test_a_run_is_finished_when_its_journal_says_so(tmp_path):
    run, other, *_ = plan(write_recipes(tmp_path), [], 1, tmp_path)
    run.run_dir.mkdir()
    assert not run.finished
    for status, done in (("RUNNING", False), ("KILLED", False), ("FINISHED", True)):
        journal.append(run.run_dir / JOURNAL_FILE, [Status(1, status)])
        assert run.finished == done
    assert not other.finished


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ("task.heldout: 3", "task plain.yaml"),
        ("checkpoint.every: 0", "checkpoint.every"),
        ("name: plain", "name plain"),
        ("steps: none", 'steps "none"'),
    ],
)
def test_arms_that_cannot_be_compared_are_refused(tmp_path, change, names):
    one, other = write_recipes(tmp_path)
    name = "" if change.startswith("name") else "  name: other\n"
    (tmp_path / "held.yaml").write_text(f"base: plain.yaml\nchange:\n{name}  {change}\n")
    with pytest.raises(RecipeError, match=naming("held.yaml", *names.split())):
        plan([one, other], [], 2, tmp_path / "out")


def test_what_a_comparison_sets_cannot_be_overridden(tmp_path):
    with pytest.raises(RecipeError, match="seed=3"):
        plan(write_recipes(tmp_path), ["seed=3"], 2, tmp_path)


def test_a_run_of_another_recipe_is_not_gone_on_with(tmp_path):
    sources = write_recipes(tmp_path)
    run = plan(sources, [], 1, tmp_path)[0]
    run.run_dir.mkdir()
    (run.run_dir / "recipe.yaml").write_text(dump(run.recipe))
    plan(sources, ["trainer.threads_per_rank=1"], 1, tmp_path)  # does not change the result
    with pytest.raises(RecipeError) as refused:
        plan(sources, ["controller.initial=.5"], 1, tmp_path)
    assert_names(str(refused.value), run.run_dir, "controller.initial", 0.0, 0.5, "--out")


@pytest.mark.parametrize("options", [[], ["--slurm", "cluster.gpus_per_node=0"]])
def test_a_folder_that_cannot_be_made_is_refused(tmp_path, options):
    recipes, out = write_recipes(tmp_path), tmp_path / "file"
    out.touch()
    done = CliRunner().invoke(app, ["compare", *recipes, *options, "--out", str(out)])
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()  # not one for each run
    assert_names(line, "--out", out)


@pytest.mark.parametrize("command", ["train", "compare"])
def test_a_taken_port_is_refused_before_there_is_a_folder(tmp_path, command):
    recipe, _ = write_recipes(tmp_path)
    out = tmp_path / "out"
    folder = {"train": [f"run_dir={out}"], "compare": ["--seeds", "1", "--out", str(out)]}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        arguments = [command, recipe, f"rollout.engine.port={port}", *folder[command]]
        done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert_names(line, "rollout.engine.port", port)
    assert not out.exists()


AWAY = "http://127.0.0.1:9"


def test_without_the_tracking_server_nothing_begins(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", AWAY)
    recipe, _ = write_recipes(tmp_path)
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["compare", recipe, "--seeds", "1", "--out", str(out)])
    assert done.exit_code == 1
    (line,) = done.stderr.splitlines()
    assert_names(line, "MLFLOW_TRACKING_URI", AWAY)
    assert list(out.glob("*/")) == []
    arguments = ["--nodes=1", "--gpus-per-node=0", f"--sweep={out}", recipe]
    assert prepare.main([str(tmp_path / "run"), *arguments]) == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["report", "suggest"])
def test_a_store_that_cannot_be_read_is_a_sentence(monkeypatch, command):
    for uri, names in (
        (AWAY, ("0" * 32, AWAY)),
        ("bogus://x", ("bogus://x",)),
        ("sqlite:////proc/x/y.db", ("sqlite:////proc/x/y.db",)),
    ):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        done = CliRunner().invoke(app, [command, "0" * 32])
        assert done.exit_code == 2
        (line,) = done.stderr.splitlines()
        assert_names(line, "MLflow", *names)
