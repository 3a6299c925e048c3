"""A stand-in for an engine that can sleep, which vLLM's on a CPU cannot. Like a GPU, it refuses
calls that would touch memory that is not there, and it checks the order in which the memory comes
back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from aent.weights.manifest import Checksums
from aent.weights.memory import OpenedMemory, arriving
from aent.weights.memory_layout import Address
from inference.stand_in import Answer

BOTH = frozenset(("weights", "kv_cache"))


class Broken(Exception):
    """On a GPU: an illegal memory access, or two that do not fit beside one another."""


@dataclass
class SleepyEngine:
    """Its ``answer`` is for ``standing_in``. Routes and rules of vLLM 0.32.0."""

    room: Callable[[], bool]  # whether the trainer has made room for it
    awake: frozenset[str] = BOTH
    paused: bool = False
    updating: bool = False
    weights: dict[str, Tensor] | None = field(default_factory=dict)  # None: not sent
    version: str = "default"
    memories: list[OpenedMemory] = field(default_factory=list)
    received: Checksums = field(default_factory=Checksums)
    told: list[str] = field(default_factory=list)  # what it did, in order

    def answer(self, path: str, sent: dict[str, Any]) -> Answer:
        name = path.strip("/").replace("/", "_")
        try:
            return 200, getattr(self, f"_{name}")(sent)
        except Broken as error:
            return 409, {"error": {"message": f"{path}: {error}"}}

    def _demand(self, holds: bool, what: str) -> None:
        if not holds:
            raise Broken(what)

    def _sleep(self, sent: dict[str, Any]) -> dict[str, Any]:
        self._demand(not self.updating, "an update is open")
        self.paused = True
        if "weights" in self.awake:
            self.awake = frozenset()
            if sent["level"] == "2":
                self.weights = None
            self.told.append(f"sleep {sent['level']}")
        return {"status": "sleeping"}

    def _is_sleeping(self, sent: dict[str, Any]) -> dict[str, Any]:
        return {"is_sleeping": self.paused or self.awake != BOTH}

    def _wake_up(self, sent: dict[str, Any]) -> dict[str, Any]:
        part = sent["tags"]
        if part not in self.awake:
            self._demand(self.room(), f"no room for {part}")
            self.awake |= {part}
            self.told.append(f"wake {part}")
        if self.awake == BOTH:
            self.paused = False
        return {"status": "awake" if self.awake == BOTH else "sleeping"}

    def _pause(self, sent: dict[str, Any]) -> dict[str, Any]:
        self.paused = True
        return {}

    def _resume(self, sent: dict[str, Any]) -> dict[str, Any]:
        self._demand(self.awake == BOTH, "resumed without its memory")
        self.paused = False
        return {}

    def _weight_info(self, sent: dict[str, Any]) -> dict[str, Any]:
        return {"weight_version": self.version}

    def _collective_rpc(self, sent: dict[str, Any]) -> dict[str, Any]:
        if sent["method"] == "aent_open_memories":
            addresses = json.loads(sent["kwargs"]["addresses"])
            self.memories = [OpenedMemory.open(Address(**each)) for each in addresses]
            return {"results": [[]]}
        if sent["method"] == "aent_received":
            found = self.received.manifest()
            return {
                "results": [{n: [list(s.shape), s.dtype, s.checksum] for n, s in found.items()}]
            }
        return {"results": [None]}

    def _start_weight_update(self, sent: dict[str, Any]) -> dict[str, Any]:
        self._demand(self.awake == {"weights"}, f"an update with {sorted(self.awake)} awake")
        self.updating, self.received = True, Checksums()
        return {}

    def _update_weights(self, sent: dict[str, Any]) -> dict[str, Any]:
        self._demand(self.updating and "weights" in self.awake, "weights without an update")
        info = sent["update_info"]
        new = arriving(self.memories, info["update"], info["timeout_s"])
        self.weights = {name: tensor.clone() for name, tensor in new}
        for name, tensor in self.weights.items():
            self.received.add(name, tensor)
        self.told.append("weights")
        return {}

    def _finish_weight_update(self, sent: dict[str, Any]) -> dict[str, Any]:
        self._demand(self.updating, "no update is open")
        self.updating, self.version = False, sent.get("weight_version", self.version)
        return {}

    def _reset_prefix_cache(self, sent: dict[str, Any]) -> dict[str, Any]:
        return {"success": True}

    def _inference_v1_generate(self, sent: dict[str, Any]) -> dict[str, Any]:
        self._demand(self.awake == BOTH and not self.paused, "asked while it sleeps")
        self._demand(self.weights is not None, "it has no weights")
        self.told.append("generate")
        return {}
