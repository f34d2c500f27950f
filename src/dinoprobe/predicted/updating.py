"""A table of predictions brought up to a dataset: what changed is scored, the rest is kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, final

from dinoprobe.engine import PASSES, lost_rows
from dinoprobe.errors import ConfigurationError
from dinoprobe.predicted.columns import State, failed_batch, schema, scored_batch, state_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from collections.abc import Set as AbstractSet
    from typing import Any

    from dinoprobe.classifier import ImageClassifier
    from dinoprobe.engine import Ledger
    from dinoprobe.predicted.tables import Table
    from dinoprobe.predicted.terms import Terms
    from dinoprobe.store import FeatureStore
    from dinoprobe.types import Failure, Sample

BLOCK_ROWS = 4096


class Updated(NamedTuple):
    """How many rows the table has now, were kept, scored, or dropped for their image is gone; of
    all rows, how many failed, of those scored how many abstained or are novel. `because` is what
    rows were scored by otherwise before, where all were scored again for it.
    """

    rows: int
    kept: int
    scored: int
    dropped: int
    failed: int
    abstained: int
    flagged: int
    because: str | None


def update(
    classifier: ImageClassifier,
    terms: Terms,
    table: Table,
    ledger: Ledger,
    store: FeatureStore,
    again: Callable[[Sequence[Sample]], None] | None = None,
) -> Updated:
    """Bring the table up to what an engine's run says of its dataset.

    A row is kept where its content, or its failure, is that of the image now, and its terms are
    `terms`. All others are scored from `store`, about 6 MiB of features at a time. `again` encodes
    images whose stored rows turn out to be damaged. On any error the table is left as it was.
    Raises StoreError where rows are damaged and can not be replaced, and what `Table` raises.
    """
    stored = table.terms()
    because = None if stored is None else terms.differs(stored)
    old = {} if stored is None else table.states()
    scoring = _Scoring(classifier, terms, ledger, store, again)
    if because is None:
        scoring.keep(old)
    rows = {sample.key for sample in ledger.dataset.samples}
    dropped = len(old.keys() - rows)
    if stored is None or because is not None:
        table.replace(schema(terms), scoring.batches())
    elif dropped or len(scoring.kept) < len(rows):
        table.change(schema(terms), scoring.batches(), scoring.kept)
    failed = sum(key in ledger.failures for key in rows)
    return Updated(
        rows=len(rows),
        kept=len(scoring.kept),
        scored=len(scoring.scored),
        dropped=dropped,
        failed=failed,
        abstained=scoring.abstained,
        flagged=scoring.flagged,
        because=because,
    )


@final
@dataclass
class _Scoring:
    """The rows of one update that are not kept."""

    classifier: ImageClassifier
    terms: Terms
    ledger: Ledger
    store: FeatureStore
    again: Callable[[Sequence[Sample]], None] | None
    kept: set[str] = field(default_factory=set)
    scored: set[str] = field(default_factory=set)
    abstained: int = 0
    flagged: int = 0

    def keep(self, old: dict[str, State]) -> None:
        """Score no row that says of its image what is so now."""
        for sample in self.ledger.dataset.samples:
            failure = self.ledger.failures.get(sample.key)
            state = state_of(failure) if failure else State(self.ledger.hashes.get(sample.key))
            if old.get(sample.key) == state:
                self.kept.add(sample.key)

    def batches(self) -> Iterator[Any]:
        """New rows, those of failures last."""
        for _ in range(PASSES):
            yield from self._scored(self._pending())
            left = self._pending()
            if not left:
                break
            self._encode_again(left)
        if left := self._pending():
            raise lost_rows(self._samples(left))
        yield from self._failed()

    def _pending(self) -> dict[str, list[str]]:
        """The keys of each content hash whose rows are missing."""
        found: dict[str, list[str]] = {}
        for sample in self.ledger.used():
            if sample.key not in self.kept and sample.key not in self.scored:
                found.setdefault(self.ledger.hashes[sample.key], []).append(sample.key)
        return found

    def _scored(self, pending: dict[str, list[str]]) -> Iterator[Any]:
        import numpy as np

        fingerprint, parts, _ = self.ledger.kind
        for names, X in self.store.blocks(fingerprint, pending, parts=parts):
            rows = [row for row, name in enumerate(names) for _ in pending[name]]
            keys = [key for name in names for key in pending[name]]
            for start in range(0, len(rows), BLOCK_ROWS):
                chosen = np.asarray(rows[start : start + BLOCK_ROWS], dtype=np.intp)
                some = keys[start : start + BLOCK_ROWS]
                hashes = [names[row] for row in chosen]
                batch = scored_batch(self.classifier, self.terms, some, hashes, X[chosen])
                self._count(batch, some)
                yield batch

    def _count(self, batch: Any, keys: list[str]) -> None:
        self.scored.update(keys)
        self.abstained += sum(batch.column("abstained").to_pylist())
        self.flagged += sum(batch.column("novel").to_pylist())

    def _encode_again(self, missing: dict[str, list[str]]) -> None:
        """What has no sound row in the store; a copy of a failed image fails here."""
        samples = self.ledger.take_back(_AllBut(missing.keys()))
        if not samples:
            return
        if self.again is None:
            raise lost_rows(samples)
        self.again(samples)

    def _samples(self, pending: dict[str, list[str]]) -> list[Sample]:
        keys = {key for keys in pending.values() for key in keys}
        return [sample for sample in self.ledger.dataset.samples if sample.key in keys]

    def _failed(self) -> Iterator[Any]:
        failures: list[Failure] = [
            failure for key, failure in self.ledger.failures.items() if key not in self.kept
        ]
        for start in range(0, len(failures), BLOCK_ROWS):
            yield failed_batch(failures[start : start + BLOCK_ROWS], self.terms)


class _AllBut(NamedTuple):
    """Every content hash that is not missing."""

    missing: AbstractSet[str]

    def __contains__(self, content_hash: object, /) -> bool:
        return content_hash not in self.missing


def refuse_tokens(classifier: ImageClassifier) -> None:
    """Raises ConfigurationError for a head on patch tokens, which no store keeps."""
    from dinoprobe.heads import AttentiveProbe

    if isinstance(classifier.head, AttentiveProbe):
        raise ConfigurationError(
            "the head reads patch tokens, which no store keeps. Expected a head on pooled "
            "features. Leave --out away: predict without it encodes each image."
        )


__all__ = ["Updated", "refuse_tokens", "update"]
