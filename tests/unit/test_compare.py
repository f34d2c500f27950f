from __future__ import annotations

from math import comb
from pathlib import Path

import pytest

from dinoprobe.cli.compare import _DEFAULT_AT_LEAST
from dinoprobe.compare import (
    AT_LEAST,
    Judged,
    compare,
    compare_runs,
    match,
    mcnemar,
    paired_interval,
    read_predictions,
)
from dinoprobe.errors import ConfigurationError, DatasetError, FormatError, MismatchError
from dinoprobe.evaluation import wilson

HEADER = "key,label,predicted,probability,correct"


def write(folder: Path, rows: list[tuple[str, str, str, str | None]]) -> str:
    """A run's predictions.csv of (key, label, predicted, hash or None for a file without them)."""
    folder.mkdir()
    hashed = all(row[3] is not None for row in rows)
    lines = [HEADER + (",content_hash" if hashed else "")]
    for key, label, predicted, content_hash in rows:
        line = f"{key},{label},{predicted},0.900000,{int(label == predicted)}"
        lines.append(line + (f",{content_hash}" if hashed else ""))
    (folder / "predictions.csv").write_text("\n".join(lines) + "\n")
    return str(folder)


def rows(n: int, wrong: set[int], prefix: str = "") -> list[tuple[str, str, str, str | None]]:
    return [(f"{prefix}{i}.png", "cat", "dog" if i in wrong else "cat", f"h{i}") for i in range(n)]


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (0, 5), (0, 6), (3, 12), (7, 7), (40, 18)])
def test_mcnemar_is_twice_the_binomial_tail(only_a: int, only_b: int) -> None:
    n = only_a + only_b
    tail = sum(comb(n, i) for i in range(min(only_a, only_b) + 1)) / 2**n
    assert mcnemar(only_a, only_b) == pytest.approx(min(1.0, 2 * tail))
    assert mcnemar(only_a, only_b) == pytest.approx(mcnemar(only_b, only_a))


@pytest.mark.parametrize(
    ("table", "low", "high", "digits"),
    [
        ((36, 12, 2, 0), 0.0569, 0.3404, 4),  # Newcombe 1998, table III
        ((1, 1, 7, 12), -0.507, -0.026, 3),  # Fagerland, Lydersen and Laake 2014
    ],
)
def test_the_interval_of_published_tables(
    table: tuple[int, int, int, int], low: float, high: float, digits: int
) -> None:
    assert [round(bound, digits) for bound in paired_interval(*table)] == [low, high]


def test_the_interval_turns_with_the_sides_and_exists_at_the_edges() -> None:
    low, high = paired_interval(30, 9, 4, 7)
    assert paired_interval(30, 4, 9, 7) == pytest.approx((-high, -low))
    for table in [(10, 0, 0, 0), (0, 10, 0, 0), (0, 0, 0, 10), (0, 5, 5, 0)]:
        low, high = paired_interval(*table)
        assert -1 <= low <= (table[1] - table[2]) / 10 <= high <= 1
        assert high > low


@pytest.mark.parametrize(("table", "phi"), [((3, 1, 1, 1), 0.0), ((80, 5, 5, 10), 725 / 1275)])
def test_a_positive_correlation_is_reduced_by_half_the_images(
    table: tuple[int, int, int, int], phi: float
) -> None:
    both, only, _, neither = table
    assert both * neither - only * only > 0
    share = (both + only) / sum(table)
    low, high = wilson(both + only, sum(table))
    x, y = share - low, high - share
    half = (x * x - 2 * phi * x * y + y * y) ** 0.5
    assert paired_interval(*table) == pytest.approx((-half, half))


