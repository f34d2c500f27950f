"""A Ray cluster: getting there quietly, what it has room for, and two ways to put workers on it.

`stream` is Ray Data: it hands chunks to a pool of actors and brings their reports as they come. Its
own answer to a dead process is to try the same chunk again for ever (`max_task_retries` -1), which
an image that kills its process turns into a job that never ends; so chunks are never retried there,
and what was lost is for `alone`: one image at a time in a process that is known by name.
"""

from __future__ import annotations

import logging
import os
import secrets
import warnings
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from dinoprobe.errors import ConfigurationError, MissingExtraError, StoreError
from dinoprobe.ray_engine.report import Report
from dinoprobe.ray_engine.worker import Facts, Job, Worker, examine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from dinoprobe.store import KnownHashes

    Say = Callable[[str], None]

_FAR_TOO_LARGE = 1 << 50
_WAIT_S = 10.0


@dataclass(frozen=True, slots=True)
class RaySettings:
    """Which cluster, and how it is divided. None: one worker for each GPU, or for each node without
    one, with all the cores that are there.
    """

    address: str = "auto"
    actors: int | None = None
    gpus_per_actor: float | None = None
    cpus_per_actor: int | None = None

    def check(self) -> None:
        """Raises ConfigurationError for numbers that make no sense."""
        for name, value, least in (
            ("actors", self.actors, 1),
            ("CPUs for an actor", self.cpus_per_actor, 1),
            ("GPUs for an actor", self.gpus_per_actor, 0),
        ):
            if value is not None and not value >= least:
                raise ConfigurationError(
                    f"{name}: {value}. Expected at least {least}. Leave it out to take what the "
                    "cluster has."
                )


@dataclass(frozen=True, slots=True)
class Plan:
    """So many actors, each with so much."""

    actors: int
    cpus: int
    gpus: float


def plan(nodes: Sequence[Mapping[str, float]], settings: RaySettings) -> Plan:
    """How nodes with these resources (`CPU`, `GPU`) are divided. Raises ConfigurationError where
    not one actor fits.
    """
    with_gpu = [node for node in nodes if node.get("GPU", 0) > 0]
    gpus = settings.gpus_per_actor
    if gpus is None:
        gpus = 1.0 if with_gpu else 0.0
    usable = with_gpu if gpus else list(nodes)
    cpus = settings.cpus_per_actor
    if cpus is None:
        shares = [node.get("CPU", 0) / max(1.0, node.get("GPU", 0) // gpus if gpus else 1.0)
                  for node in usable]  # fmt: skip
        cpus = max(1, int(min((share for share in shares if share >= 1), default=1)))
    fit = sum(
        int(min(node.get("CPU", 0) // cpus, node.get("GPU", 0) // gpus if gpus else float("inf")))
        for node in usable
    )
    if not fit:
        has = ", ".join(
            f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes
        )
        raise ConfigurationError(
            f"no node has {cpus} CPUs and {gpus:g} GPUs for an actor: the cluster has nodes of "
            f"{has or 'nothing'}. Ask for less with --cpus-per-actor and --num-gpus-per-actor."
        )
    return Plan(min(settings.actors or fit, fit), cpus, gpus)


@final
class Cluster:
    """What the driver does with a cluster that it is connected to."""

    def __init__(self, ray: Any, division: Plan) -> None:
        self._ray = ray
        self.plan = division

    def facts(self, job: Job, say: Say) -> Facts:
        """What a worker says of the encoder. Raises what its opening raises."""
        remote = self._ray.remote(max_retries=2, **self._resources())(examine)
        reference = remote.remote(job)
        while not self._ray.wait([reference], timeout=_WAIT_S)[0]:
            say(
                f"Waiting for a worker with {self.plan.cpus} CPUs and {self.plan.gpus:g} GPUs: it "
                "starts, loads the encoder, or waits for other jobs on the cluster."
            )
        found: Facts | Report = self._ray.get(reference)
        if isinstance(found, Report):
            found.check()
        return found  # type: ignore[return-value]

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
        for batch in reports.iter_batches(
            batch_size=None, prefetch_batches=0, batch_format="numpy"
        ):
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

        for _ in range(min(self.plan.actors, len(waiting))):
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
    ray = _load_ray(settings.address)
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        _connect(ray, settings.address, say)
        stack.callback(ray.shutdown)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        division = plan(nodes, settings)
        say(
            f"Ray cluster of {len(nodes)} nodes: {division.actors} workers with {division.cpus} "
            f"CPUs and {division.gpus:g} GPUs each"
        )
        yield Cluster(ray, division)


def _load_ray(address: str) -> Any:
    """Ray, without what it reports home and writes to the terminal. The environment is read when
    Ray is imported, and handed on to the processes of a local cluster.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if address == "local":
        _require_token()
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingExtraError("--engine ray", "ray") from error
    for handler in list(logging.getLogger("ray.data").handlers):
        if type(handler).__name__ == "PlainRayHandler":
            logging.getLogger("ray.data").removeHandler(handler)
    return ray


def _require_token() -> None:
    """Who may talk to the local cluster: who has its token. Ray would write one to the home."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _connect(ray: Any, address: str, say: Say) -> None:
    if ray.is_initialized():
        raise ConfigurationError(
            "this process is connected to a Ray cluster already. Expected none. Call "
            "ray.shutdown() before."
        )
    quiet = {"log_to_driver": False, "logging_level": logging.CRITICAL, "configure_logging": True}
    try:
        with _silent_stderr():
            if address == "local":
                ray.init(address="local", include_dashboard=False, **quiet)
            else:
                ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        if address == "auto":
            say("No Ray cluster runs here: one is started on this machine, for this run.")
            _connect(ray, "local", say)
            return
        first_line = str(error).strip().splitlines()[0][:300]
        raise ConfigurationError(
            f"--address {address}: no Ray cluster there ({first_line}). Expected one that runs: "
            "start it with `ray start`, or use --address local for this machine alone."
        ) from error


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Without what Ray's C++ part writes to the descriptor itself while it starts."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
