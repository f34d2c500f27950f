"""The geometry of the diagrams: numbers in, coordinates of an SVG out.

A template draws every `Chart` with one macro, so a new diagram is a new function here. Coordinates
are those of the view box; a page scales the whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from dinoprobe.report.wording import decimal, integer, interval, percent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dinoprobe.learning_curve import Expected, LearningCurve, Point
    from dinoprobe.report.input import Bin, EpochPoint, Kept, SelectionPoint

WIDTH, LEFT, RIGHT, TOP = 440.0, 78.0, 14.0, 14.0
FOOT = 46.0  # tick labels and the name of the axis
MAX_POINTS = 400  # of a curve; more can not be told apart


class Tick(NamedTuple):
    """A mark on an axis."""

    at: float
    text: str


class Dot(NamedTuple):
    """A circle; `style` is a class of the style sheet, `text` its tooltip."""

    x: float
    y: float
    radius: float
    style: str
    text: str = ""


class Line(NamedTuple):
    """A polyline; `style` is a class of the style sheet."""

    points: str
    style: str


class Bar(NamedTuple):
    """A rectangle with a text above it; `tip` is its tooltip."""

    x: float
    y: float
    width: float
    height: float
    text: str
    tip: str


class Label(NamedTuple):
    """A word beside a curve."""

    x: float
    y: float
    text: str
    style: str


@dataclass(frozen=True, slots=True)
class Chart:
    """One diagram. `title` names it for who can not see it, `description` tells what it shows."""

    name: str
    title: str
    description: str
    height: float
    bottom: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    x_name: str
    y_name: str
    lines: tuple[Line, ...] = ()
    dots: tuple[Dot, ...] = ()
    bars: tuple[Bar, ...] = ()
    labels: tuple[Label, ...] = ()
    width: float = WIDTH
    left: float = LEFT
    right: float = WIDTH - RIGHT
    top: float = TOP


def reliability_chart(bins: Sequence[Bin]) -> Chart:
    """Accuracy against confidence, one dot per bin, and below it how many images each bin holds."""
    side = WIDTH - LEFT - RIGHT
    bottom, strip = TOP + side, 64.0
    x, y = _linear(0, 1, LEFT, LEFT + side), _linear(0, 1, bottom, TOP)
    gaps = [
        Line(_points([(x(b.confidence), y(b.confidence)), (x(b.confidence), y(b.accuracy))]), "gap")
        for b in bins
    ]
    curve = Line(_points([(x(b.confidence), y(b.accuracy)) for b in bins]), "curve")
    ideal = Line(_points([(x(0), y(0)), (x(1), y(1))]), "ideal")
    fractions = tuple(value / 5 for value in range(6))
    return Chart(
        name="reliability",
        title="Reliability diagram",
        description="; ".join(_bin_text(b) for b in bins),
        height=bottom + FOOT + strip + 10,
        bottom=bottom,
        x_ticks=tuple(Tick(x(value), decimal(value, 1)) for value in fractions),
        y_ticks=tuple(Tick(y(value), decimal(value, 1)) for value in fractions),
        x_name="Predicted probability",
        y_name="Share that is correct",
        lines=(ideal, *gaps, curve),
        dots=_bin_dots(bins, x, y),
        bars=_bin_bars(bins, x, bottom + FOOT + strip + 4, strip - 18),
    )


def _bin_text(b: Bin) -> str:
    return (
        f"{decimal(b.lower, 2)} to {decimal(b.upper, 2)}: {integer(b.images)} images, mean "
        f"probability {decimal(b.confidence)}, {percent(b.accuracy)} correct"
    )


def _bin_dots(
    bins: Sequence[Bin], x: Callable[[float], float], y: Callable[[float], float]
) -> tuple[Dot, ...]:
    most = max((b.images for b in bins), default=1)
    return tuple(
        Dot(x(b.confidence), y(b.accuracy), 3 + 5 * math.sqrt(b.images / most), "dot", _bin_text(b))
        for b in bins
    )


def _bin_bars(
    bins: Sequence[Bin], x: Callable[[float], float], base: float, height: float
) -> tuple[Bar, ...]:
    most = max((b.images for b in bins), default=1)
    bars = []
    for b in bins:
        width = max(x(b.upper) - x(b.lower) - 2, 1)
        tall = max(height * b.images / most, 1)
        text = _compact(b.images) if width >= 18 else ""
        bars.append(Bar(x(b.lower) + 1, base - tall, width, tall, text, _bin_text(b)))
    return tuple(bars)


def abstention_chart(points: Sequence[Kept], answered: tuple[float, float] | None) -> Chart | None:
    """Accuracy of the surest images over their share; None for under two points.

    A ring marks the classifier's own rule, which answers a share with an accuracy.
    """
    if len(points) < 2:
        return None
    bottom = 240.0
    marked = [] if answered is None else [answered]
    values = [p.accuracy for p in points] + [accuracy for _, accuracy in marked]
    low, high, step = _axis(values)
    high = min(high, 1.0)
    x, y = _linear(0, 1, LEFT, WIDTH - RIGHT), _linear(low, high, bottom, TOP)
    digits = 0 if step >= 0.01 else 1
    texts = [
        f"{percent(p.coverage)} answered, from a probability of {decimal(p.threshold)} on: "
        f"{percent(p.accuracy)} correct"
        for p in points
    ]
    dots = [
        Dot(x(p.coverage), y(p.accuracy), 3, "dot", text)
        for p, text in zip(points, texts, strict=True)
    ]
    for coverage, accuracy in marked:
        text = f"The classifier's rule: {percent(coverage)} answered, {percent(accuracy)} correct"
        texts.append(text)
        dots.append(Dot(x(coverage), y(accuracy), 8, "chosen", text))
    return Chart(
        name="abstention",
        title="Accuracy of the answers over the share that is answered",
        description="; ".join(texts),
        height=bottom + FOOT,
        bottom=bottom,
        x_ticks=tuple(Tick(x(i / 5), f"{20 * i}") for i in range(6)),
        y_ticks=tuple(Tick(y(v), percent(v, digits)) for v in _steps(low, high, step)),
        x_name="Images answered, the surest first (%)",
        y_name="Accuracy of the answers",
        lines=(Line(_points([(x(p.coverage), y(p.accuracy)) for p in points]), "curve"),),
        dots=tuple(dots),
    )


_STRENGTHS = {
    "C": "Strength C (larger: less regularised)",
    "alpha": "Strength alpha (larger: more regularised)",
    "shrinkage": "Shrinkage (larger: more regularised)",
}


def selection_chart(points: Sequence[SelectionPoint], chosen: float | None) -> Chart | None:
    """Cross-validation accuracy against strength on a logarithmic axis; None for under two points.

    The strength nearest to `chosen` is marked; without it, the best.
    """
    usable = sorted(p for p in points if p.strength > 0 and math.isfinite(p.accuracy))
    if len(usable) < 2:
        return None
    marked = _marked(usable, chosen)
    bottom = 240.0
    x = _linear(
        math.log10(usable[0].strength), math.log10(usable[-1].strength), LEFT, WIDTH - RIGHT
    )
    y_low, y_high, y_step = _axis(
        [p.accuracy + (p.deviation or 0) * sign for p in usable for sign in (-1, 1)]
    )
    digits = max(0, math.ceil(-math.log10(y_step * 100) - 1e-9))
    y = _linear(y_low, min(y_high, 1), bottom, TOP)
    return Chart(
        name="selection",
        title="Selection of the strength of regularisation",
        description="; ".join(_selection_text(p) for p in usable),
        height=bottom + FOOT,
        bottom=bottom,
        x_ticks=tuple(
            Tick(x(power), _power(power))
            for power in _powers(usable[0].strength, usable[-1].strength)
        ),
        y_ticks=tuple(
            Tick(y(v), percent(v, digits)) for v in _steps(y_low, min(y_high, 1), y_step)
        ),
        x_name=_STRENGTHS.get(usable[0].option, usable[0].option),
        y_name="Cross-validation accuracy",
        lines=(
            *_deviation_lines(usable, x, y),
            Line(_points([(x(math.log10(p.strength)), y(p.accuracy)) for p in usable]), "curve"),
        ),
        dots=tuple(
            Dot(
                x(math.log10(p.strength)),
                y(p.accuracy),
                6.5 if p == marked else 3,
                "chosen" if p == marked else "dot",
                _selection_text(p),
            )
            for p in usable
        ),
    )


def _marked(points: Sequence[SelectionPoint], chosen: float | None) -> SelectionPoint:
    if chosen is None or chosen <= 0:
        return max(points, key=lambda p: p.accuracy)
    return min(points, key=lambda p: abs(math.log(p.strength / chosen)))


def _selection_text(p: SelectionPoint) -> str:
    spread = "" if p.deviation is None else f", standard deviation {percent(p.deviation)}"
    return f"{p.option} = {p.strength:.3g}: {percent(p.accuracy)}{spread}"


def _deviation_lines(
    points: Sequence[SelectionPoint], x: Callable[[float], float], y: Callable[[float], float]
) -> tuple[Line, ...]:
    lines = []
    for p in points:
        if p.deviation is not None:
            at = x(math.log10(p.strength))
            ends = [(at, y(p.accuracy - p.deviation)), (at, y(p.accuracy + p.deviation))]
            lines.append(Line(_points(ends), "spread"))
    return tuple(lines)


def curve_chart(curve: LearningCurve | None) -> Chart | None:
    """Accuracy against the number of images, on a logarithmic axis, with the law and what it says
    of twice as many; None for under two points.
    """
    if curve is None or len(curve.points) < 2:
        return None
    shown: list[Point | Expected] = [*curve.points]
    if curve.doubled is not None:
        shown.append(curve.doubled)
    low, high, step = _axis([bound for p in shown for bound in p.interval])
    bottom = 240.0
    first, last = math.log(shown[0].n), math.log(shown[-1].n)
    across = _linear(first, last, LEFT + 8, WIDTH - RIGHT - 14)
    y = _linear(low, min(high, 1), bottom, TOP)

    def x(n: float) -> float:
        return across(math.log(n))

    marked = {p.n for p in curve.points[::-2]} | {shown[-1].n}
    digits = max(0, math.ceil(-math.log10(step * 100) - 1e-9))
    return Chart(
        name="learning",
        title="Learning curve",
        description="; ".join(_curve_text(p) for p in shown),
        height=bottom + FOOT,
        bottom=bottom,
        x_ticks=tuple(Tick(x(n), integer(n)) for n in sorted(marked)),
        y_ticks=tuple(Tick(y(v), percent(v, digits)) for v in _steps(low, min(high, 1), step)),
        x_name="Images to learn from",
        y_name="Accuracy out of fold",
        lines=(
            *(Line(_points([(x(p.n), y(bound)) for bound in p.interval]), "spread") for p in shown),
            *_law_lines(curve, x, y),
        ),
        dots=tuple(
            Dot(
                x(p.n),
                y(p.accuracy),
                6.5 if p is curve.doubled else 3,
                "chosen" if p is curve.doubled else "dot",
                _curve_text(p),
            )
            for p in shown
        ),
    )


def _law_lines(
    curve: LearningCurve, x: Callable[[float], float], y: Callable[[float], float]
) -> tuple[Line, ...]:
    """The law, from the first size that it was fitted to up to twice the images."""
    law, doubled = curve.law, curve.doubled
    if law is None or doubled is None:
        return ()
    ratio = doubled.n / law.n_from
    sizes = [law.n_from * ratio ** (place / 40) for place in range(41)]
    accuracies = [1 - law.floor - law.scale * n**-law.exponent for n in sizes]
    return (Line(_points([(x(n), y(a)) for n, a in zip(sizes, accuracies, strict=True)]), "curve"),)


def _curve_text(p: Point | Expected) -> str:
    return f"{integer(p.n)} images: {percent(p.accuracy)}, 95 % interval {interval(p.interval)}"


def loss_chart(points: Sequence[EpochPoint]) -> Chart | None:
    """Loss per epoch, with the validation loss where it is known; None for under two epochs."""
    usable = _thin([p for p in points if math.isfinite(p.loss)])
    if len(usable) < 2:
        return None
    validation = [
        (p.epoch, p.validation_loss)
        for p in usable
        if p.validation_loss is not None and math.isfinite(p.validation_loss)
    ]
    bottom = 240.0
    low, high, step = _axis([p.loss for p in usable] + [loss for _, loss in validation])
    first, last = usable[0].epoch, usable[-1].epoch
    x, y = _linear(first, last, LEFT, WIDTH - RIGHT), _linear(low, high, bottom, TOP)
    curves = [Line(_points([(x(p.epoch), y(p.loss)) for p in usable]), "curve")]
    samples: tuple[Line, ...] = ()
    labels: tuple[Label, ...] = ()
    if validation:
        curves.append(Line(_points([(x(epoch), y(loss)) for epoch, loss in validation]), "second"))
        samples, labels = _legend([("training", "curve"), ("validation", "second")])
    x_step = max(1, round(_nice_step(last - first, 6)))
    return Chart(
        name="loss",
        title="Loss per epoch",
        description=_loss_text(usable, validation),
        height=bottom + FOOT,
        bottom=bottom,
        x_ticks=tuple(Tick(x(v), f"{v:.0f}") for v in _steps(first, last, x_step)),
        y_ticks=tuple(Tick(y(v), f"{v:.3g}") for v in _steps(low, high, step)),
        x_name="Epoch",
        y_name="Mean log loss",
        lines=tuple(curves) + samples,
        labels=labels,
    )


def _loss_text(points: Sequence[EpochPoint], validation: Sequence[tuple[int, float]]) -> str:
    text = f"Training loss falls from {points[0].loss:.4g} to {points[-1].loss:.4g}"
    if points[-1].loss >= points[0].loss:
        text = f"Training loss goes from {points[0].loss:.4g} to {points[-1].loss:.4g}"
    if validation:
        text += f"; validation loss ends at {validation[-1][1]:.4g}"
    return f"{text}, over {points[-1].epoch - points[0].epoch + 1} epochs."


def _legend(names: Sequence[tuple[str, str]]) -> tuple[tuple[Line, ...], tuple[Label, ...]]:
    """Samples of the lines with their names, in the upper right corner."""
    x, lines, labels = WIDTH - RIGHT - 110, [], []
    for row, (name, style) in enumerate(names):
        at = TOP + 14 + 19 * row
        lines.append(Line(_points([(x, at), (x + 26, at)]), style))
        labels.append(Label(x + 34, at + 4, name, "legend"))
    return tuple(lines), tuple(labels)


def _thin(points: list[EpochPoint]) -> list[EpochPoint]:
    if len(points) <= MAX_POINTS:
        return points
    stride = math.ceil(len(points) / MAX_POINTS)
    kept = points[::stride]
    return kept if kept[-1] is points[-1] else [*kept, points[-1]]


def _linear(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = (high - low) or 1.0
    return lambda value: round(start + (value - low) / span * (end - start), 2)


def _points(pairs: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in pairs)


def _nice_step(span: float, ticks: int) -> float:
    raw = max(span, 1e-9) / ticks
    power = 10.0 ** math.floor(math.log10(raw))
    return power * next(m for m in (1, 2, 2.5, 5, 10) if raw <= m * power * (1 + 1e-9))


def _axis(values: Sequence[float]) -> tuple[float, float, float]:
    low, high = min(values), max(values)
    step = _nice_step(max(high - low, 1e-3), 4)
    return math.floor(low / step) * step, math.ceil(high / step + 1e-9) * step, step


def _steps(low: float, high: float, step: float) -> list[float]:
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def _powers(low: float, high: float) -> list[int]:
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    return list(range(first, last + 1, max(1, math.ceil((last - first + 1) / 8))))


def _power(exponent: int) -> str:
    if -3 <= exponent <= 3:
        return f"{10.0**exponent:g}"
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _compact(count: int) -> str:
    for size, letter in ((1_000_000, "M"), (1_000, "k")):
        if count >= size:
            return (
                f"{count / size:.3g}{letter}" if count < 10 * size else f"{count // size}{letter}"
            )
    return str(count)
