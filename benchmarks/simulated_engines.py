"""Engines that decode in batches, for the cluster's simulation."""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass, field

from aent.models.decoder import ModelFacts
from aent.models.flops import ForwardFlops


@dataclass(frozen=True)
class Machine:
    """One GPU: the data sheet of an H100 SXM, and how much of it is reached."""

    flops: float = 989e12  # dense bfloat16, per second
    bytes: float = 3.35e12  # of its memory, per second
    mfu: float = 0.35  # of the trainer
    bandwidth: float = 0.6  # share that decoding reaches
    overhead_s: float = 0.004  # of an iteration: kernels started, sampling, HTTP
    link: float = 25e9  # bytes per second, of weights to the engines
    probe_s: float = 1.0  # pause, checks and probe of an update


@dataclass(frozen=True)
class Decoding:
    """Seconds of one engine's iteration: fixed + each sequence's + each cached token's."""

    fixed_s: float
    sequence_s: float
    context_s: float

    @staticmethod
    def of(facts: ModelFacts, gpus: int, machine: Machine) -> Decoding:
        read_s = 1 / (gpus * machine.bytes * machine.bandwidth)
        products = ForwardFlops.of(facts)
        token = (products.token + products.predicted) / (gpus * machine.flops * machine.mfu)
        cached = 2 * 2 * facts.layers * facts.kv_groups * facts.head_dim  # bytes of a token
        return Decoding(machine.overhead_s + 2 * facts.parameters * read_s, token, cached * read_s)

    def seconds(self, iterations: float, running: int, context: float) -> float:
        """Of so many iterations of ``running`` sequences that have ``context`` tokens together."""
        grown = running * iterations**2 / 2
        fixed = self.fixed_s + self.sequence_s * running
        return iterations * fixed + self.context_s * (iterations * context + grown)

    def iterations(self, seconds: float, running: int, context: float) -> float:
        """The inverse of ``seconds``."""
        a = self.context_s * running / 2
        b = self.fixed_s + self.sequence_s * running + self.context_s * context
        return seconds / b if a == 0 else (math.sqrt(b * b + 4 * a * seconds) - b) / (2 * a)


@dataclass
class Engine:
    """A batch that decodes: sequences that run, by the iteration at which they end, and those that
    wait. Each is (its step, prompt tokens, response tokens)."""

    decoding: Decoding
    concurrency: int
    waiting: deque[tuple[int, int, int]] = field(default_factory=deque)
    running: list[tuple[float, int, int]] = field(default_factory=list)  # (end, step, tokens)
    iteration: float = 0.0
    context: float = 0.0
    now: float = 0.0
    busy_s: float = 0.0

    def fill(self) -> None:
        while self.waiting and len(self.running) < self.concurrency:
            step, prompt, response = self.waiting.popleft()
            heapq.heappush(self.running, (self.iteration + response, step, prompt + response))
            self.context += prompt

    def next_end(self) -> float:
        if not self.running:
            return math.inf
        left = self.running[0][0] - self.iteration
        return self.now + self.decoding.seconds(left, len(self.running), self.context)

    def advance(self, now: float, paused: bool = False) -> list[int]:
        """Advance to ``now``, at most to the next end; return the steps of the ended sequences."""
        if self.running and not paused:
            count, seconds = len(self.running), now - self.now
            done = self.decoding.iterations(seconds, count, self.context)
            self.iteration += done
            self.context += done * count
            self.busy_s += seconds
        self.now = now
        ended = []
        while self.running and self.running[0][0] <= self.iteration + 1e-6:
            _, step, tokens = heapq.heappop(self.running)
            self.context -= tokens
            ended.append(step)
        self.fill()
        return ended
