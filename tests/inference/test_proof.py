"""The run's token is only sent to a server that has proven that it knows it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from aent.inference import flight, registry
from aent.inference.client import GENERATE, EngineClient
from aent.inference.completion import GenerationRequest
from aent.inference.fleet import Fleet
from aent.inference.http import EngineError, RefusedError
from aent.inference.proof import CHALLENGE, PROOF, proof, proves
from aent.inference.token_gate import FILE_VARIABLE, TokenGate
from inference.stand_in import COMPLETION, RESET, StandIn, standing_in
from wording import naming

TOKEN = "the-token-of-the-run"


def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
    return 200, {"weight_version": "3"} if path == "/weight_info" else COMPLETION


def port_of(server: StandIn) -> int:
    return int(server.url.rpartition(":")[2])


def engine_at(server: StandIn) -> EngineClient:
    """A client of an engine of the run's own, which this server is, or seems to be."""
    return EngineClient(server.url, token=TOKEN, has_to_prove=True)


def test_an_engine_proves_itself_on_each_connection_before_it_gets_the_token() -> None:
    async def twice(client: EngineClient) -> list[int]:
        return [await client.weight_version() for _ in range(2)]  # one connection

    with standing_in(answer) as server:
        port = port_of(server)
        server.prove = lambda challenge: proof(TOKEN, "127.0.0.1", port, challenge)
        for _ in range(2):
            assert asyncio.run(twice(engine_at(server))) == [3, 3]
        assert server.asked == ["/health", "/weight_info", "/weight_info"] * 2
        assert [TOKEN in told for told in server.told] == [False, True, True] * 2


def test_who_relays_another_engines_proof_gets_no_token(tmp_path: Path, monkeypatch) -> None:
    """A stranger at the address of a dead engine hands the challenge on to one that lives."""
    path = tmp_path / "token"
    path.write_text(TOKEN)
    path.chmod(0o600)
    monkeypatch.setenv(FILE_VARIABLE, str(path))

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    def relay(port: int, challenge: str) -> str:
        sent: list[dict[str, Any]] = []

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        headers = [(CHALLENGE.encode(), challenge.encode())]
        scope = {"type": "http", "path": "/health", "headers": headers}
        asyncio.run(TokenGate(app)({**scope, "server": ("127.0.0.1", port)}, None, send))
        return dict(sent[0]["headers"])[PROOF.encode()].decode()

    with standing_in(answer) as server:
        port = port_of(server)
        server.prove = lambda challenge: relay(port + 1, challenge)
        with pytest.raises(EngineError, match=naming(server.url)):
            asyncio.run(engine_at(server).weight_version())
        assert not asyncio.run(engine_at(server).is_healthy())
        server.prove = lambda challenge: relay(port, challenge)  # were it the engine itself
        assert asyncio.run(engine_at(server).is_healthy())
        assert not any(TOKEN in told for told in server.told)


@pytest.mark.parametrize("idle", [True, False])
def test_a_stranger_who_takes_an_engines_address_in_mid_run_gets_no_token(
    monkeypatch: pytest.MonkeyPatch, idle: bool
) -> None:
    """While the engine had nothing to do, or in the middle of a request."""
    monkeypatch.setattr(flight, "RETRY_DELAYS_S", (0.01, 0.01, 0.01))

    def die(path: str, body: dict[str, Any]) -> object:
        server.answer, server.prove = answer, lambda challenge: "a guess"
        server.told.clear()
        return RESET

    with standing_in(answer) as server:
        port = port_of(server)
        server.prove = lambda challenge: proof(TOKEN, "127.0.0.1", port, challenge)
        fleet = Fleet([engine_at(server)], min_engines=1)
        fleet.generate_sync([GenerationRequest([1], 2)])
        assert server.asked == ["/health", GENERATE]
        server.answer = die
        if idle:
            die("", {})
        with pytest.raises(EngineError, match=naming(server.url)):
            fleet.generate_sync([GenerationRequest([1], 2)])
        assert server.told
        assert not any(TOKEN in told for told in server.told)


def test_a_stranger_who_knows_no_such_route_is_no_engine_either() -> None:
    """The engine is lost; no request is at fault (RefusedError ends a run)."""
    with standing_in(lambda *_: (404, {})) as server:
        with pytest.raises(EngineError, match=naming(server.url)) as refused:
            asyncio.run(engine_at(server).weight_version())
        assert not isinstance(refused.value, RefusedError)
        assert not any(TOKEN in told for told in server.told)


def test_no_connection_of_a_failed_proof_is_used_again() -> None:
    async def ask_twice(client: EngineClient) -> None:
        assert not await client.is_healthy()
        with pytest.raises(EngineError):
            await client.weight_version()

    with standing_in(answer) as server:
        server.prove = lambda challenge: "a guess"
        asyncio.run(ask_twice(engine_at(server)))
        assert not any(TOKEN in told for told in server.told)


def test_a_run_asks_its_own_engines_for_proof(tmp_path: Path) -> None:
    registry.make_token(tmp_path)
    registry.publish(tmp_path, 0, "http://a:1", tmp_path / "log")
    assert registry.published(tmp_path, 1)[0].has_to_prove


def test_a_proof_holds_for_its_token_address_and_challenge_only() -> None:
    shown = proof(TOKEN, "10.0.0.1", 8000, "abc")
    assert proves(shown, TOKEN, "http://10.0.0.1:8000", "abc")
    for token, url, challenge in (
        ("another", "http://10.0.0.1:8000", "abc"),
        (TOKEN, "http://10.0.0.2:8000", "abc"),
        (TOKEN, "http://10.0.0.1:8001", "abc"),
        (TOKEN, "http://10.0.0.1:8000", "abd"),
    ):
        assert not proves(shown, token, url, challenge)
    assert not proves(None, TOKEN, "http://10.0.0.1:8000", "abc")


@pytest.mark.parametrize("status", [401, 403, 404])
@pytest.mark.parametrize("path", ["/health", "/weight_info"])
def test_what_will_not_be_ready_is_not_waited_for(status: int, path: str) -> None:
    """Another server than an engine, or one that does not know the token it is given."""
    with standing_in(lambda asked, _: (status if asked == path else 200, {})) as server:
        client = EngineClient(server.url, token=TOKEN)
        with pytest.raises(
            RefusedError, match=naming(server.url, status, "rollout.urls", "rollout.token_file")
        ):
            asyncio.run(client.wait_ready(600.0))
        assert server.asked.count(path) == 1


def test_an_engine_that_is_busy_or_away_is_waited_for() -> None:
    fails = iter([(503, {}), RESET, (429, {})])
    with standing_in(lambda path, body: next(fails, answer(path, body))) as server:
        asyncio.run(EngineClient(server.url).wait_ready(60.0))
        assert server.asked[-1] == "/weight_info"
