"""The engines' own metrics: vLLM's text, and its sum over a step."""

from __future__ import annotations

import asyncio

import pytest

from aent.inference.client import EngineClient
from aent.inference.completion import GenerationRequest
from aent.inference.fleet import Fleet
from aent.inference.load import Load
from aent.inference.vllm_metrics import COUNTERS, GAUGES, read
from inference.stand_in import standing_in
from plugins.servers import Served

TEXT = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0",model_name="a b"}} {running}
vllm:num_requests_running{{engine="1",model_name="a b"}} 1.0
vllm:num_requests_waiting{{engine="0",model_name="a b"}} 4.0
vllm:num_requests_waiting_by_reason{{engine="0",reason="capacity"}} 9.0
vllm:kv_cache_usage_perc{{engine="0",model_name="a b"}} 0.25
vllm:generation_tokens_total{{engine="0",model_name="a b"}} {generated}
vllm:generation_tokens_created{{engine="0",model_name="a b"}} 1.7e+09
vllm:prompt_tokens_total{{engine="0",model_name="a b"}} 50.0
vllm:num_preemptions_total{{engine="0",model_name="a b"}} 0.0
vllm:prefix_cache_queries_total{{engine="0",model_name="a b"}} {queried}
vllm:prefix_cache_hits_total{{engine="0",model_name="a b"}} 30.0
"""


def test_a_servers_text_is_read_and_summed_over_its_engines():
    values = read(TEXT.format(running="2.0", generated="1.5e+02", queried="40.0"))
    assert values == {
        "generated": 150.0, "prompts": 50.0, "preemptions": 0.0, "queried": 40.0, "hits": 30.0,
        "running": 3.0, "waiting": 4.0, "kv_use": 0.25,
    }  # fmt: skip
    assert read("") == {}


def test_a_steps_counts_are_what_came_since_the_last_one_also_of_a_server_started_again():
    said = {"running": "0", "generated": "100", "queried": "40"}
    load = Load()
    with standing_in(lambda path, body: (200, TEXT.format(**said).encode())) as server:
        client, gone = EngineClient(server.url), EngineClient("http://127.0.0.1:1")

        def look(in_flight: bool) -> None:
            asyncio.run(load.look([client, gone], in_flight))

        assert load.take(1.0) == {}  # nothing was measured yet
        look(False)
        said |= {"running": "7", "generated": "300"}
        look(True)
        said |= {"running": "3", "queried": "100"}
        look(True)
        assert load.take(4.0) == {
            "engine/response_tokens_per_s": 50.0,
            "engine/prompt_tokens_per_s": 0.0,
            "engine/preemptions": 0.0,
            "engine/prefix_hit_share": 0.0,  # no hit more, of 60 tokens
            "engine/running": 6.0,
            "engine/waiting": 4.0,
            "engine/kv_use": 0.25,
        }
        said |= {"generated": "80"}  # counts from 0 again
        look(False)
        again = load.take(4.0)
    assert again["engine/response_tokens_per_s"] == 20.0
    assert "engine/running" not in again  # nothing was measured while requests were in flight


@pytest.mark.slow
def test_an_engine_tells_what_it_has_computed(served: Served) -> None:
    load = Load()
    fleet = Fleet([served.engine.client()], load=load)
    prompt = list(range(1, 65))  # two blocks of its cache
    requests = [GenerationRequest(prompt, 200, seed=seed) for seed in range(4)]
    fleet.generate_sync(requests)
    asyncio.run(load.look(fleet.clients, in_flight=False))
    told = load.take(busy_s=2.0)
    assert told["engine/response_tokens_per_s"] == 4 * 200 / 2.0
    assert told["engine/prompt_tokens_per_s"] == 4 * 64 / 2.0
    assert told["engine/preemptions"] == 0
    assert 0 < told["engine/prefix_hit_share"] < 1
    # whether it is looked at while it computes is a matter of time
    assert set(read(asyncio.run(fleet.clients[0].metrics()))) == {*COUNTERS, *GAUGES}
