"""Two classifiers on the same images: who is right where, and whether that is more than chance.

Both judged the same pictures, so only pictures on which they disagree tell them apart. Two separate
intervals do not use that: they overlap long after the difference is certain.
"""

from __future__ import annotations

import csv
import io
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dinoprobe.datasets import read_split
from dinoprobe.errors import ConfigurationError, DatasetError, FormatError, MismatchError
from dinoprobe.evaluation import wilson
from dinoprobe.files import read_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dinoprobe.evaluation import Interval

SCHEMA = "dinoprobe.compare/1"
AT_LEAST = 10
"""Common images below which nothing is compared: with 5 disagreements p is 0.06 at best."""
LEVEL = 0.05
_COLUMNS = ("key", "label", "predicted")


class Judged(NamedTuple):
    """One row of predictions.csv; `content_hash` is None where it is not known."""

    key: str
    label: str
    predicted: str
    content_hash: str | None = None

    @property
    def right(self) -> bool:
        """Whether the classifier gave the label."""
        return self.label == self.predicted


@dataclass(frozen=True, slots=True)
class Comparison:
    """Counts over `n` common images, and what they say; `difference` is accuracy of A minus B's.

    `difference_interval` is at 95 %. `p_value` is that of McNemar's exact test, two-sided.
    """

    n: int
    both_right: int
    only_a: int
    only_b: int
    both_wrong: int
    difference: float
    difference_interval: Interval
    p_value: float

    @property
    def verdict(self) -> str:
        """What the numbers say, in one sentence."""
        low, high = (100 * bound for bound in self.difference_interval)
        bounds = f"95 % interval of A minus B {low:+.1f} to {high:+.1f} points"
        if not self.only_a + self.only_b:
            return f"A and B are right and wrong on the same {self.n:,} images; {bounds}."
        chance = f"{bounds}, p = {self.p_value:.2g}"
        if self.p_value >= LEVEL:
            return f"These {self.n:,} images do not tell A and B apart: {chance}."
        better, worse = ("A", "B") if self.only_a > self.only_b else ("B", "A")
        points = 100 * abs(self.difference)
        return f"{better} is right more often than {worse}, by {points:.1f} points: {chance}."


@dataclass(frozen=True, slots=True)
class ComparedRuns:
    """A comparison with how its images were matched (`content hash` or `key`), and notes."""

    comparison: Comparison
    matched_by: str
    notes: tuple[str, ...]
    summary: dict[str, Any]


def compare_runs(a: str, b: str, *, at_least: int = AT_LEAST) -> ComparedRuns:
    """Compare two runs, or evaluations, by the predictions that they keep.

    Raises FormatError for a directory without predictions, MismatchError where the two disagree
    about a label, and DatasetError with fewer than `at_least` common images.
    """
    if at_least < 1:
        raise ConfigurationError(f"at_least is {at_least}; expected a number from 1.")
    sides = [read_predictions(a), read_predictions(b)]
    pairs, matched_by, notes = match(*sides)
    if len(pairs) < at_least:
        raise DatasetError(
            f"{a} and {b}: {len(pairs)} images in common (by {matched_by}), of {len(sides[0]):,} "
            f"and {len(sides[1]):,}; expected at least {at_least}. Evaluate both on the same "
            f"images: dinoprobe evaluate RUN IMAGES."
        )
    found = compare([(one.right, other.right) for one, other in pairs])
    right = (found.both_right + found.only_a, found.both_right + found.only_b)
    summary = {
        "schema": SCHEMA,
        "a": {**_about(a, len(sides[0])), **_accuracy(right[0], found.n)},
        "b": {**_about(b, len(sides[1])), **_accuracy(right[1], found.n)},
        "matched_by": matched_by,
        **{key: list(v) if isinstance(v, tuple) else v for key, v in asdict(found).items()},
        "verdict": found.verdict,
        "notes": list(notes),
    }
    return ComparedRuns(found, matched_by, notes, summary)


def compare(pairs: Sequence[tuple[bool, bool]]) -> Comparison:
    """The comparison of what (A, B) got right, image by image."""
    a, b, c, d = (pairs.count(case) for case in _CASES)
    n = a + b + c + d
    return Comparison(
        n=n,
        both_right=a,
        only_a=b,
        only_b=c,
        both_wrong=d,
        difference=(b - c) / n,
        difference_interval=paired_interval(a, b, c, d),
        p_value=mcnemar(b, c),
    )


