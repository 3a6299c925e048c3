"""The load of a run's engines in each step, from their own metrics (``vllm_metrics``).

A server that others use too (``rollout.urls``) counts all requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aent.inference.http import EngineError
from aent.inference.vllm_metrics import COUNTERS, read

if TYPE_CHECKING:
    from aent.inference.client import EngineClient

# polling intervals while requests are in flight: short at first, for short responses
FIRST_S, OFTENEST_S = 0.25, 5.0


@dataclass
class Load:
    """The engines' metrics since the last step's record."""

    _before: dict[str, dict[str, float]] = field(default_factory=dict)  # counters then, by address
    _newest: dict[str, dict[str, float]] = field(default_factory=dict)
    # at each poll while requests were in flight: sums over engines; of kv_use the largest value
    _looks: list[dict[str, float]] = field(default_factory=list)

    async def watch(self, clients: Sequence[EngineClient]) -> None:
        """Poll until this is cancelled."""
        await self.look(clients, in_flight=False)
        pause_s = FIRST_S
        while True:
            await asyncio.sleep(pause_s)
            await self.look(clients, in_flight=True)
            pause_s = min(2 * pause_s, OFTENEST_S)

    async def look(self, clients: Sequence[EngineClient], in_flight: bool) -> None:
        """Ask every engine once. One that does not answer is left out; others check its health."""
        clients = list(clients)  # one may be lost meanwhile
        answers = await asyncio.gather(
            *(client.metrics() for client in clients), return_exceptions=True
        )
        said = []
        for client, answer in zip(clients, answers):
            if isinstance(answer, EngineError):
                continue
            if isinstance(answer, BaseException):
                raise answer
            values = read(answer)
            self._before.setdefault(client.url, values)
            self._newest[client.url] = values
            said.append(values)
        if in_flight and said:
            self._looks.append(
                {
                    "running": sum(values.get("running", 0.0) for values in said),
                    "waiting": sum(values.get("waiting", 0.0) for values in said),
                    "kv_use": max(values.get("kv_use", 0.0) for values in said),
                }
            )

    def take(self, busy_s: float) -> dict[str, float]:
        """Return the metrics of the step (docs/metrics.md), and start again.

        busy_s: seconds in which an engine had requests, the mean over engines.
        """
        grown = dict.fromkeys(COUNTERS, 0.0)
        for url, newest in list(self._newest.items()):  # another thread may add one
            before = self._before.get(url, newest)  # or may just have done so
            again = newest.get("generated", 0.0) < before.get("generated", 0.0)  # another process
            for name in COUNTERS:
                start = 0.0 if again else before.get(name, 0.0)
                grown[name] += newest.get(name, 0.0) - start
        looks, known = self._looks, bool(self._newest)
        self._before, self._looks = dict(self._newest), []
        if not known:
            return {}
        metrics = {"engine/preemptions": grown["preemptions"]}
        if busy_s > 0:
            metrics["engine/response_tokens_per_s"] = grown["generated"] / busy_s
            metrics["engine/prompt_tokens_per_s"] = grown["prompts"] / busy_s
        if grown["queried"] > 0:
            metrics["engine/prefix_hit_share"] = grown["hits"] / grown["queried"]
        if looks:
            metrics["engine/running"] = sum(look["running"] for look in looks) / len(looks)
            metrics["engine/waiting"] = sum(look["waiting"] for look in looks) / len(looks)
            metrics["engine/kv_use"] = max(look["kv_use"] for look in looks)
        return metrics