def test_counts_and_verdicts() -> None:
    found = compare([(True, True)] * 80 + [(True, False)] * 14 + [(False, True)] * 2)
    assert (found.n, found.both_right, found.only_a, found.only_b) == (96, 80, 14, 2)
    assert found.difference == pytest.approx(12 / 96)
    assert found.verdict.startswith("A is right more often than B, by 12.5 points")
    other = compare([(True, True)] * 80 + [(True, False)] * 2 + [(False, True)] * 14)
    assert other.verdict.startswith("B is right more often than A, by 12.5 points")
    even = compare([(True, True)] * 80 + [(True, False)] * 6 + [(False, False)] * 4)
    assert even.verdict.startswith("A is right more often")
    assert even.p_value == pytest.approx(2 / 2**6)
    assert "do not tell A and B apart" in compare([(True, False)] * 5 + [(True, True)] * 9).verdict
    same = compare([(True, True)] * 20)
    assert (same.p_value, same.difference) == (1.0, 0.0)
    assert "the same 20 images" in same.verdict


def test_images_are_matched_by_content_wherever_they_lie(tmp_path: Path) -> None:
    a = write(tmp_path / "a", rows(20, {1, 2}))
    b = write(tmp_path / "b", rows(25, {2, 3, 4, 24}, "moved/"))
    found = compare_runs(a, b)
    assert found.matched_by == "content hash"
    counts = found.comparison
    assert (counts.n, counts.both_right, counts.only_a, counts.only_b) == (20, 16, 2, 1)
    assert found.notes == ("20 images are common: A judged 20 rows, B 25.",)
    assert found.summary["a"]["accuracy"] == 0.9
    assert found.summary["b"]["n_judged"] == 25


def test_keys_match_where_one_side_has_no_hashes(tmp_path: Path) -> None:
    a = write(tmp_path / "a", rows(20, {1}))
    b = write(tmp_path / "b", [(k, y, p, None) for k, y, p, _ in rows(20, {3})])
    found = compare_runs(a, b)
    assert (found.matched_by, found.comparison.n) == ("key", 20)
    assert (found.comparison.only_a, found.comparison.only_b) == (1, 1)


def test_hashes_of_an_older_run_come_from_its_split(tmp_path: Path) -> None:
    folder = Path(write(tmp_path / "a", [("0.png", "cat", "cat", None)]))
    (folder / "split.csv").write_text(
        "key,label,split,group,content_hash\n0.png,cat,test,,h0\n1.png,cat,train,,h1\n"
    )
    assert read_predictions(str(folder)) == [Judged("0.png", "cat", "cat", "h0")]


def test_identical_images_count_once_and_two_labels_leave_out() -> None:
    once = [Judged("1", "cat", "cat", "h"), Judged("2", "cat", "cat", "h")]
    pairs, _, notes = match(once, once)
    assert len(pairs) == 1
    assert notes == ("1 images are common: A judged 2 rows, B 2.",)
    torn = [*once, Judged("3", "dog", "cat", "h"), Judged("4", "dog", "dog", "other")]
    pairs, _, notes = match(torn, torn)
    assert [one.key for one, _ in pairs] == ["4"]
    assert "two labels" in notes[1]


def test_other_labels_are_refused(tmp_path: Path) -> None:
    a = write(tmp_path / "a", rows(20, set()))
    other = rows(20, set())
    other[7] = ("7.png", "dog", "dog", "h7")
    with pytest.raises(MismatchError, match=r"7\.png: labelled 'cat' in A.*'dog'"):
        compare_runs(a, write(tmp_path / "b", other))


def test_too_few_common_images_are_refused(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", rows(9, {1})), write(tmp_path / "b", rows(9, set()))
    with pytest.raises(DatasetError, match="9 images in common"):
        compare_runs(a, b)
    assert compare_runs(a, b, at_least=9).comparison.n == 9
    with pytest.raises(ConfigurationError, match="at_least is 0"):
        compare_runs(a, b, at_least=0)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    good = write(tmp_path / "a", rows(12, set()))
    with pytest.raises(FormatError, match=r"predictions\.csv: not there"):
        compare_runs(good, str(tmp_path))
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "predictions.csv").write_bytes(b"key,label\n1.png\n")
    with pytest.raises(FormatError, match="row 2 lacks"):
        compare_runs(good, str(broken))
    (broken / "predictions.csv").write_bytes(b"key\xff,label\n")
    with pytest.raises(FormatError, match="not a UTF-8 CSV"):
        compare_runs(good, str(broken))


def test_the_command_line_names_the_default() -> None:
    assert _DEFAULT_AT_LEAST == AT_LEAST
