"""What a few labelled images of each class are worth: accuracy over random draws of them.

Each draw takes k images of every class from the training part, fits, and is judged on the whole
test part; nothing is chosen by that. The deviation over draws says how much the luck of the draw is
worth, which an interval over test images does not. Features are those of the encoder's pooling: one
that was chosen on the whole training part would know more than the images of a draw.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dinoprobe.heads import Candidate, head_from_name, search
from dinoprobe.heads.folds import deal_folds
from dinoprobe.train.candidates import fit_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy.typing as npt

    from dinoprobe.heads import ProbeBase
    from dinoprobe.train.protocols import Protocol

    Labelled = tuple[npt.NDArray[np.float32], npt.NDArray[Any]]

_POOLING = ""
_FOLDS = 5
SHOT_COLUMNS = ("shots", "draw", "head", "accuracy")


@dataclass(frozen=True, slots=True)
class ShotFigures:
    """Accuracy on the test part over draws of `shots` images a class.

    `mean` and `deviation` (of a sample, between draws) of `accuracies`; `images` are those of a
    draw: fewer than shots times classes where a class has not as many.
    """

    shots: int
    images: int
    mean: float
    deviation: float
    accuracies: tuple[float, ...]
    heads: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        found = asdict(self)
        return {**found, "accuracies": list(self.accuracies), "heads": list(self.heads)}

    def __str__(self) -> str:
        what = f"{self.shots} image{'s' if self.shots > 1 else ''} a class"
        mean, deviation = 100 * self.mean, 100 * self.deviation
        draws = f"{len(self.accuracies)} draws of {self.images:,}"
        return f"{what}: {mean:.1f} % ± {deviation:.1f} over {draws}"


def few_shot_figures(
    protocol: Protocol,
    training: Labelled,
    test: Labelled,
    *,
    seed: int,
    say: Callable[[str], None] = lambda _: None,
) -> list[ShotFigures]:
    """The table of a protocol with shots, from features `(n, d)` and labels of both parts.

    Empty for a protocol without. A class with fewer images gives all it has.
    """
    X, y = training
    found = []
    for shots in protocol.shots:
        accuracies, heads = [], []
        for draw in range(protocol.draws):
            rows = drawn(y, shots, seed=seed + draw)
            name, head = _fitted(protocol, X[rows], y[rows], shots, seed + draw)
            accuracies.append(float((head.predict(test[0]) == test[1]).mean()))
            heads.append(name)
        deviation = float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else 0.0
        figures = ShotFigures(
            shots, len(rows), float(np.mean(accuracies)), deviation, tuple(accuracies), tuple(heads)
        )
        found.append(figures)
        say(str(figures))
    return found


def shot_rows(figures: Sequence[ShotFigures]) -> list[tuple[object, ...]]:
    """One row a draw, for a table with the columns SHOT_COLUMNS."""
    return [
        (shots.shots, draw, head, f"{accuracy:.6f}")
        for shots in figures
        for draw, (head, accuracy) in enumerate(zip(shots.heads, shots.accuracies, strict=True))
    ]


def drawn(y: npt.NDArray[Any], shots: int, *, seed: int) -> npt.NDArray[np.intp]:
    """Rows of `shots` images of each class, all of a class that has no more, in rising order."""
    generator = np.random.default_rng(seed)

    def of_classes() -> Iterator[npt.NDArray[np.intp]]:
        for label in np.unique(y):
            yield generator.permutation(np.flatnonzero(y == label))[:shots]

    return np.sort(np.concatenate(list(of_classes())))


def _fitted(
    protocol: Protocol, X: npt.NDArray[np.float32], y: npt.NDArray[Any], shots: int, seed: int
) -> tuple[str, ProbeBase]:
    """The protocol's head on these rows, the best one on folds where it names several.

    With one image a class no fold can judge: it is the first.
    """
    named = protocol.shot_heads
    codes = np.unique(y, return_inverse=True)[1]
    folds = deal_folds(codes, None, min(_FOLDS, shots), seed) if shots > 1 else None
    if folds is None or folds.max() < 0 or len(named) == 1:
        name, options = named[0]
        return name, fit_rows(head_from_name(name, **options), X, y, folds)
    candidates = [
        Candidate(name, head_from_name(name, **options), _POOLING) for name, options in named
    ]
    chosen, _ = search(
        candidates, {_POOLING: X}, y, folds, fit=lambda head, X: fit_rows(head, X, y, folds)
    )
    return chosen.candidate.name, chosen.head