_CASES = ((True, True), (True, False), (False, True), (False, False))


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided p of McNemar's exact test (McNemar 1947): of the disagreements, half go each way.

    1.0 without a disagreement.
    """
    from scipy.stats import binomtest

    n = only_a + only_b
    return float(binomtest(only_a, n, 0.5).pvalue) if n else 1.0


def paired_interval(both: int, only_a: int, only_b: int, neither: int) -> Interval:
    """The 95 % interval of the difference of two shares of the same images.

    Newcombe 1998 (Statistics in Medicine 17:2635-2650), method 10: Wilson's intervals of the two
    shares, combined with their correlation phi, which is reduced by n/2 where it is positive.
    """
    n = both + only_a + only_b + neither
    p, q = (both + only_a) / n, (both + only_b) / n
    (p_low, p_high), (q_low, q_high) = wilson(both + only_a, n), wilson(both + only_b, n)
    product = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    determinant: float = both * neither - only_a * only_b
    if determinant > 0:
        determinant = max(determinant - n / 2, 0.0)
    phi = determinant / math.sqrt(product) if product else 0.0
    down = _combined(p - p_low, q_high - q, phi)
    up = _combined(p_high - p, q - q_low, phi)
    return p - q - down, p - q + up


def _combined(x: float, y: float, phi: float) -> float:
    return math.sqrt(max(x * x - 2 * phi * x * y + y * y, 0.0))


def match(
    a: Sequence[Judged], b: Sequence[Judged]
) -> tuple[list[tuple[Judged, Judged]], str, tuple[str, ...]]:
    """Pairs of rows about one image, what they were matched by, and notes.

    By content hash where all rows have one, else by key. Identical images are one image. Raises
    MismatchError where the labels of a pair differ.
    """
    hashed = all(row.content_hash for row in (*a, *b))
    sides, doubtful = [], set()
    for rows in (a, b):
        known: dict[str | None, Judged] = {}
        for row in rows:
            name = row.content_hash if hashed else row.key
            if known.setdefault(name, row).label != row.label:
                doubtful.add(name)
        sides.append(known)
    common = [name for name in sides[0] if name in sides[1] and name not in doubtful]
    pairs = [(sides[0][name], sides[1][name]) for name in common]
    for one, other in pairs:
        if one.label != other.label:
            raise MismatchError(
                f"{one.key}: labelled {one.label!r} in A, and {other.key} in B is the same image "
                f"with the label {other.label!r}; expected one label. Correct the labels, and "
                f"evaluate again."
            )
    return pairs, "content hash" if hashed else "key", _notes(a, b, len(pairs), len(doubtful))


def _notes(
    a: Sequence[Judged], b: Sequence[Judged], n_pairs: int, n_doubtful: int
) -> tuple[str, ...]:
    found = []
    if n_pairs < max(len(a), len(b)):
        found.append(f"{n_pairs:,} images are common: A judged {len(a):,} rows, B {len(b):,}.")
    if n_doubtful:
        found.append(f"{n_doubtful:,} images have two labels within one side and were left out.")
    return tuple(found)


def read_predictions(run: str) -> list[Judged]:
    """The rows of predictions.csv in a run's or an evaluation's directory. Raises FormatError.

    A hash that the file lacks comes from the run's split.csv beside it.
    """
    folder = Path(run).expanduser()
    path = folder / "predictions.csv"
    try:
        text = path.read_bytes().decode()
        rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    except OSError as error:
        raise FormatError(
            f"{path}: not there ({error.strerror}); expected the directory of a run or of an "
            f"evaluation. Give what dinoprobe train or dinoprobe evaluate wrote."
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise FormatError(f"{path}: not a UTF-8 CSV file ({error}). Evaluate again.") from error
    for line, row in enumerate(rows, start=2):
        if any(row.get(name) is None for name in _COLUMNS):
            expected = ", ".join(_COLUMNS)
            raise FormatError(f"{path}: row {line} lacks one of {expected}. Evaluate again.")
    hashes = _split_hashes(folder) if rows and "content_hash" not in rows[0] else {}
    return [
        Judged(
            row["key"],
            row["label"],
            row["predicted"],
            row.get("content_hash") or hashes.get(row["key"]),
        )
        for row in rows
    ]


def _split_hashes(folder: Path) -> dict[str, str | None]:
    path = folder / "split.csv"
    return {row.key: row.content_hash for row in read_split(path)} if path.exists() else {}


def _about(run: str, n_judged: int) -> dict[str, Any]:
    path = Path(run).expanduser() / "evaluation.json"
    try:
        values: Mapping[str, Any] = read_json(path)
        about = {key: values.get(key) for key in ("encoder", "protocol")}
    except (OSError, FormatError, AttributeError):
        about = {"encoder": None, "protocol": None}
    return {"run": run, "n_judged": n_judged, **about}


def _accuracy(right: int, n: int) -> dict[str, Any]:
    return {"accuracy": right / n, "interval": list(wilson(right, n))}
