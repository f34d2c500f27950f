"""What a check says, as plain values: one finding a line, and the figures that they rest on."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

SEVERITIES = ("high", "medium", "low")


class Kind(NamedTuple):
    """How findings of one kind are spoken of: one, many, and what to do about them."""

    one: str
    many: str
    action: str


KINDS: dict[str, Kind] = {
    "leak": Kind(
        "copy across parts",
        "copies across parts",
        "Remove this file, or the other one: figures on the test part are too good by such copies.",
    ),
    "conflict": Kind(
        "copy under another label",
        "copies under another label",
        "Look at both and keep the one whose label is right.",
    ),
    "label": Kind(
        "label to look at",
        "labels to look at",
        "Look at the image; move it if the suggestion is right, leave it if its label is.",
    ),
    "unusable": Kind(
        "file that can not be used",
        "files that can not be used",
        "Replace the file, or remove it: no run uses it.",
    ),
    "shift": Kind(
        "test part unlike the training part",
        "test parts unlike the training part",
        "Find out what differs (camera, place, time), or split anew; figures on the test part are "
        "of other images than those of training.",
    ),
    "label-shift": Kind(
        "difference of class frequencies between parts",
        "differences of class frequencies between parts",
        "Split anew by class, or train with --prior and --class-weight if the test part is right.",
    ),
    "tiny-class": Kind(
        "class with few images",
        "classes with few images",
        "Add images, join it with another class, or leave it out.",
    ),
    "overlap": Kind(
        "pair of classes that are confused",
        "pairs of classes that are confused",
        "Look at labels of both; sharpen what tells them apart, join them, or add images.",
    ),
    "duplicate": Kind(
        "copy of another file",
        "copies of other files",
        "Remove it unless it is meant to count twice.",
    ),
    "outlier": Kind(
        "image unlike all others",
        "images unlike all others",
        "Look whether it belongs to the data; remove it if not.",
    ),
    "blank": Kind("blank picture", "blank pictures", "Remove it, or copy it again."),
    "extension": Kind(
        "file with another extension than its format",
        "files with another extension than their format",
        "Rename it; dinoprobe reads it all the same, other programs may not.",
    ),
    "small": Kind("tiny picture", "tiny pictures", "Take the original where there is one."),
    "large": Kind("huge picture", "huge pictures", "Make it smaller: decoding it costs seconds."),
    "elongated": Kind(
        "picture of an extreme shape",
        "pictures of an extreme shape",
        "Cut it, or choose --resize crop or pad: it is squashed to a square otherwise.",
    ),
    "colours": Kind(
        "picture with unusual colours",
        "pictures with unusual colours",
        "Look whether it shows right; convert it as the others are.",
    ),
    "animated": Kind(
        "picture with more than one frame",
        "pictures with more than one frame",
        "Only the first frame or page is used; save the right one as a file of its own.",
    ),
    "split-class": Kind(
        "class in two clusters",
        "classes in two clusters",
        "Look whether it is two things, or two sources; name them apart if that matters.",
    ),
}
"""In the order in which they are told among findings of one severity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing to look at.

    `key` is an image, None for a finding on a class or a part. `score` orders findings of one kind,
    the larger the worse: 1 - probability of the label, correlation of a copy, distance of an
    outlier, share of a class; docs/check.md has all. `related` is the other image, class or part;
    `cluster` numbers copies of one picture.
    """

    kind: str
    severity: str
    reason: str
    key: str | None = None
    label: str | None = None
    split: str | None = None
    score: float | None = None
    suggestion: str | None = None
    related: str | None = None
    cluster: int | None = None

    @property
    def action(self) -> str:
        """What to do about it."""
        return KINDS[self.kind].action

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        names = ("kind", "severity", "key", "label", "split", "score", "suggestion", "related")
        values = {name: getattr(self, name) for name in names}
        return {**values, "cluster": self.cluster, "reason": self.reason, "action": self.action}


COLUMNS = (
    "key", "kind", "score", "suggestion", "related", "split", "label", "severity",
    "cluster", "reason",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """Everything that was found, the most important first, and what it was looked for in.

    `figures` holds JSON values by name: `labels`, `copies`, `outliers`, `shift`; None where that
    was not looked at, and then `notes` say why.
    """

    n: int
    n_labelled: int
    failed: int
    classes: Mapping[str, int]
    parts: Mapping[str, int]
    findings: tuple[Finding, ...]
    figures: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    fingerprint: str = ""
    seed: int = 0

    def of(self, kind: str) -> list[Finding]:
        """The findings of one kind, in order."""
        return [finding for finding in self.findings if finding.kind == kind]

    @property
    def counts(self) -> dict[str, int]:
        """How many findings there are of each kind that was found."""
        found = Counter(finding.kind for finding in self.findings)
        return {kind: found[kind] for kind in KINDS if found[kind]}

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "images": self.n,
            "labelled": self.n_labelled,
            "failed": self.failed,
            "classes": dict(self.classes),
            "parts": dict(self.parts),
            "counts": self.counts,
            "figures": dict(self.figures),
            "notes": list(self.notes),
            "fingerprint": self.fingerprint,
            "seed": self.seed,
            "findings": [finding.to_dict() for finding in self.findings],
        }

    def rows(self) -> list[tuple[object, ...]]:
        """One line of check.csv for each finding, as `COLUMNS` names them."""
        found = []
        for finding in self.findings:
            values = finding.to_dict()
            if finding.score is not None:
                values["score"] = f"{finding.score:.4f}"
            found.append(tuple("" if values[name] is None else values[name] for name in COLUMNS))
        return found


def in_words(counts: Mapping[str, int]) -> str:
    """`2 copies across parts, 1 blank picture`, of kinds that are known."""
    told = [
        f"{n:,} {KINDS[kind].one if n == 1 else KINDS[kind].many}"
        for kind, n in counts.items()
        if kind in KINDS
    ]
    return ", ".join(told) or "nothing"


def in_order(findings: list[Finding]) -> tuple[Finding, ...]:
    """The most severe first, then by kind, then by score."""
    kinds = list(KINDS)
    return tuple(
        sorted(
            findings,
            key=lambda f: (
                SEVERITIES.index(f.severity),
                kinds.index(f.kind),
                -(f.score or 0),
                f.key or "",
            ),
        )
    )
