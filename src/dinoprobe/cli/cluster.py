"""`dinoprobe embed --engine ray`: its options, and its way to the same outcome."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from dinoprobe.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from dinoprobe.cli.console import Console
    from dinoprobe.encoder import Encoder, EncoderSettings
    from dinoprobe.engine import EncoderLike, Estimate, Facts, Flush
    from dinoprobe.engine.pipeline import Auto
    from dinoprobe.ray_engine import Cluster, Job
    from dinoprobe.store import FeatureStore
    from dinoprobe.types import Dataset, Failure, Features

_PANEL = "Ray cluster"
ENGINES = ("local", "ray")

Engine = Annotated[
    str,
    typer.Option(
        metavar="local|ray",
        help="What runs it: this process, or workers on a Ray cluster.",
        rich_help_panel=_PANEL,
    ),
]
Address = Annotated[
    str,
    typer.Option(
        metavar="ADDRESS",
        help="Of the cluster: auto (RAY_ADDRESS, or what `ray start` started here, or a new one "
        "on this machine), local (a new one), host:port.",
        rich_help_panel=_PANEL,
    ),
]
Actors = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Workers, at most (default: as many as fit).",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
CpusPerActor = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Cores of a worker (default: those of its node, or its GPU's share of them).",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
GpusPerActor = Annotated[
    float | None,
    typer.Option(
        "--num-gpus-per-actor",
        min=0.0,
        help="GPUs of a worker, also a part of one (default: 1 where there are any).",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
CheckpointEvery = Annotated[
    float,
    typer.Option(
        metavar="SECONDS",
        min=1.0,
        help="What a killed worker, node or driver loses at most.",
        rich_help_panel=_PANEL,
    ),
]


Division: TypeAlias = tuple[str, int | None, float | None, int | None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What either engine gives. A cluster's features are read back only on demand."""

    encoder: Encoder | Facts
    embedded: int
    cached: int
    encoded: int
    failures: tuple[Failure, ...]
    seconds: float
    notes: tuple[str, ...]
    content_digest: str | None
    features: Features | None
    devices: tuple[str, ...] = ()

    @property
    def images_per_second(self) -> float:
        """Images that an encoder saw, over the time of the whole run."""
        return self.encoded / self.seconds if self.seconds > 0 else 0.0


def check_engine(name: str) -> None:
    """Raises ConfigurationError for an engine that there is not."""
    if name not in ENGINES:
        msg = f"engine '{name}': expected one of {', '.join(ENGINES)}."
        raise ConfigurationError(msg)


@dataclass(frozen=True, slots=True)
class Request:
    """What both engines are asked for, and how a cluster is divided."""

    dataset: Dataset
    settings: EncoderSettings
    store: FeatureStore
    batch_size: Auto | int
    flush: Flush
    division: Division


def _opener(settings: EncoderSettings) -> Callable[[], EncoderLike]:
    """What each worker opens the encoder by."""
    from dinoprobe.encoder import open_encoder

    if settings.precision == "int8":
        msg = (
            "--precision int8 with --engine ray: the graph of a dataset is made and judged by one "
            "process. Expected exact, bf16 or auto. Use --engine local for int8."
        )
        raise ConfigurationError(msg)
    if Path(settings.name).exists():
        settings = replace(settings, name=str(Path(settings.name).absolute()))
    return partial(open_encoder, settings)


def _opened(
    console: Console, request: Request
) -> AbstractContextManager[tuple[Cluster, Job, Facts]]:
    """As `opened`, for the encoder of a request."""
    opener = _opener(request.settings)
    uri, size, flush = request.store.uri, request.batch_size, request.flush
    return opened(console, opener, uri, request.division, flush=flush, batch_size=size)


@contextmanager
def opened(
    console: Console,
    opener: Callable[[], EncoderLike],
    store_uri: str,
    division: Division,
    *,
    flush: Flush,
    batch_size: Auto | int = "auto",
) -> Iterator[tuple[Cluster, Job, Facts]]:
    """The cluster with the job for its workers, who open the encoder by `opener`, and what one of
    them says of it.
    """
    from dinoprobe.engine.pipeline import TIMEOUT_S
    from dinoprobe.ray_engine import Job, RaySettings, connected
    from dinoprobe.versions import own_version

    with connected(RaySettings(*division), console.say) as found:
        job = Job(
            open=opener,
            cores=found.plan.cpus,
            version=own_version(),
            store_uri=store_uri,
            batch_size=batch_size,
            timeout_s=TIMEOUT_S,
            report_every_s=flush.seconds / 2,
        )
        facts = found.facts(job, console.say)
        yield found, replace(job, fingerprint=facts.fingerprint), facts


def embed(console: Console, request: Request, *, read_back: bool) -> Outcome:
    """Embed on a cluster, with a commit every `flush.seconds`. Raises what `embed_on_ray` does."""
    from dinoprobe.engine import content_digest
    from dinoprobe.ray_engine import embed_on_ray

    with _opened(console, request) as (found, job, facts):
        done = embed_on_ray(
            request.dataset,
            job,
            facts,
            cluster=found,
            store=request.store,
            flush=request.flush,
            progress=console.progress(),
        )
    features = done.features(facts) if read_back else None
    summary = done.summary
    return Outcome(
        encoder=facts,
        embedded=summary.embedded,
        cached=summary.cached,
        encoded=summary.encoded,
        failures=summary.failures,
        seconds=done.seconds,
        notes=(*facts.notes, *summary.notes),
        content_digest=None if features is None else content_digest(features),
        features=features,
    )


def estimated(console: Console, request: Request) -> tuple[Facts, Estimate]:
    """What it would cost on a cluster, by what one worker does."""
    from dinoprobe.engine import estimate

    with _opened(console, request) as (found, job, facts):
        return facts, estimate(
            request.dataset,
            facts.kind,
            facts.dimension,
            request.store,
            lambda samples: found.measure(job, samples, console.say),
            workers=found.plan.actors,
            retry_failures=request.flush.retry_failures,
        )
