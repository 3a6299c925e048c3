"""How a vLLM server is started: its command line, its environment, its address."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path

import pytest

from aent.checks.engines import ON_CPU, OWN_OPTIONS, SAMPLING_AHEAD
from aent.inference import engine, registry
from aent.inference.engine import Engine, EngineSettings, own_options
from aent.inference.http import EngineError
from aent.inference.proof import proof
from aent.recipe.load import load
from aent.runtime.children import Child
from e2e.jobs import TINY
from inference.stand_in import standing_in
from wording import naming


def settings(folder: Path, **changes: object) -> EngineSettings:
    values = {
        "model_path": folder / "model",
        "served_name": "tiny",
        "log_path": folder / "engine.log",
        "max_model_len": 64,
        "token_path": registry.make_token(folder),
        **changes,
    }
    return EngineSettings(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(("device", "shared"), [("cpu", False), ("cuda", False), ("cuda", True)])
def test_every_option_that_a_run_sets_is_refused_in_recipes(
    tmp_path: Path, device: str, shared: bool
) -> None:
    options = own_options(settings(tmp_path, device=device, colocated=shared))
    assert options.get("enable-sleep-mode", False) is shared
    near = device == "cpu" or shared
    backend = "aent_gloo" if near else "aent_nccl"
    assert options["weight-transfer-config"] == {"backend": backend}
    ours = set(options)
    assert ours <= set(OWN_OPTIONS) | (set(ON_CPU) if device == "cpu" else set())
    ahead = set(own_options(settings(tmp_path, device=device, colocated=shared, sequences=3)))
    assert ahead - ours == set(SAMPLING_AHEAD)


@pytest.mark.parametrize("staleness", [0, 2])
def test_requests_in_flight_leave_the_probe_its_places(tmp_path: Path, staleness: int) -> None:
    asked = (f"rollout.max_staleness={staleness}", "rollout.concurrency=70")
    argv, _ = engine.command(engine.settings_of(load(TINY, asked), tmp_path, tmp_path, 0, 0))
    given = [each for each in argv if each.startswith(("--max-num-seqs", "--scheduling"))]
    expected = ["--max-num-seqs=72", "--scheduling-policy=priority"] if staleness else []
    assert given == expected


def test_a_recipes_options_reach_the_server(tmp_path: Path) -> None:
    options = {
        "max-num-seqs": 64,
        "enable_prefix_caching": False,
        "async-scheduling": True,
        "compilation-config": {"level": 0},
    }
    argv, _ = engine.command(settings(tmp_path, options=options))
    assert {"--max-num-seqs=64", "--no-enable-prefix-caching", "--async-scheduling"} <= set(argv)
    assert '--compilation-config={"level": 0}' in argv


def test_settings_of_other_servers_do_not_enter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = {"VLLM_API_KEY": "secret", "VLLM_PORT": "8000", "RANK": "3", "MASTER_PORT": "29500"}
    for name, value in foreign.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("VLLM_CACHE_ROOT", "/scratch/cache")
    _, env = engine.command(settings(tmp_path))
    assert not foreign.keys() & env.keys()
    assert env["VLLM_CACHE_ROOT"] == "/scratch/cache"  # one of those that a cluster needs
    assert env["VLLM_SERVER_DEV_MODE"] == "1"


def test_processes_are_forked_on_a_cpu_alone(tmp_path: Path) -> None:
    for device, method in (("cpu", "fork"), ("cuda", "spawn")):
        env = engine.command(settings(tmp_path, device=device))[1]
        assert env["VLLM_WORKER_MULTIPROC_METHOD"] == method


def test_sockets_have_a_short_path_where_tmpdir_is_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, base in (("/tmp", None), ("/tmp/" + "x" * 80, "/tmp")):
        monkeypatch.setattr(tempfile, "tempdir", folder)
        assert engine.command(settings(tmp_path))[1].get("VLLM_RPC_BASE_PATH") == base


def test_a_taken_port_is_named_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EngineError, match=naming("rollout.engine.port", port)):
            engine.start(settings(tmp_path, port=port))
    assert not (tmp_path / "engine.log").exists()


@pytest.mark.parametrize("knows", [True, False])
def test_only_a_server_that_knows_the_token_is_the_engine(tmp_path: Path, knows: bool) -> None:
    """Another server at its address is healthy too, and gets no token."""
    own = settings(tmp_path)
    assert own.token_path is not None
    token = registry.read_token(own.token_path)
    with standing_in(lambda *_: (200, {})) as server:
        port = int(server.url.rpartition(":")[2])
        known = token if knows else "a guess"
        server.prove = lambda challenge: proof(known, "127.0.0.1", port, challenge)
        child = Child.start("nobody", ["true"], env={}, log_path=own.log_path)
        assert Engine(own, child, server.url).is_healthy() is knows
        child.stop(1.0)
        assert len(server.told) == 1
        assert token not in server.told[0]
