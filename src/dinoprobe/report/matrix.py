"""The confusion matrix: a table of counts for few classes, a picture for many.

Each row is coloured by its share of the row, in nine steps and along its square root, so that one
error among fifty still shows. In the picture, equal colours are one path: 40,000 cells take
640 kB instead of the 4 MB of single rectangles, and only the largest counts have tooltips.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

from dinoprobe.report.wording import percent, plural, shorten

if TYPE_CHECKING:
    from collections.abc import Sequence

LARGEST_TABLE = 40
MAX_PICTURE_CELLS = 40_000
MAX_TOOLTIPS = 1_500
STEPS = 8


class Cell(NamedTuple):
    """One field of the table; `style` is its colour as a class of the style sheet."""

    images: int
    style: str
    text: str


class Row(NamedTuple):
    """All images of one true class."""

    name: str
    cells: tuple[Cell, ...]
    total: int


class Layer(NamedTuple):
    """All cells of one colour, as the data of an SVG path."""

    style: str
    path: str


class Tip(NamedTuple):
    """A transparent cell that carries a tooltip."""

    x: int
    y: int
    text: str


class Picture(NamedTuple):
    """The compact matrix of `size` x `size` cells; `hidden` cells were too many to draw."""

    size: int
    width_px: int
    ticks: tuple[int, ...]
    layers: tuple[Layer, ...]
    tips: tuple[Tip, ...]
    hidden: int


def table(classes: Sequence[str], confusion: Sequence[Sequence[int]]) -> tuple[Row, ...]:
    """One row per true class."""
    rows = []
    for i, counts in enumerate(confusion):
        total = sum(counts)
        cells = tuple(
            Cell(count, _style(count, total, correct=i == j), _tip(classes, i, j, count, total))
            for j, count in enumerate(counts)
        )
        rows.append(Row(classes[i], cells, total))
    return tuple(rows)


def picture(classes: Sequence[str], confusion: Sequence[Sequence[int]]) -> Picture:
    """The matrix without numbers, for many classes."""
    totals = [sum(row) for row in confusion]
    cells = sorted(
        ((count, i, j) for i, row in enumerate(confusion) for j, count in enumerate(row) if count),
        key=lambda cell: (cell[1] == cell[2], -cell[0]),
    )
    drawn = cells[:MAX_PICTURE_CELLS]
    paths: dict[str, list[str]] = defaultdict(list)
    for count, i, j in drawn:
        paths[_style(count, totals[i], correct=i == j)].append(f"M{j} {i}h1v1h-1z")
    size = len(confusion)
    stride = 10 if size <= 120 else 50 if size <= 600 else 100
    return Picture(
        size=size,
        width_px=max(560, min(1400, size * 4)),
        ticks=tuple(range(stride, size + 1, stride)),
        layers=tuple(Layer(style, "".join(paths[style])) for style in sorted(paths)),
        tips=tuple(
            Tip(j, i, _tip(classes, i, j, count, totals[i])) for count, i, j in drawn[:MAX_TOOLTIPS]
        ),
        hidden=len(cells) - len(drawn),
    )


def _style(count: int, total: int, *, correct: bool) -> str:
    if not count:
        return "none"
    step = max(1, math.ceil(STEPS * math.sqrt(count / total)))
    return f"{'hit' if correct else 'miss'}-{step}"


def _tip(classes: Sequence[str], i: int, j: int, count: int, total: int) -> str:
    if not count:
        return ""
    true, predicted = shorten(classes[i], 40), shorten(classes[j], 40)
    share = percent(count / total)
    if i == j:
        return f"{true}: {plural(count, 'image')} recognised, {share}"
    return f"{true} taken for {predicted}: {plural(count, 'image')}, {share} of {true}"
