"""Files that a job's containers would not show are named before the job waits in the queue."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aent.recipe.load import load
from aent.slurm import mounts
from slurm.conftest import TINY
from wording import assert_names

CONTAINER = ("cluster.container=apptainer", "cluster.image=x.sif", "cluster.engine_image=x.sif")


@pytest.fixture
def hidden(tmp_path, monkeypatch):
    """Takes a recipe's file and overrides; the sentences for a job sent from ``tmp_path/here``.
    Beside that folder, which is mounted, there is ``other``, which is not."""
    tiny = Path(TINY).read_text()
    for name in ("MLFLOW_TRACKING_URI", "AENT_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("here", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "own.yaml").write_text(tiny)
        (tmp_path / name / "grade.py").touch()
    monkeypatch.chdir(tmp_path / "here")

    def said(recipe: str, *overrides: str) -> list[str]:
        given = [*CONTAINER, "run_dir=runs/x", *overrides]
        return list(mounts.hidden(load(recipe, given), recipe))

    return said


def test_a_recipe_outside_the_mounts_is_named_with_them(hidden, tmp_path):
    outside, here = tmp_path / "other" / "own.yaml", tmp_path / "here"
    assert hidden("own.yaml") == []
    (said,) = hidden("../other/own.yaml")
    assert_names(said, "the recipe", outside, f"mounts={here}:{here}")
    assert hidden("../other/own.yaml", f"cluster.mounts=['{tmp_path}:{tmp_path}:ro']") == []
    # under another path the job would not find it
    (said,) = hidden(str(outside), f"cluster.mounts=['{tmp_path}:/data']")
    assert_names(said, outside, f"{tmp_path}:/data")
    Path("link.yaml").symlink_to(outside)  # the batch script names what it points to
    (said,) = hidden("link.yaml")
    assert_names(said, outside)


def test_apptainer_shows_the_users_home(hidden, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "other"))
    assert hidden("../other/own.yaml") == []
    (said,) = hidden("../other/own.yaml", "cluster.container=pyxis")
    assert_names(said, "the recipe", tmp_path / "other" / "own.yaml")


def test_so_is_the_recipe_that_it_changes(hidden, tmp_path):
    Path("change.yaml").write_text("base: ../other/own.yaml\nchange: {seed: 5}\n")
    (said,) = hidden("change.yaml")
    assert_names(said, "base", "../other/own.yaml", "mounts")
    assert hidden("change.yaml", f"cluster.mounts=['{tmp_path}/other:{tmp_path}/other']") == []


@pytest.mark.parametrize(
    ("field", "override"),
    [
        ("model.path", "model={{path: {}}}"),
        ("model.tokenizer_path", "model.tokenizer_path={}"),
        ("task.path", "task.path={}"),
        ("task.sources[0].path", "task.sources=[{{name: a, path: {}}}]"),
        ("rollout.token_file", "rollout.token_file={}"),
        ("task.graders[0].function", "task.graders=[{{kind: python, function: '{}:f'}}]"),
        (
            "task.sources[0].graders[0].token_file",
            "task.sources=[{{name: a, path: own.yaml, graders: "
            "[{{kind: http, url: 'http://a', token_file: {}}}]}}]",
        ),
    ],
)
def test_so_is_every_file_and_folder_that_a_recipe_names(hidden, tmp_path, field, override):
    outside = tmp_path / "other" / "grade.py"
    for path in (str(outside), "../other/grade.py"):
        (said,) = hidden("own.yaml", override.format(path))
        assert_names(said, field, outside, "mounts")
    assert hidden("own.yaml", override.format("grade.py")) == []
    # a path of the container; one of the image, which is not here; one of the nodes alone
    (tmp_path / "other" / "sub").mkdir()
    (tmp_path / "other" / "sub" / "grade.py").touch()
    mounted = f"cluster.mounts=['{tmp_path}/other:/nodes/data', '/nodes/disk:/disk']"
    for path in ("/nodes/data/sub/grade.py", "/opt/image/grade.py", "/disk/grade.py"):
        assert hidden("own.yaml", mounted, override.format(path)) == []


def test_a_link_is_followed_as_the_container_follows_it(hidden, tmp_path):
    Path("data").symlink_to(tmp_path / "other")
    (said,) = hidden("own.yaml", "task.path=data/grade.py")
    assert_names(said, "task.path", "mounts")
    other = f"cluster.mounts=['{tmp_path}/other:{tmp_path}/other']"
    assert hidden("own.yaml", "task.path=data/grade.py", other) == []
    # the host's folder of that path is not the container's
    empty = tmp_path / "empty"
    empty.mkdir()
    shadowed = (
        f"task.path={tmp_path}/other/grade.py",
        f"cluster.mounts=['{empty}:{tmp_path}/other']",
    )
    (said,) = hidden("own.yaml", *shadowed)
    assert_names(said, "task.path", tmp_path / "other" / "grade.py")


def test_what_would_be_written_into_the_container_is_named(hidden, tmp_path, monkeypatch):
    lost = f"sqlite:///{tmp_path}/other/mlflow.db"
    (said,) = hidden("own.yaml", f"tracking.uri={lost}")
    assert_names(said, "MLflow", tmp_path / "other", "mounts")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", lost)
    assert len(hidden("own.yaml")) == 1
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setenv("AENT_CACHE", f"{tmp_path}/other/cache")  # of the bundled model
    (said,) = hidden("own.yaml")
    assert_names(said, "AENT_CACHE", tmp_path / "other" / "cache", "mounts")
    assert hidden("own.yaml", "model={path: model}") == []
    monkeypatch.delenv("AENT_CACHE")
    alone = tmp_path / "runs" / "x"  # the store, the lock and the cache lie beside the run
    alone.mkdir(parents=True)
    said = hidden("own.yaml", f"run_dir={alone}", f"cluster.mounts=['{alone}:{alone}']")
    assert_names(said[0], "run_dir", os.fspath(alone.parent))
