"""The metrics of a vLLM server at /metrics, in Prometheus' text format.

Names and meanings are those of vLLM 0.32.0 (``vllm/v1/metrics/loggers.py``).
"""

from __future__ import annotations

import re

COUNTERS = {  # since the server was started
    "generated": "vllm:generation_tokens_total",
    "prompts": "vllm:prompt_tokens_total",
    "preemptions": "vllm:num_preemptions_total",
    "queried": "vllm:prefix_cache_queries_total",  # tokens that were looked up in the cache
    "hits": "vllm:prefix_cache_hits_total",
}
GAUGES = {
    "running": "vllm:num_requests_running",
    "waiting": "vllm:num_requests_waiting",
    "kv_use": "vllm:kv_cache_usage_perc",  # a share, despite its name
}


def read(text: str) -> dict[str, float]:
    """Counters and gauges of a server's answer, by our names, summed over other labels (the engines
    of vLLM's own data parallelism); missing ones are left out."""
    found: dict[str, float] = {}
    for name, theirs in (COUNTERS | GAUGES).items():
        values = re.findall(rf"^{theirs}(?:\{{.*\}})? (\S+)$", text, re.M)
        if values:
            found[name] = sum(map(float, values))
    return found
