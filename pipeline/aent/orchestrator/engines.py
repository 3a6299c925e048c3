"""Rank 0's engines: found, given new weights, and asked for the probe."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from torch import Tensor

from aent.data.batch import Batch
from aent.data.sample import Sample
from aent.inference import registry, sleep
from aent.inference.client import EngineClient
from aent.inference.fleet import Fleet
from aent.inference.http import EngineError, TransientError
from aent.inference.load import Load
from aent.inference.sleep import Level
from aent.orchestrator.offer import Offer
from aent.recipe.schema import Recipe
from aent.runtime.environment import device_kind
from aent.runtime.network import LOOPBACK, is_local, own_address
from aent.runtime.worker_thread import WorkerThread
from aent.weights import probe
from aent.weights.by_memory import Memories
from aent.weights.manifest import Manifest, expected_manifest
from aent.weights.probe import Probe, Seen
from aent.weights.weight_transfer import TransferSettings, WeightSender, WeightSyncError


@dataclass
class Engines:
    """The run's engines. Made by ``reach``."""

    recipe: Recipe
    run_dir: Path
    fleet: Fleet
    sender: WeightSender
    manifest: Manifest  # what every weight update must carry
    probe: Probe
    say: Callable[[str], None]
    sent_again: int | None = None  # the last weight version that was, to healthy engines
    # held from before an update until the engines have been found to compute with its weights;
    # by others, while they make final what was sampled
    unproven: threading.Lock = field(default_factory=threading.Lock)
    _updating: bool = False  # whether this object holds it
    _asking: WorkerThread | None = None
    _asked: Future[dict[str, Seen]] | None = None  # the probe of the newest weights

    @staticmethod
    def reach(
        recipe: Recipe,
        run_dir: Path,
        model_path: Path,
        prompts: Iterator[list[int]],
        say: Callable[[str], None],
        progress: Callable[[], None],
        offer: Offer,
    ) -> Engines:
        """Wait for every engine and connect to it for weights.

        prompts: token ids of chat prompts, of which the probe's text is made.
        offer: memory through which weights may be sent.
        Raises EngineError after ``start_timeout_s``.
        """
        found = asyncio.run(find_engines(recipe, run_dir, progress))
        fleet = Fleet(
            found,
            recipe.rollout.min_engines,
            on_loss=lambda client: registry.give_up(run_dir, client.url),
            known=partial(known_engines, recipe, run_dir),
            load=Load(),
        )
        sender = WeightSender(fleet.clients, transfer_settings(recipe, fleet))
        way = asyncio.run(choose_way(sender, offer))
        if recipe.rollout.colocated and not sender.is_shared:
            raise EngineError(
                "rollout.placement=colocated needs memory that trainer and engines can both open: "
                + way.removeprefix("aent: ")
            )
        say(way)
        asyncio.run(sender.connect())
        block = asyncio.run(fleet.clients[0].block_size())
        room = recipe.rollout.max_prompt_tokens + recipe.rollout.max_response_tokens
        text = probe.text_of(prompts, probe.length_of(block, room))
        return Engines(
            recipe,
            run_dir,
            fleet,
            sender,
            expected_manifest(model_path, recipe.model.dtype),
            Probe(text, block, recipe.rollout.probe_tolerance),
            say,
        )

    def push(self, weights: Iterator[tuple[str, Tensor]], version: int) -> bool:
        """Send the weights to every engine, including restarted ones, and verify each tensor.

        Responses that are being written continue with the new weights; they are not final before
        ``check_probe`` has passed. Returns False if the weights must be sent again: an engine was
        lost meanwhile, or the connection to a healthy one broke for the first time.
        """
        if not self._updating:  # else the weights are sent again
            self.unproven.acquire()
            self._updating = True
        with self.fleet.paused():
            return self._push(weights, version)

    def _push(self, weights: Iterator[tuple[str, Tensor]], version: int) -> bool:
        try:
            for words in asyncio.run(self.fleet.readmit(version)):
                self.say(words)
            asyncio.run(self.sender.push(weights, version, self.manifest))
        except EngineError as error:
            if not asyncio.run(self.fleet.drop_lost(error)):
                if not isinstance(error, TransientError) or self.sent_again == version:
                    raise
                self.sent_again = version
                words = str(error).partition("\n")[0]
                self.say(f"aent: weight version {version} is sent again: {words}")
            return False
        return True

    def begin_probe(self) -> Sample:
        """Ask every engine for its log-probs of the probe's text, while the trainer computes its
        own; return the text, as a sample. ``check_probe`` has the answers."""
        if self._asking is None:
            self._asking = WorkerThread("asking for the probe")
        self._asked = self._asking.submit(self._ask_probe)
        first, *others = self.probe.text
        nothing = [0.0] * len(others)
        return Sample([first], others, nothing, [0] * len(others), "length", 0, 0)

    def _ask_probe(self) -> dict[str, Seen]:
        """Each engine's answer, by address; a lost engine is dropped. Raises EngineError."""

        async def ask(clients: Sequence[EngineClient]) -> list[Seen | BaseException]:
            asked = (probe.ask(client, self.probe.text, self.probe.block) for client in clients)
            return await asyncio.gather(*asked, return_exceptions=True)

        clients = list(self.fleet.clients)  # another thread may lose one
        answers = dict(zip((c.url for c in clients), asyncio.run(ask(clients))))
        errors = [answer for answer in answers.values() if isinstance(answer, EngineError)]
        if errors:
            asyncio.run(self.fleet.drop_lost(errors[0]))
        seen = {}
        for client in list(self.fleet.clients):
            answer = answers[client.url]
            if isinstance(answer, BaseException):
                raise answer
            seen[client.url] = answer
        return seen

    def check_probe(self, batch: Batch, log_probs: Tensor, version: int) -> None:
        """Compare the engines' log-probs of the probe's text with the trainer's (``log_probs`` of
        ``batch``). Raises WeightSyncError naming engine and cause, EngineError if an engine did not
        answer."""
        assert self._asked is not None
        seen = self._asked.result()  # its calls have deadlines
        ours = log_probs[batch.loss_mask].float().cpu()
        faults = self.probe.judge(list(seen.values()), ours, version)
        told = [f"{url} {fault}" for url, fault in zip(seen, faults) if fault]
        if told:
            raise WeightSyncError(f"weight version {version}: {'; '.join(told)}")
        self._updating = False
        self.unproven.release()

    def sleep(self, level: Level) -> None:
        """Have every engine leave its GPUs (``inference.sleep``). Raises EngineError."""
        timeout_s = self.sender.settings.timeout_s
        asyncio.run(sleep.fall_asleep(self.fleet.clients, level, timeout_s))

    def wake(self) -> None:
        """Have every engine, which has kept its weights, take its GPUs back. Raises EngineError."""

        async def in_turn() -> None:
            for part in sleep.PARTS:
                await sleep.wake(self.fleet.clients, part, self.sender.settings.timeout_s)

        asyncio.run(in_turn())

    def take_busy_s(self) -> float:
        """Mean over engines of the seconds, since the last call, in which one had requests."""
        return self.fleet.clock.take_busy_s() / len(self.fleet.clients)

    def take_load(self, busy_s: float) -> dict[str, float]:
        """The engines' own measurements, as metrics of the step (``inference.load``)."""
        load = self.fleet.load
        if load is None:
            return {}
        asyncio.run(load.look(self.fleet.clients, in_flight=False))
        return load.take(busy_s)


