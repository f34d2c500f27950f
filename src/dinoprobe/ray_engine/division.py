"""How a cluster is divided among workers: what was asked for, against what its nodes have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dinoprobe.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


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
