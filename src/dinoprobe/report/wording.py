"""Numbers and sentences of a report, in the manner of a scientific paper."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from dinoprobe.catalog import BUILTIN_NAMES

if TYPE_CHECKING:
    from dinoprobe.report.input import Figures, Interval, ReportInput

SPACE = "\u00a0"  # keeps a number and its unit on one line
ABSENT = "\u2013"
FEW_IMAGES = 100  # below, a 95 % interval is wider than 10 points at an accuracy of 0.9
FEW_PER_CLASS = 10
_NOT_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")


def clean(text: str) -> str:
    """The text with what no file of UTF-8 text may hold replaced by U+FFFD."""
    return _NOT_TEXT.sub("\ufffd", text)


def shorten(text: str, limit: int) -> str:
    """The text, with its middle cut out where it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    tail = limit // 3
    return f"{text[: limit - tail - 1]}\u2026{text[-tail:]}"


def integer(value: int) -> str:
    """`12345` as `12,345`."""
    return f"{value:,}"


def decimal(value: float | None, digits: int = 3) -> str:
    """A fixed number of digits, or a dash for None."""
    return ABSENT if value is None else f"{value:.{digits}f}"


def percent(value: float | None, digits: int = 1) -> str:
    """`0.9433` as `94.3 %`, or a dash for None. Less than all never becomes 100 %."""
    if value is None:
        return ABSENT
    while value < 1 - 1e-9 and digits < 4 and round(value * 100, digits) >= 100:
        digits += 1
    return f"{value * 100:.{digits}f}{SPACE}%"


def interval(bounds: Interval | None) -> str:
    """`(0.92, 0.96)` as `92.0 to 96.0 %`, or nothing for None."""
    if bounds is None:
        return ""
    return f"{percent(bounds[0]).removesuffix(SPACE + '%')} to {percent(bounds[1])}"


def plural(count: int, noun: str, plural_noun: str | None = None) -> str:
    """`1 image`, `2 images`."""
    return f"{integer(count)} {noun if count == 1 else plural_noun or noun + 's'}"


def is_builtin(encoder: Mapping[str, object]) -> bool:
    """Whether the encoder is one that this package carries for demos and tests."""
    return encoder.get("id") in BUILTIN_NAMES


def caveats(summary: ReportInput, figures: Figures) -> list[str]:
    """What a reader must know before believing the figures."""
    found = [
        _builtin(summary),
        str(summary.without_leaks or ""),
        _baseline(summary, figures),
        _few_images(figures),
        _few_per_class(figures),
        _skew(figures),
    ]
    return [sentence for sentence in [*found, *_unseen(summary), _failed(summary)] if sentence]


def _builtin(summary: ReportInput) -> str:
    if not is_builtin(summary.encoder):
        return ""
    return (
        "The built-in encoder is for demos and tests only. "
        "These figures say nothing about what a DINOv3 encoder reaches on the same images."
    )


def _baseline(summary: ReportInput, figures: Figures) -> str:
    base = summary.baseline
    if base is None or figures.accuracy is None or figures.accuracy > base.accuracy:
        return ""
    return (
        f"This classifier is not better than the baseline, {shorten(base.name, 60)}: "
        f"{percent(figures.accuracy)} against {percent(base.accuracy)}."
    )


def _few_images(figures: Figures) -> str:
    if figures.n >= FEW_IMAGES:
        return ""
    return (
        f"There are only {plural(figures.n, 'test image')}. Read the interval, not the accuracy: "
        "differences of several points are within chance."
    )


def _few_per_class(figures: Figures) -> str:
    few = sum(1 for row in figures.per_class if row.support < FEW_PER_CLASS)
    if not few:
        return ""
    return (
        f"{few} of {plural(len(figures.per_class), 'class', 'classes')} "
        f"{'has' if few == 1 else 'have'} fewer than {FEW_PER_CLASS} test images; "
        "figures for single classes are rough there."
    )


def _skew(figures: Figures) -> str:
    if figures.accuracy is None or figures.balanced_accuracy is None:
        return ""
    if abs(figures.accuracy - figures.balanced_accuracy) < 0.05:
        return ""
    return (
        f"Classes differ in how often they occur or how well they are recognised: averaged over "
        f"classes, accuracy is {percent(figures.balanced_accuracy)} instead of "
        f"{percent(figures.accuracy)}."
    )


def _unseen(summary: ReportInput) -> list[str]:
    train, test = summary.counts.get("train"), summary.counts.get("test")
    if not train or not test:
        return []
    unseen = sorted(name for name, count in test.items() if count and not train.get(name))
    if not unseen:
        return []
    names = ", ".join(shorten(name, 40) for name in unseen[:5])
    more = f" and {len(unseen) - 5} more" if len(unseen) > 5 else ""
    verb = "class occurs" if len(unseen) == 1 else "classes occur"
    return [
        f"{len(unseen)} {verb} only among the test images and can not be learned: {names}{more}."
    ]


def _failed(summary: ReportInput) -> str:
    count = len(summary.failures)
    if not count:
        return ""
    verb = "is not part" if count == 1 else "are not part"
    return f"{plural(count, 'image')} could not be used and {verb} of these figures; see Data."


def facts(values: Mapping[str, object], labels: Mapping[str, str]) -> list[tuple[str, str]]:
    """Labelled values as text: what `labels` knows, in its order, then the others."""
    known = [key for key in labels if values.get(key) is not None]
    others = [key for key in values if key not in labels and values[key] is not None]
    named = [(labels[key], as_text(values[key])) for key in known if labels[key]]
    return named + [(key.replace("_", " ").capitalize(), as_text(values[key])) for key in others]


def as_text(value: object) -> str:
    """Any value of JSON in one line that a person can read."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {as_text(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(as_text(item) for item in value)
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)
