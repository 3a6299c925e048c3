"""The checkpoint from which a run continues, and when it refuses. The trainer's part is only files
here; tests/trainer/test_state.py and tests/e2e/test_resume.py have the real one."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from aent.checkpoint import folders, resume, rollout_files
from aent.checkpoint.folders import CheckpointError, LoopState
from aent.entropy.controllers import ControllerSettings, initial_state
from aent.recipe.load import RecipeError, dump, load
from aent.recipe.schema import Recipe
from aent.runtime import files, megatron
from aent.tracking import journal
from aent.tracking.journal import Point
from checkpoint.test_rollout_files import rollout
from wording import assert_names, naming

QUESTIONS = {"7": [2, 4, 1 / 3], "8": [1, 4, None]}
CONTROLS = {"temperature_schedule": {"temperature": 0.1 + 0.2, "target": 1 / 3}}
TEXT = "name: x\nmodel: {bundled: tiny-qwen2}\ncontroller: {initial: .1}\nsteps: 20\n"


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "r.yaml").write_text(TEXT)
    return lambda *overrides: load(tmp_path / "r.yaml", overrides)


@pytest.fixture
def run_dir(tmp_path, recipe) -> Path:
    """A run with checkpoints after 5 and 10 steps."""
    folder = tmp_path / "run"
    for step in (5, 10):
        write(folder, step, recipe())
    (folder / "journal.jsonl").write_text("x" * 100)
    return folder


def write(run_dir: Path, step: int, recipe: Recipe) -> Path:
    """A checkpoint, its sums by coreutils."""
    folder = folders.path_of(run_dir, step)
    (folder / "trainer").mkdir(parents=True)
    (folder / "trainer" / "__0_0.distcp").write_bytes(bytes(range(256)) * 40)
    (folder / "recipe.yaml").write_text(dump(recipe))
    state = initial_state(ControllerSettings(kind="constant", initial=0.1))
    state = dataclasses.replace(state, step=step)
    LoopState(step, state, 1e-6, 100, "abc", CONTROLS, QUESTIONS).write(folder)
    names = ["trainer/__0_0.distcp", "state.json", "recipe.yaml"]
    sums = subprocess.run(
        ["sha256sum", *names], cwd=folder, capture_output=True, text=True, check=True
    )
    (folder / "SHA256SUMS").write_text(sums.stdout)
    return folder


def start(recipe: Recipe, run_dir: Path) -> Path | None:
    run_dir.mkdir(exist_ok=True)
    resume.choose_start(recipe, run_dir)
    return resume.chosen(run_dir)


def cut(folder: Path) -> None:
    path = folder / "trainer" / "__0_0.distcp"
    path.write_bytes(path.read_bytes()[:-1])


def flip(folder: Path) -> None:
    path = folder / "state.json"
    path.write_text(path.read_text().replace("1e-06", "2e-06"))


def lose(folder: Path) -> None:
    (folder / "trainer" / "__0_0.distcp").unlink()


def no_sums(folder: Path) -> None:
    (folder / "SHA256SUMS").unlink()


def test_newest_is_picked_and_its_state_comes_back(run_dir):
    folder = folders.pick(run_dir)
    state = LoopState.read(folder)
    assert (folder.name, state.step, state.controller.step) == ("step_000010", 10, 10)
    assert state.controls == CONTROLS
    assert state.questions == QUESTIONS
    assert (state.logprob_gap, state.journal_bytes, state.mlflow_run_id) == (1e-6, 100, "abc")


@pytest.mark.parametrize("harm", [cut, flip, lose, no_sums])
def test_a_damaged_one_is_named_and_the_one_before_is_taken(run_dir, capsys, harm):
    newest = folders.path_of(run_dir, 10)
    harm(newest)
    assert folders.pick(run_dir).name == "step_000005"
    assert_names(capsys.readouterr().err, newest)
    assert sorted(p.name for p in newest.parent.iterdir()) == [
        "step_000005",
        "step_000010.damaged",
    ]


def test_a_half_written_one_is_named_and_the_one_before_is_taken(run_dir, capsys):
    (run_dir / "checkpoints" / "step_000015.partial").mkdir()
    assert folders.pick(run_dir).name == "step_000010"
    assert_names(capsys.readouterr().err, "step_000015.partial")


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_no_whole_checkpoint_is_an_error(run_dir, recipe, mode):
    for step in (5, 10):
        cut(folders.path_of(run_dir, step))
    with pytest.raises(CheckpointError, match=naming("step_000010", "step_000005")):
        start(recipe(f"resume={mode}"), run_dir)
    assert not (run_dir / "start.json").exists()


def test_auto_begins_where_nothing_has_begun(tmp_path, recipe):
    assert start(recipe("resume=auto"), tmp_path / "new") is None
    assert start(recipe("resume=auto"), tmp_path / "new") is None  # begun, killed before a step


def test_auto_goes_on_where_something_has_begun(run_dir, recipe):
    assert start(recipe("resume=auto"), run_dir) == folders.path_of(run_dir, 10)


def test_auto_begins_where_the_first_checkpoint_was_not_finished(tmp_path, recipe):
    (tmp_path / "checkpoints" / "step_000000.partial").mkdir(parents=True)
    assert start(recipe("resume=auto"), tmp_path) is None


def test_auto_after_a_step_without_checkpoints_is_an_error(tmp_path, recipe):
    journal.append(tmp_path / "journal.jsonl", [Point(0, 1, "evaluation/accuracy", 0.5)])
    assert start(recipe("resume=auto", "checkpoint.every=0"), tmp_path) is None
    journal.append(tmp_path / "journal.jsonl", [Point(0, 2, "update/loss", 0.1)])
    with pytest.raises(CheckpointError, match=naming("run_dir", tmp_path / "checkpoints")):
        start(recipe("resume=auto", "checkpoint.every=0"), tmp_path)


def test_auto_without_a_checkpoint_after_a_step_is_an_error(tmp_path, recipe):
    rollout_files.write(tmp_path, 0, rollout())
    with pytest.raises(CheckpointError, match=naming("run_dir", tmp_path / "checkpoints")):
        start(recipe("resume=auto"), tmp_path)


def test_required_never_begins_anew(tmp_path, recipe):
    with pytest.raises(CheckpointError, match=naming("run_dir", tmp_path / "new")):
        start(recipe("resume=required"), tmp_path / "new")


def test_a_change_that_would_corrupt_the_run_is_refused_by_name(run_dir, recipe):
    changed = recipe("resume=required", "seed=3", "rollout.temperature=.5", "steps=30")
    with pytest.raises(CheckpointError) as error:
        start(changed, run_dir)
    seed, temperature = str(error.value).splitlines()
    assert_names(seed, "seed", 0, 3)
    assert_names(temperature, "rollout.temperature", 1.0, 0.5)


@pytest.mark.parametrize(
    ("override", "warned"), [("trainer.optimizer.lr=1e-3", True), ("checkpoint.keep=5", False)]
)
def test_another_policys_rollouts_are_dropped(run_dir, recipe, capsys, override, warned):
    for step in (9, 10, 11):
        rollout_files.write(run_dir, step, rollout())
    start(recipe("resume=required", override), run_dir)
    out = capsys.readouterr().out
    assert_names(out, "10 steps")
    warning = [line for line in out.splitlines() if "trainer.optimizer.lr" in line]
    assert len(warning) == warned
    assert rollout_files.recorded_until(run_dir, 10) == (10 if warned else 12)
    assert rollout_files.recorded_until(run_dir, 9) == (10 if warned else 12)


def test_policy_of_an_earlier_end_is_kept(run_dir, recipe):
    for text in ("first", "second"):
        (run_dir / "policy").mkdir()
        (run_dir / "policy" / "config.json").write_text(text)
        start(recipe("resume=required"), run_dir)
        assert not (run_dir / "policy").exists()
        assert (run_dir / "policy-step_000010" / "config.json").read_text() == text


def test_a_shortened_journal_is_said(run_dir, recipe, capsys):
    (run_dir / "journal.jsonl").write_text("x")
    start(recipe("resume=required"), run_dir)
    assert_names(capsys.readouterr().err, "journal.jsonl")


def test_a_state_of_another_version_is_an_error_not_a_damage(run_dir, recipe):
    folder = folders.path_of(run_dir, 10)
    saved = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(saved | {"new": 1}))
    sums = subprocess.run(
        ["sha256sum", "trainer/__0_0.distcp", "state.json", "recipe.yaml"],
        cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    (folder / "SHA256SUMS").write_text(sums.stdout)
    with pytest.raises(CheckpointError, match=naming("step_000010")):
        start(recipe("resume=required"), run_dir)
    assert folder.is_dir()


def fail_to_read(monkeypatch, times: int) -> None:
    """The next ``times`` checksums end in an error of the file system's."""
    left = [times]
    real = folders.checksum

    def flaky(path: Path) -> str:
        if left[0] > 0:
            left[0] -= 1
            raise OSError(errno.EIO, "Input/output error", str(path))
        return real(path)

    monkeypatch.setattr(folders, "checksum", flaky)
    monkeypatch.setattr(files, "PAUSE_S", 0.0)


