"""How rank 0 reaches and updates the engines."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from aent.data.batch import Batch
from aent.data.sample import Sample
from aent.inference import registry
from aent.inference.client import GENERATE, EngineClient
from aent.inference.fleet import Fleet
from aent.inference.http import EngineError, RefusedError, TransientError
from aent.orchestrator.engines import Engines, known_engines
from aent.recipe.load import load
from aent.recipe.schema import Recipe
from aent.runtime.environment import data_path
from aent.runtime.worker_thread import WorkerThread
from aent.weights.probe import Probe, Seen
from aent.weights.weight_transfer import WeightSyncError
from inference.stand_in import standing_in
from processes import free_port
from waiting import wait_until
from wording import assert_names, naming


def test_settings_and_tokens_reach_the_clients(tmp_path: Path) -> None:
    """Somebody else's engines have a token of their own, the run's have the run's."""
    (tmp_path / "run").mkdir()
    token = registry.make_token(tmp_path)
    run_token = registry.make_token(tmp_path / "run")
    registry.publish(tmp_path / "run", 0, "http://b:2", tmp_path / "log")
    recipe = Recipe.model_validate({
        "name": "x",
        "model": {"path": "model"},
        "controller": {"initial": 0.0},
        "rollout": {
            "urls": ["http://a:1/"], "token_file": str(token), "engines": 1,
            "concurrency": 7, "progress_timeout_s": 11.0,
        },
    })  # fmt: skip
    theirs, ours = known_engines(recipe, tmp_path / "run")
    assert (theirs.url, theirs.token) == ("http://a:1", registry.read_token(token))
    assert (ours.url, ours.token) == ("http://b:2", registry.read_token(run_token))
    assert {c.concurrency for c in (theirs, ours)} == {7}
    assert {c.progress_timeout_s for c in (theirs, ours)} == {11.0}


class Sender:
    """Fails of each of these in turn, and then no more."""

    def __init__(self, *errors: EngineError) -> None:
        self.errors = list(errors)

    async def push(self, *arguments: object) -> None:
        if self.errors:
            raise self.errors.pop(0)


@pytest.fixture
def engines(tmp_path: Path) -> Iterator[Engines]:
    """One, which is well."""
    recipe = load(data_path("recipes/cpu/tiny.yaml"), [f"run_dir={tmp_path}"])
    with standing_in(lambda *_: (200, {})) as server:
        fleet = Fleet([EngineClient(server.url)])
        rest = {"manifest": None, "probe": None, "say": lambda text: None}
        yield Engines(recipe, tmp_path, fleet, Sender(), **rest)


def test_weights_go_again_once_to_an_engine_that_is_well(engines: Engines) -> None:
    broken = [TransientError("the connection broke") for _ in range(3)]
    engines.sender = Sender(*broken[:1])
    assert [engines.push(iter(()), 1), engines.push(iter(()), 1)] == [False, True]
    engines.sender = Sender(*broken[1:3])
    assert not engines.push(iter(()), 2)
    with pytest.raises(TransientError):
        engines.push(iter(()), 2)
    engines.sender = Sender(RefusedError("no such route"))
    with pytest.raises(RefusedError):
        engines.push(iter(()), 3)


def test_a_lost_engine_of_rollout_urls_gets_weights_again_when_it_answers(
    engines: Engines, tmp_path: Path
) -> None:
    said: list[str] = []
    answers = threading.Event()

    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        return (200 if answers.is_set() else 503), {}

    with standing_in(lambda *_: (200, {})) as first, standing_in(answer) as second:
        urls = {"urls": (first.url, second.url), "engines": 0}
        rollout = engines.recipe.rollout.model_copy(update=urls)
        recipe = engines.recipe.model_copy(update={"rollout": rollout})
        clients = known_engines(recipe, tmp_path)
        known = partial(known_engines, recipe, tmp_path)
        engines.fleet, engines.say = Fleet(clients, min_engines=1, known=known), said.append
        engines.fleet.lose(clients[1], EngineError("the connection broke"))
        assert engines.push(iter(()), 1)
        assert [client.url for client in engines.fleet.clients] == [first.url]
        answers.set()
        wait_until(lambda: engines.push(iter(()), 2) and said, "it is taken back")
        assert [client.url for client in engines.fleet.clients] == [first.url, second.url]
        assert_names(said[0], second.url, "takes part from here on")


def test_weights_wait_until_what_was_sampled_before_is_final(engines: Engines) -> None:
    """The writer of the samples holds the same lock. Weights that are sent again do not wait for
    themselves, and the lock is held until they are proven."""
    engines.sender = Sender(TransientError("the connection broke"))
    with engines.unproven:
        pending = WorkerThread("sends").submit(lambda: engines.push(iter(()), 1))
        with pytest.raises(TimeoutError):
            pending.result(0.2)
        assert engines.sender.errors  # nothing was sent
    assert not pending.result(60)
    assert engines.push(iter(()), 1)
    assert engines.unproven.locked()
    engines.probe, engines._asked = Probe([1, 2], 1, 1.0), Future()
    engines._asked.set_result({"a": Seen(torch.zeros(1), 1, 0)})
    batch = Batch.from_samples([Sample([1], [2], [-1.0], [1], "stop", 0, 0)], temperature=1.0)
    engines.check_probe(batch, torch.zeros(2), 1)
    assert not engines.unproven.locked()


def test_engines_compute_the_probe_while_the_trainer_does(engines: Engines) -> None:
    """Whoever begins it gets its text at once; whoever checks it waits for the engines, and sees
    what they said."""
    scored = threading.Event()

    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path != GENERATE:
            return 200, {}
        scored.wait(60)
        return 200, {
            "usage": {"prompt_tokens_details": {"cached_tokens": 0}},
            "choices": [{"weight_versions": [{"start": 0, "end": 1, "version": "1"}]}],
            "prompt_logprobs": [None, {"2": {"logprob": -0.5}}, {"3": {"logprob": -0.25}}],
        }

    engines.probe = Probe([1, 2, 3], 1, 0.1)
    with standing_in(answer) as server:
        engines.fleet.clients[0].url = server.url
        assert engines.push(iter(()), 1)
        text = engines.begin_probe()
        assert (text.prompt_ids, text.response_ids) == ([1], [2, 3])
        checking = WorkerThread("checks").submit(
            lambda: engines.check_probe(
                Batch.from_samples([text], temperature=1.0), torch.tensor([0.0, -0.5, -0.25]), 1
            )
        )
        with pytest.raises(TimeoutError):
            checking.result(0.2)
        scored.set()
        checking.result(60)
        assert engines.probe.gap == 0
        assert not engines.unproven.locked()
        # an engine with another opinion
        assert engines.push(iter(()), 2)
        batch = Batch.from_samples([engines.begin_probe()], temperature=1.0)
        with pytest.raises(WeightSyncError, match=naming(server.url, "version 1, not 2")):
            engines.check_probe(batch, torch.zeros(3), 2)
        assert engines.unproven.locked()


def test_weights_do_not_go_again_to_an_engine_that_is_lost(engines: Engines) -> None:
    engines.fleet.clients[0].url = f"http://127.0.0.1:{free_port()}"
    engines.sender = Sender(TransientError("the connection broke"))
    with pytest.raises(TransientError):
        engines.push(iter(()), 1)
    assert engines.sent_again is None