async def choose_way(sender: WeightSender, offer: Offer) -> str:
    """Send weights through the memory that is offered if all engines are on this machine and can
    open it, else over the network; return a line for the log. The choice holds for the run."""
    by_network = f"aent: weights reach the engines by {sender.settings.backend}, from rank 0"
    if offer.own is None:
        return f"{by_network} ({offer.why_not})" if offer.why_not else by_network
    if not all(is_local(client.url) for client in sender.clients):
        return f"{by_network} (not all engines are on this machine)"
    try:
        memories = Memories.of(offer.own, offer.addresses)
    except (OSError, ValueError) as error:  # another rank's, on another machine
        return f"{by_network} (rank 0 cannot open every stage's memory: {error})"
    if reason := await sender.share(memories):
        return f"{by_network} ({reason})"
    if offer.own.address.gpu:
        return "aent: weights reach each engine by CUDA IPC, from the rank on its GPU"
    return "aent: weights reach the engines through shared memory, from every pipeline stage"


def put_to_sleep(recipe: Recipe, run_dir: Path, progress: Callable[[], None]) -> None:
    """Wait for engines that share the trainer's GPUs, and have them leave those.

    Whoever wants to use such a GPU waits for this: vLLM measures at its start how much memory is
    free, and would take a rank's for its own. Raises EngineError.
    """

    async def in_turn() -> None:
        found = await find_engines(recipe, run_dir, progress)
        await sleep.fall_asleep(found, sleep.DROP_WEIGHTS, recipe.rollout.transfer_timeout_s)

    asyncio.run(in_turn())


async def find_engines(
    recipe: Recipe, run_dir: Path, progress: Callable[[], None]
) -> list[EngineClient]:
    """A client per engine, each ready: first engines given by URL, then those of this run.

    Raises EngineError after ``start_timeout_s``.
    """
    rollout = recipe.rollout
    patience_s = rollout.engine.start_timeout_s
    await registry.wait(run_dir, rollout.engines, patience_s, progress)
    clients = known_engines(recipe, run_dir)
    for client in clients:
        await client.wait_ready(patience_s, progress)
    return clients


def known_engines(recipe: Recipe, run_dir: Path) -> list[EngineClient]:
    """A client per engine that has an address now."""
    rollout = recipe.rollout
    token = None
    if rollout.token_file is not None:
        token = registry.read_token(Path(rollout.token_file).expanduser())
    clients = [EngineClient(url.rstrip("/"), token=token) for url in rollout.urls]
    clients += registry.published(run_dir, rollout.engines)
    for client in clients:
        client.progress_timeout_s = rollout.progress_timeout_s
        client.concurrency = rollout.concurrency
    return clients


def transfer_settings(recipe: Recipe, fleet: Fleet) -> TransferSettings:
    """How weights travel to these engines, as the recipe says."""
    rollout = recipe.rollout
    backend: Literal["gloo", "nccl"] = "gloo"
    if rollout.transfer_backend == "nccl" or (
        rollout.transfer_backend == "auto" and device_kind() == "cuda"
    ):
        backend = "nccl"
    together = all(is_local(client.url) for client in fleet.clients)
    return TransferSettings(
        backend=backend,
        bucket_bytes=rollout.transfer_bucket_mib * 2**20,
        timeout_s=rollout.transfer_timeout_s,
        master_address=LOOPBACK if together else own_address(),
        asleep=rollout.colocated,
    )
