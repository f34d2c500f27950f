"""A Ray cluster that the driver is connected to, and two ways to put workers on it.

`stream` is Ray Data: it hands chunks to a pool of actors and brings their reports as they come. Its
own answer to a dead process is to try the same chunk again for ever (`max_task_retries` -1), which
an image that kills its process turns into a job that never ends; so chunks are never retried there,
and what was lost is for `alone`: one image at a time in a process that is known by name.
"""

from __future__ import annotations

import os
import warnings
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any, final

from dinoprobe.datasets.transport import pack, to_bytes
from dinoprobe.errors import StoreError
from dinoprobe.ray_engine.connection import connect, load_ray, resolved
from dinoprobe.ray_engine.division import Plan, RaySettings, plan
from dinoprobe.ray_engine.report import Report
from dinoprobe.ray_engine.worker import Job, Worker, examine, measured

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from dinoprobe.engine.estimate import Measured
    from dinoprobe.engine.facts import Facts
    from dinoprobe.ray_engine.connection import Say
    from dinoprobe.store import KnownHashes
    from dinoprobe.types import Sample

_WAIT_S = 10.0
_PER_LANE = 16  # images that are worth a process of their own, one by one


@final
class Cluster:
    """What the driver does with a cluster that it is connected to."""

    def __init__(self, ray: Any, division: Plan) -> None:
        self._ray = ray
        self.plan = division

    def facts(self, job: Job, say: Say) -> Facts:
        """What a worker says of the encoder. Raises what its opening raises."""
        found: Facts = self._call(examine, job, say=say)
        return found

    def measure(self, job: Job, samples: Sequence[Sample], say: Say) -> Measured:
        """What one worker takes for these samples."""
        chunk = to_bytes([pack(number, sample) for number, sample in enumerate(samples)])
        found: Measured = self._call(measured, job, chunk, say=say)
        return found

    def _call(self, function: Callable[..., Any], *arguments: Any, say: Say) -> Any:
        """In a process with the resources of a worker. Raises the error that it reports."""
        remote = self._ray.remote(max_retries=2, **self._resources())(function)
        reference = remote.remote(*arguments)
        while not self._ray.wait([reference], timeout=_WAIT_S)[0]:
            say(
                f"Waiting for a worker with {self.plan.cpus} CPUs and {self.plan.gpus:g} GPUs: it "
                "starts, loads the encoder, or waits for other jobs on the cluster."
            )
        found = self._ray.get(reference)
        if isinstance(found, Report):
            found.check()
        return found

    def share(self, known: KnownHashes) -> Any:
        """A reference to what all workers read: one copy a node."""
        return self._ray.put(known)

    def room_bytes(self) -> int:
        """What the nodes keep in memory of objects on their way."""
        return int(self._ray.cluster_resources().get("object_store_memory", 1 << 30))

    def stream(
        self, chunks: Sequence[bytes], job: Job, known: Any, *, queued: int
    ) -> Iterator[Report]:
        """The reports of the chunks, as they come, with at most `queued` of them at each actor. A
        chunk whose actor died tells nothing more, and the actor is started again.
        """
        data = self._ray.data
        context = data.DataContext.get_current()
        context.max_errored_blocks = -1
        context.target_max_block_size = 1  # a report is sent when it is made, and not collected
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        rows = data.from_items([{"chunk": chunk} for chunk in chunks],
                               override_num_blocks=len(chunks))  # fmt: skip
        size = min(self.plan.actors, len(chunks))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of max_restarts, without another
            reports = rows.map_batches(
                _Actor,
                fn_constructor_args=(job, known),
                batch_size=1,
                batch_format="numpy",
                compute=data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=queued),
                max_restarts=-1,
                max_task_retries=0,
                **self._resources(),
            )
        batches = reports.iter_batches(batch_size=None, prefetch_batches=0, batch_format="numpy")
        for batch in batches:
            yield from map(Report.from_json, batch["report"])

    def alone(
        self, chunks: Sequence[bytes], job: Job, known: Any
    ) -> Iterator[tuple[int, list[Report] | str]]:
        """For each chunk its number with its reports, or with how its process died, twice. A chunk
        is the only thing that its process does meanwhile, and a second try has a fresh process.
        """
        ray = self._ray
        make = ray.remote(max_restarts=0, max_task_retries=0, **self._resources())(_Trial)
        waiting = list(enumerate(chunks))[::-1]
        lanes: dict[Any, tuple[Any, int, int]] = {}

        def begin(actor: Any, number: int, deaths: int) -> None:
            lanes[actor.reports.remote(chunks[number])] = (actor, number, deaths)

        for _ in range(min(self.plan.actors, -(-len(waiting) // _PER_LANE))):
            begin(make.remote(job, known), waiting.pop()[0], 0)
        while lanes:
            reference = ray.wait(list(lanes))[0][0]
            actor, number, deaths = lanes.pop(reference)
            try:
                yield number, [Report.from_json(text) for text in ray.get(reference)]
            except ray.exceptions.RayTaskError as error:
                raise StoreError(f"a worker failed: {error}") from error
            except ray.exceptions.RayError as error:
                actor = make.remote(job, known)
                if not deaths:
                    begin(actor, number, 1)
                    continue
                yield number, type(error).__name__
            if waiting:
                begin(actor, waiting.pop()[0], 0)

    def _resources(self) -> dict[str, float]:
        return {"num_cpus": self.plan.cpus, "num_gpus": self.plan.gpus}


@final
class _Actor:
    """A worker as Ray Data calls it."""

    def __init__(self, job: Job, known: Any) -> None:
        import ray

        self._worker = Worker(job, ray.get(known))

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, list[str]]]:
        for chunk in batch["chunk"]:
            for report in self._worker.reports(chunk):
                yield {"report": [report.to_json()]}


@final
class _Trial:
    """A worker as an actor of its own. A reference among the arguments comes as its value."""

    def __init__(self, job: Job, known: KnownHashes) -> None:
        self._worker = Worker(job, known)

    def reports(self, chunk: bytes) -> list[str]:
        return [report.to_json() for report in self._worker.reports(chunk)]


@contextmanager
def connected(settings: RaySettings, say: Say) -> Iterator[Cluster]:
    """The cluster at the address, left at the end; a local one ends with it.

    Raises MissingExtraError without Ray, ConfigurationError where there is no cluster or it is too
    small. Ray's own messages go to its log files: on stdout they would stand in a JSON document.
    """
    settings.check()
    address = resolved(settings.address, say)
    ray = load_ray(address)
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        connect(ray, address)
        stack.callback(ray.shutdown)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        division = plan(nodes, settings)
        say(
            f"Ray cluster of {len(nodes)} nodes: {division.actors} workers with {division.cpus} "
            f"CPUs and {division.gpus:g} GPUs each"
        )
        yield Cluster(ray, division)