def test_what_another_megatron_wrote_is_refused_at_the_start(run_dir, recipe, monkeypatch):
    monkeypatch.setattr(megatron, "series", lambda: "0.16")
    (folders.path_of(run_dir, 10) / "trainer" / "metadata.json").touch()  # and no common.pt
    trainer = folders.path_of(run_dir, 10) / "trainer"
    with pytest.raises(CheckpointError, match=naming(trainer, "0.19", "0.16")):
        start(recipe("resume=required"), run_dir)
    monkeypatch.setattr(megatron, "series", lambda: "0.19")
    assert start(recipe("resume=required"), run_dir) == trainer.parent


def test_an_error_of_reading_is_no_damage(run_dir, monkeypatch, capsys):
    fail_to_read(monkeypatch, times=1)
    assert folders.pick(run_dir).name == "step_000010"
    fail_to_read(monkeypatch, times=10**6)
    with pytest.raises(CheckpointError, match=naming("step_000010", "Input/output error")):
        folders.pick(run_dir)
    assert sorted(p.name for p in (run_dir / "checkpoints").iterdir()) == [
        "step_000005",
        "step_000010",
    ]


FOREIGN = ["best", "latest", ".nfs0001", "zz_mine", "step_000010-good", "step_5", "step_00000a"]


@pytest.mark.parametrize("keep", [1, 2])
def test_pruning_leaves_what_is_not_ours(run_dir, recipe, keep):
    folder = run_dir / "checkpoints"
    for step in (15, 1_000_000):
        write(run_dir, step, recipe())
    (folder / "step_000020.partial").mkdir()
    for name in FOREIGN:
        if name not in ("latest", ".nfs0001"):
            (folder / name).mkdir()
    (folder / "latest").symlink_to("step_000015")
    (folder / ".nfs0001").write_text("")
    (run_dir / "rollouts").mkdir()
    (run_dir / "rollouts" / "step_mine.npz").write_text("")
    folders.prune(run_dir, keep)
    newest = ["step_000015", "step_1000000"][-keep:]
    assert sorted(p.name for p in folder.iterdir()) == sorted(newest + FOREIGN)
    assert (run_dir / "rollouts" / "step_mine.npz").exists()
    assert folders.pick(run_dir).name == "step_1000000"


