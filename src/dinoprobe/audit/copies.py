"""Copies of one picture: identical files, and nearly identical ones where pixels are at hand."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

from dinoprobe.audit.finding import Finding
from dinoprobe.audit.neighbourhood import candidates
from dinoprobe.audit.pictures import thumbnails_of
from dinoprobe.duplicates import NearPair, clusters, same_pictures
from dinoprobe.lookalikes import lookalikes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dinoprobe.audit.neighbourhood import Neighbourhood
    from dinoprobe.audit.pictures import Pictures
    from dinoprobe.types import Features

_KEPT_FIRST = {"test": 0, "val": 1}


class Copies(NamedTuple):
    """Findings, pairs of nearly identical files, a name for each row's cluster, figures."""

    findings: list[Finding]
    pairs: list[NearPair]
    near: tuple[str | None, ...]
    figures: dict[str, Any]
    notes: list[str]


def copies(features: Features, pictures: Pictures, around: Neighbourhood | None) -> Copies:
    """What stands in the data more than once. All rows count, with a label or without.

    Without a neighbourhood, or pixels to read, only identical files are found.
    """
    pairs, notes = _near_pairs(features, pictures, around)
    near = clusters(features.hashes, pairs)
    members: dict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(near):
        members[name or features.hashes[row]].append(row)
    together = [rows for rows in members.values() if len(rows) > 1]
    direct = {frozenset(pair[:2]): pair for pair in pairs}
    findings = [
        finding
        for number, rows in enumerate(together, start=1)
        for finding in _of_cluster(features, rows, number, direct)
    ]
    counts = Counter(_how(finding) for finding in findings)
    figures = {
        "clusters": len(together),
        "identical": counts["identical"],
        "near": counts["near"],
        "mirrored": counts["mirrored"],
        "pixels_compared": pictures.read is not None and not notes,
    }
    return Copies(findings, pairs, near, figures, notes)


def _near_pairs(
    features: Features, pictures: Pictures, around: Neighbourhood | None
) -> tuple[list[NearPair], list[str]]:
    if pictures.read is None:
        return [], ["Pixels are not at hand: only identical files are found, no near copies."]
    if around is None:
        count = f"{len(features):,} images are too many"
        return [], [f"{count} to look for near copies among them; identical files are found."]
    near = candidates(features, around)
    seen = [row for row in around.rows.tolist() if features.hashes[row] in pictures.facts]
    if seen:
        found = lookalikes(thumbnails_of([features.hashes[row] for row in seen], pictures.facts))
        near |= {(seen[i], seen[j]) for i, j in found}  # rows are in their order
    return same_pictures(features.hashes, near, pictures.read), []


def _of_cluster(
    features: Features, rows: Sequence[int], number: int, direct: Mapping[frozenset[str], NearPair]
) -> list[Finding]:
    """A finding for each copy but the one that is kept: of the test part, then the first."""
    kept = min(rows, key=lambda row: (_KEPT_FIRST.get(features.splits[row] or "", 2), row))
    found = []
    for row in rows:
        if row == kept:
            continue
        pair = direct.get(frozenset((features.hashes[row], features.hashes[kept])))
        how, score = _likeness(features, row, kept, pair)
        kind, severity = _kind(features, row, kept)
        found.append(
            Finding(
                kind=kind, severity=severity, score=score, cluster=number,
                key=features.keys[row], label=features.y[row], split=features.splits[row],
                related=features.keys[kept], suggestion=_suggestion(kind, features, kept),
                reason=f"{how} {features.keys[kept]}{_where(features, row, kept)}",
            )
        )  # fmt: skip
    return found


def _likeness(
    features: Features, row: int, kept: int, pair: NearPair | None
) -> tuple[str, float | None]:
    if features.hashes[row] == features.hashes[kept]:
        return "identical to", 1.0
    if pair is None:
        return "a copy of a copy of", None
    return ("mirrored, as" if pair.mirrored else "nearly identical to"), pair.correlation


def _how(finding: Finding) -> str:
    if finding.reason.startswith("identical"):
        return "identical"
    return "mirrored" if finding.reason.startswith("mirrored") else "near"


def _kind(features: Features, row: int, kept: int) -> tuple[str, str]:
    part, other = features.splits[row], features.splits[kept]
    if part and other and part != other and "test" in (part, other):
        return "leak", "high"
    labels = features.y[row], features.y[kept]
    if None not in labels and labels[0] != labels[1]:
        return "conflict", "high"
    if part and other and part != other:
        return "leak", "medium"
    return "duplicate", "low"


def _suggestion(kind: str, features: Features, kept: int) -> str | None:
    return str(features.y[kept]) if kind == "conflict" else "remove"


def _where(features: Features, row: int, kept: int) -> str:
    words = []
    if features.splits[row] != features.splits[kept]:
        words.append(f"part {features.splits[row]} and {features.splits[kept]}")
    if features.y[row] != features.y[kept]:
        words.append(f"labels {features.y[row]} and {features.y[kept]}")
    return f" ({', '.join(words)})" if words else ""
