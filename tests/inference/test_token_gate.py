"""Without the token, an engine refuses every route."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from aent.inference import registry
from aent.inference.client import EngineClient
from aent.inference.http import RefusedError
from aent.inference.proof import CHALLENGE, PROOF, proves
from aent.inference.token_gate import FILE_VARIABLE, TokenGate
from plugins.servers import Served


def routes(client: EngineClient) -> list[tuple[str, str]]:
    """(method, path) of everything on the server's OpenAPI page, and the page itself."""
    page = asyncio.run(client.call("GET", "/openapi.json"))
    found = [(m.upper(), path) for path, methods in page["paths"].items() for m in methods]
    return [*found, ("GET", "/openapi.json"), ("GET", "/docs"), ("GET", "/nowhere")]


@pytest.mark.slow
def test_every_route_asks_for_the_token(served: Served) -> None:
    client = served.engine.client()
    asked = routes(client)
    paths = {path for _, path in asked}
    assert {"/update_weights", "/collective_rpc", "/metrics", "/v1/completions"} <= paths
    with httpx.Client(base_url=client.url, trust_env=False, timeout=300) as http:
        for method, path in asked:
            for headers in ({}, {"Authorization": "Bearer guess"}):
                status = http.request(method, path, json={}, headers=headers).status_code
                assert status == (200 if path == "/health" else 401), (method, path, headers)


@pytest.mark.slow
def test_only_our_own_methods_of_a_worker_can_be_called(served: Served) -> None:
    client = served.engine.client()
    with pytest.raises(RefusedError, match=r"\b403\b"):
        asyncio.run(client.call("POST", "/collective_rpc", {"method": "get_model_inspection"}))
    with pytest.raises(RefusedError, match=r"\b403\b"):
        asyncio.run(client.call("POST", "/collective_rpc"))
    ours = client.call("POST", "/collective_rpc", {"method": "aent_reset_transfer"})
    assert asyncio.run(ours) == {"results": [None]}


@pytest.mark.slow
def test_a_server_proves_that_it_knows_the_token(served: Served) -> None:
    assert served.engine.is_healthy()
    assert served.engine.settings.token_path is not None
    token = registry.read_token(served.engine.settings.token_path)
    url = served.engine.url
    elsewhere = url.rpartition(":")[0] + ":1"  # who relays the challenge from there, in vain
    with httpx.Client(base_url=url, trust_env=False, timeout=300) as http:
        told = {CHALLENGE: "abc", "Host": elsewhere.removeprefix("http://")}
        shown = http.get("/health", headers=told).headers[PROOF]
        assert proves(shown, token, url, "abc")
        assert not proves(shown, token, url, "abd")
        assert not proves(shown, token, elsewhere, "abc")
        assert PROOF not in http.get("/health").headers
    client = served.engine.client()
    assert client.has_to_prove
    asyncio.run(client.wait_ready(60.0))


@pytest.mark.slow
def test_the_token_is_in_its_file_alone(served: Served) -> None:
    settings = served.engine.settings
    assert settings.token_path is not None
    token = registry.read_token(settings.token_path)
    server = psutil.Process(served.engine.child.process.pid)
    for process in [server, *server.children(recursive=True)]:
        assert token not in " ".join(process.cmdline())
        assert token not in str(process.environ())
    assert token not in settings.log_path.read_text()
    assert token not in repr(served.engine.client())


def test_a_websocket_is_closed_and_the_servers_own_start_is_let_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FILE_VARIABLE, str(registry.make_token(tmp_path)))
    reached: list[str] = []
    sent: list[dict[str, Any]] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        reached.append(scope["type"])

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    gate = TokenGate(app)
    asyncio.run(gate({"type": "lifespan"}, None, send))
    asyncio.run(gate({"type": "websocket", "path": "/v1/realtime", "headers": []}, None, send))
    assert reached == ["lifespan"]
    assert sent == [{"type": "websocket.close", "code": 1008}]