def test_a_removal_that_fails_is_a_warning(run_dir, monkeypatch, capsys):
    def busy(path: Path) -> None:
        raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))

    monkeypatch.setattr(shutil, "rmtree", busy)
    folders.prune(run_dir, keep=1)
    assert_names(capsys.readouterr().err, "step_000005")


def test_a_changed_file_of_a_graders_function_is_told(run_dir, recipe, tmp_path, capsys):
    """And the policy does not learn from rollouts with other rewards."""
    path = tmp_path / "rewards.py"
    path.write_text("def reward(response, question): return 1\n")
    graders = f"task.graders=[{{kind: python, function: '{path}:reward'}}]"
    shutil.rmtree(folders.path_of(run_dir, 10))
    write(run_dir, 10, recipe(graders))
    for _ in range(2):
        start(recipe("resume=auto", graders), run_dir)
        rollout_files.write(run_dir, 11, rollout())
    assert "task.graders" not in capsys.readouterr().out
    path.write_text("def reward(response, question): return 2\n")
    start(recipe("resume=auto", graders), run_dir)
    assert_names(capsys.readouterr().out, "task.graders", f"{path}:reward")
    assert rollout_files.recorded(run_dir) == {}
    start(recipe("resume=auto", graders), run_dir)
    assert "task.graders" not in capsys.readouterr().out


