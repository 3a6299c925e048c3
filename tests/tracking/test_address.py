"""The address of a run's MLflow, for later processes in any environment."""

import stat

import pytest
from typer.testing import CliRunner

from aent.cli.main import app
from aent.recipe.load import dump, load
from aent.tracking import address
from aent.tracking.address import AddressError, keep, look_command, tracking_uri
from wording import assert_names, naming

ADDRESS = "http://anna:hunter2@tracker:5000"
TEXT = "name: trial\nmodel: {bundled: tiny-qwen2}\ncontroller: {initial: 0}\n"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """(recipe with these overrides, run folder)."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "r.yaml").write_text(TEXT)
    (tmp_path / "run").mkdir()
    return (lambda *overrides: load(tmp_path / "r.yaml", overrides)), tmp_path / "run"


def test_a_lost_variable_does_not_begin_another_store(run, monkeypatch, capsys):
    recipe, run_dir = run
    monkeypatch.setenv("MLFLOW_TRACKING_URI", ADDRESS)
    keep(recipe(), run_dir)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert tracking_uri(recipe(), run_dir) == ADDRESS
    keep(recipe(), run_dir)
    said = capsys.readouterr().out
    assert_names(said, "MLFLOW_TRACKING_URI")
    assert "hunter2" not in said
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://moved:5000")
    assert tracking_uri(recipe(), run_dir) == "http://moved:5000"


def test_the_password_is_in_a_file_of_its_owners_only(run, tmp_path):
    recipe, run_dir = run
    keep(recipe(f"tracking.uri={ADDRESS}"), run_dir)
    (tmp_path / "kept.yaml").write_text(dump(recipe(f"tracking.uri={ADDRESS}")))
    assert tracking_uri(load(tmp_path / "kept.yaml"), run_dir) == ADDRESS
    assert stat.S_IMODE((run_dir / address.ADDRESS_FILE).stat().st_mode) == 0o600
    (run_dir / address.ADDRESS_FILE).unlink()
    with pytest.raises(AddressError, match=naming("tracking.uri", "http://anna:***@tracker:5000")):
        tracking_uri(load(tmp_path / "kept.yaml"), run_dir)


def test_the_file_beside_the_runs_is_not_remembered(run):
    recipe, run_dir = run
    keep(recipe(), run_dir)
    assert list(run_dir.iterdir()) == []
    assert look_command(ADDRESS) == "http://anna:***@tracker:5000"


@pytest.mark.parametrize(
    "uri", ["file:///mlruns", "mlruns", "/data/mlruns", "localhost:5000", "./a"]
)
def test_a_store_of_files_is_refused(run, monkeypatch, uri):
    recipe, _ = run
    assert_names(address.fault(recipe(f"tracking.uri={uri}")), "tracking.uri", uri)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert_names(address.fault(recipe()), "MLFLOW_TRACKING_URI", uri)
    with pytest.raises(AddressError):
        address.check_supported(uri)


@pytest.mark.parametrize(
    "uri", ["https://host/a", "sqlite:///m.db", "databricks", "databricks://x", "postgresql://h/d"]
)
def test_other_stores_are_not(run, uri):
    assert not address.fault(run[0](f"tracking.uri={uri}"))


def test_a_batch_script_never_holds_a_password(run, tmp_path):
    # a recipe that has it is sent as it is: the script only names its file
    given = ["cluster.gpus_per_node=0", f"run_dir={tmp_path / 'job'}"]
    file = str(tmp_path / "r.yaml")
    done = CliRunner().invoke(app, ["slurm", "render", file, *given, f"tracking.uri={ADDRESS}"])
    assert done.exit_code == 2
    assert "password" in done.stderr
    assert "hunter2" not in done.output + done.stderr
    (tmp_path / "r.yaml").write_text(TEXT + f"tracking: {{uri: '{ADDRESS}'}}\n")
    done = CliRunner().invoke(app, ["slurm", "render", file, *given])
    assert done.exit_code == 0, done.stderr
    assert "hunter2" not in done.output


def test_a_refusal_does_not_show_it(tmp_path):
    (tmp_path / "r.yaml").write_text(TEXT)
    done = CliRunner().invoke(app, ["train", str(tmp_path / "r.yaml"), f"tracking.urii={ADDRESS}"])
    assert done.exit_code == 2
    assert "tracking.urii" in done.stderr
    assert "hunter2" not in done.stderr
