"""What a process that hands out work is told of an encoder that other processes hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dinoprobe.engine.ledger import RowKind, row_kind

if TYPE_CHECKING:
    from dinoprobe.engine.pipeline import EncoderLike


@dataclass(frozen=True, slots=True)
class Facts:
    """An encoder without its weights, for a process that need not be able to run it."""

    kind: RowKind
    dimension: int
    fingerprint: str
    description: dict[str, Any]
    base_fingerprint: str | None
    pooling: str | None
    name: str
    backend: str
    precision: str
    notes: tuple[str, ...]


def facts_of(encoder: EncoderLike) -> Facts:
    """What another process needs to know."""
    return Facts(
        kind=row_kind(encoder),
        dimension=encoder.dimension,
        fingerprint=encoder.fingerprint,
        description=dict(encoder.description),
        base_fingerprint=getattr(encoder, "base_fingerprint", None),
        pooling=getattr(encoder, "pooling", None),
        name=getattr(encoder, "name", type(encoder).__name__),
        backend=getattr(encoder, "backend", "torch"),
        precision=getattr(encoder, "precision", "float32"),
        notes=tuple(getattr(encoder, "notes", ())),
    )