def test_a_changed_file_of_questions_is_told(run_dir, recipe, tmp_path, capsys):
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "1?", "answer": 1}\n')
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "train.jsonl").write_bytes(path.read_bytes())
    sources = f"[{{name: a, path: {path}}}, {{name: b, path: {tmp_path}/folder}}]"
    task = f"task={{graders: [{{kind: last_number}}], sources: {sources}}}"
    shutil.rmtree(folders.path_of(run_dir, 10))
    write(run_dir, 10, recipe(task))
    for _ in range(2):
        start(recipe("resume=auto", task), run_dir)
        rollout_files.write(run_dir, 11, rollout())
    assert "last start" not in capsys.readouterr().out
    (tmp_path / "folder" / "train.jsonl").write_text('{"question": "1?", "answer": 2}\n')
    start(recipe("resume=auto", task), run_dir)
    said = capsys.readouterr().out
    assert_names(said, f"{tmp_path}/folder", "(train)")
    assert "q.jsonl" not in said
    assert rollout_files.recorded(run_dir) == {}


def test_a_checkpoint_of_an_earlier_version_has_its_grader(run_dir, recipe, capsys):
    path = folders.path_of(run_dir, 10) / "recipe.yaml"
    data = yaml.safe_load(dump(recipe("task.graders=[{kind: math_verify}]")))
    data["task"]["verifier"] = data["task"].pop("graders")[0]["kind"]
    path.write_text(yaml.safe_dump(data))
    assert not resume.accept_changes(recipe("task.graders=[{kind: math_verify}]"), path.parent)
    assert resume.accept_changes(recipe("task.graders=[{kind: last_number}]"), path.parent)
    assert_names(capsys.readouterr().out, "task.graders", "'math_verify'", "'last_number'")
    with pytest.raises(RecipeError, match=naming("task.verifier", "task.graders")):
        load(path)


@pytest.mark.parametrize("torn", ["", "{", "[]", "{}"])
def test_no_rank_chooses_where_a_start_file_is_torn(run_dir, recipe, torn, capsys):
    start(recipe("resume=auto"), run_dir)
    (run_dir / "start.json").write_text(torn)
    with pytest.raises(CheckpointError, match=naming(run_dir / "start.json")):
        resume.chosen(run_dir)
    assert resume.started(run_dir) is None
    assert start(recipe("resume=auto"), run_dir) == folders.path_of(run_dir, 10)
    assert_names(capsys.readouterr().err, run_dir / "start.json")


def test_a_torn_start_file_before_the_first_step_is_the_first_step(tmp_path):
    (tmp_path / "start.json").write_text("{")
    assert resume.chosen(tmp_path) is None


@pytest.mark.parametrize("name", ["start.json", ".start.json.123", "recipe.yaml"])
def test_a_start_that_was_killed_at_any_point_has_left_a_run(tmp_path, name):
    assert not resume.is_run(tmp_path)
    (tmp_path / name).write_text("")
    assert resume.is_run(tmp_path)
