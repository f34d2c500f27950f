"""Tables of predictions: rows put in place of others, all or none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dinoprobe.errors import FormatError, StoreError
from dinoprobe.files import WriteError
from dinoprobe.predicted import Terms, open_table
from dinoprobe.predicted.columns import schema
from dinoprobe.predicted.terms import METADATA_KEY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dinoprobe.predicted.tables import Table

TERMS = Terms("d" * 64, ("cat", "dog"), "f" * 16)
ODD = 'it\'s "odd" \\ %_; -- 猫\n.png'


@pytest.fixture(params=["parquet", "lance", "uri"])
def table(request: pytest.FixtureRequest, tmp_path: Path) -> Table:
    scheme = "file-object-store://" if request.param == "uri" else ""
    suffix = "parquet" if request.param == "parquet" else "lance"
    return open_table(f"{scheme}{tmp_path}/table.{suffix}")


def rows(*keys: str, content: str = "a") -> Iterator[Any]:
    """A batch for each row."""
    for key in keys:
        values = {"key": key, "content_hash": content, "abstained": False, "novel": False}
        yield pa.RecordBatch.from_pylist([values], schema=schema(TERMS))


def contents(table: Table) -> dict[str, str | None]:
    return {key: state.content_hash for key, state in table.states().items()}


def all_keys(table: Table) -> list[str]:
    if table.place.endswith(".parquet"):
        found = pq.read_table(table.place)
    else:
        found = lance.dataset(table.place).to_table()
    keys: list[str] = found.column("key").to_pylist()
    return sorted(keys)


def test_a_table_is_made_changed_and_emptied(table: Table) -> None:
    assert table.terms() is None
    table.replace(schema(TERMS), rows("one", ODD, "three"))
    stored = table.terms()
    assert stored is not None
    assert TERMS.differs(stored) is None
    assert stored["classes"] == ["cat", "dog"]
    assert contents(table) == dict.fromkeys(["one", ODD, "three"], "a")
    table.change(schema(TERMS), rows(ODD, "four", content="b"), {"one"})
    assert contents(table) == {"one": "a", ODD: "b", "four": "b"}
    assert len(all_keys(table)) == 3
    table.change(schema(TERMS), rows(), {"one"})
    assert contents(table) == {"one": "a"}
    table.change(schema(TERMS), rows(), set())
    assert contents(table) == {}
    table.change(schema(TERMS), rows("five"), set())
    assert all_keys(table) == ["five"]
    assert table.terms() == stored


def test_what_is_raised_on_the_way_leaves_all_as_it_was(table: Table) -> None:
    def failing() -> Iterator[Any]:
        yield from rows("two", "three", content="b")
        raise StoreError("a damaged row")

    with pytest.raises(StoreError, match="a damaged row"):
        table.replace(schema(TERMS), failing())
    assert table.terms() is None
    table.replace(schema(TERMS), rows("one", "two"))
    before = contents(table)
    with pytest.raises(StoreError, match="a damaged row"):
        table.replace(schema(TERMS), failing())
    with pytest.raises(StoreError, match="a damaged row"):
        table.change(schema(TERMS), failing(), {"one"})
    assert contents(table) == before


def test_two_runs_never_leave_two_rows_of_a_key(tmp_path: Path) -> None:
    place = str(tmp_path / "table.lance")
    first, second = open_table(place), open_table(place)
    first.replace(schema(TERMS), rows("one"))
    assert contents(first) == contents(second) == {"one": "a"}
    first.change(schema(TERMS), rows("two"), {"one"})
    with pytest.raises(WriteError, match="changed it meanwhile"):
        second.change(schema(TERMS), rows("two"), {"one"})
    assert all_keys(first) == ["one", "two"]


def test_many_small_changes_are_joined(tmp_path: Path) -> None:
    table = open_table(str(tmp_path / "table.lance"))
    table.replace(schema(TERMS), rows("0"))
    for number in range(1, 40):
        kept = table.states().keys()
        table.change(schema(TERMS), rows(str(number)), kept)
    assert len(lance.dataset(table.place).get_fragments()) < 33
    assert len(all_keys(table)) == 40


def test_terms_say_what_is_otherwise() -> None:
    stored = {"format": "older", "classifier": TERMS.classifier}
    assert TERMS.differs(stored) == "format"
    assert TERMS.differs({}) == "format"


def test_metadata_that_is_no_object_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "table.parquet"
    for value in (b"[1]", b"{"):
        pq.write_table(
            pa.table({"key": ["a"]}).replace_schema_metadata({METADATA_KEY: value}), place
        )
        with pytest.raises(FormatError, match="no predictions of dinoprobe"):
            open_table(str(place)).terms()
