"""Parts of rows: columns of one table, that many poolings and many writers share."""

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tests.unit.test_store import PRINT, data_file, matrix, names

from dinoprobe.errors import MismatchError, StoreError
from dinoprobe.store import FeatureStore, MemoryStore
from dinoprobe.store import commits as commits_module

CLS, BOTH = ("cls",), ("cls", "mean")
ALL = ("cls_3", "cls_2", "cls", "mean")


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "features")


@pytest.fixture(params=["lance", "memory"])
def place(request: pytest.FixtureRequest, store: FeatureStore) -> FeatureStore | MemoryStore:
    return store if request.param == "lance" else MemoryStore()


def test_a_row_serves_every_request_whose_parts_it_has(place: FeatureStore | MemoryStore) -> None:
    X, hashes = matrix(5, 16), names(5)
    place.append(PRINT, hashes, X, parts=ALL)
    for parts, columns in (
        (ALL, slice(0, 16)),
        (BOTH, slice(8, 16)),
        (("cls_2", "cls"), slice(4, 12)),
        (("mean",), slice(12, 16)),
    ):
        rows = place.get(PRINT, hashes, parts=parts)
        assert len(rows.position) == 5
        for name, row in rows.position.items():
            np.testing.assert_array_equal(rows.X[row], X[hashes.index(name), columns])
        assert all(name in place.known(PRINT, parts=parts) for name in hashes)
    for absent in (("cls_4", *ALL), ("vector",)):
        assert place.get(PRINT, hashes, parts=absent).position == {}
        assert hashes[0] not in place.known(PRINT, parts=absent)
    assert place.get(PRINT, hashes).position == {}


def test_the_parts_of_a_row_are_of_one_pass(place: FeatureStore | MemoryStore) -> None:
    hashes, passes = names(3), [matrix(3, 8, seed) for seed in range(4)]
    place.append(PRINT, hashes, passes[0][:, :4], parts=CLS)
    place.append(PRINT, hashes, passes[1][:, 4:], parts=("mean",))
    assert place.get(PRINT, hashes, parts=BOTH).position == {}
    assert hashes[0] not in place.known(PRINT, parts=BOTH)
    place.append(PRINT, hashes[:2], passes[2][:2], parts=BOTH)
    place.append(PRINT, hashes, passes[3], parts=BOTH)
    both = place.get(PRINT, hashes, parts=BOTH)
    for number, of in enumerate((2, 2, 3)):
        row = both.X[both.position[hashes[number]]]
        np.testing.assert_array_equal(row, passes[of][number])
    first = place.get(PRINT, hashes, parts=CLS)
    np.testing.assert_array_equal(
        first.X[[first.position[name] for name in hashes]], passes[0][:, :4]
    )


def flipped(path: Path, values: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(values)] ^= 1
    path.write_bytes(content)


def test_a_damaged_part_leaves_the_others(store: FeatureStore) -> None:
    X, hashes = matrix(4, 32), names(4)
    store.append(PRINT, hashes, X, parts=BOTH)
    flipped(data_file(store), X[2, 16:].tobytes())
    assert len(store.get(PRINT, hashes, parts=CLS).position) == 4
    assert set(store.get(PRINT, hashes, parts=BOTH).position) == {*hashes} - {hashes[2]}
    assert store.verify(PRINT) == (4, 1, 0)
    store.append(PRINT, hashes[2:3], matrix(1, 32, 9), parts=BOTH)
    rows = store.get(PRINT, hashes, parts=BOTH)
    np.testing.assert_array_equal(rows.X[rows.position[hashes[2]]], matrix(1, 32, 9)[0])


def test_no_flipped_bit_comes_back_in_any_part(store: FeatureStore) -> None:
    """A second table of whole rows, between rows with one part: nulls are read, too."""
    X, hashes = matrix(60, 24), names(60)
    store.append(PRINT, hashes[:20], X[:20, :12], parts=CLS)
    store.append(PRINT, hashes[20:40], X[20:40], parts=BOTH)
    store.append(PRINT, hashes[40:], X[40:, 12:], parts=("mean",))
    commits_module.load_lance().dataset(store._features(PRINT)).optimize.compact_files()
    path, generator = data_file(store), random.Random(3)
    sound, lost = path.read_bytes(), 0
    for _ in range(150):
        damaged = bytearray(sound)
        damaged[generator.randrange(len(sound))] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        for parts, columns, most in ((BOTH, slice(0, 24), 20), (CLS, slice(0, 12), 40)):
            try:
                rows = store.get(PRINT, hashes, parts=parts)
            except StoreError:
                continue
            lost += most - len(rows.position)
            for name, row in rows.position.items():
                np.testing.assert_array_equal(rows.X[row], X[hashes.index(name), columns])
    assert lost > 30


def test_compaction_keeps_rows_with_and_without_a_part(store: FeatureStore) -> None:
    kinds = [CLS, BOTH, ("mean",), ALL]
    for i in range(40):
        parts = kinds[i % 4]
        store.append(PRINT, [*names(2, 2 * i), names(1)[0]], matrix(3, 4 * len(parts), i),
                     parts=parts)  # fmt: skip
    before = {parts: store.get(PRINT, names(80), parts=parts) for parts in kinds}
    assert [len(rows.position) for rows in before.values()] == [60, 41, 61, 21]
    sums = store.verify(PRINT)
    assert sums == (120, 0, 36 + 1)  # the first append holds its first hash twice
    store.compact(PRINT)
    dataset = commits_module.load_lance().dataset(store._features(PRINT))
    assert len(dataset.get_fragments()) < 40
    for parts, rows in before.items():
        after = store.get(PRINT, names(80), parts=parts)
        assert after.position == rows.position
        np.testing.assert_array_equal(after.X, rows.X)
    assert store.verify(PRINT) == sums


def test_many_writers_of_other_parts_lose_nothing(store: FeatureStore) -> None:
    kinds = [CLS, ("mean",), BOTH, ALL]

    def write(number: int) -> None:
        parts = kinds[number % 4]
        rows = matrix(3, 4 * len(parts), number)
        FeatureStore(store.uri).append(PRINT, names(3, 3 * number), rows, parts=parts)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(24)))
    assert store.verify(PRINT) == (72, 0, 0)
    for number in range(24):
        parts = kinds[number % 4]
        rows = store.get(PRINT, names(3, 3 * number), parts=parts)
        order = [rows.position[name] for name in names(3, 3 * number)]
        np.testing.assert_array_equal(rows.X[order], matrix(3, 4 * len(parts), number))


def test_a_rival_who_adds_the_column_first_is_no_harm(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.append(PRINT, names(1), matrix(1, 4), parts=CLS)
    kind = type(commits_module.load_lance().dataset(store._features(PRINT)))
    add, rival, calls = kind.add_columns, FeatureStore(store.uri), 0

    def slower(self: object, *args: object, **options: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 1:
            rival.append(PRINT, names(1, 5), matrix(1, 8), parts=BOTH)
        return add(self, *args, **options)

    monkeypatch.setattr(kind, "add_columns", slower)
    store.append(PRINT, names(2, 7), matrix(2, 8, 7), parts=BOTH)
    rows = store.get(PRINT, [*names(1, 5), *names(2, 7)], parts=BOTH)
    assert len(rows.position) == 3
    np.testing.assert_array_equal(rows.X[rows.position[names(1, 7)[0]]], matrix(2, 8, 7)[0])
    assert store.verify(PRINT) == (4, 0, 0)


def test_a_column_that_was_added_before_a_kill_does_no_harm(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.append(PRINT, names(2), matrix(2, 4), parts=CLS)

    def killed(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(commits_module.load_lance(), "write_dataset", killed)
        with pytest.raises(StoreError, match="disk is full"):
            store.append(PRINT, names(2), matrix(2, 8), parts=BOTH)
    dataset = commits_module.load_lance().dataset(store._features(PRINT))
    assert {"mean", "mean_check"} < set(dataset.schema.names)
    assert store.get(PRINT, names(2), parts=BOTH).position == {}
    assert len(store.get(PRINT, names(2), parts=CLS).position) == 2
    assert store.verify(PRINT) == (2, 0, 0)
    store.append(PRINT, names(2), matrix(2, 8), parts=BOTH)
    assert len(store.get(PRINT, names(2), parts=BOTH).position) == 2


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (("cls", "mean", "cls_2"), "8 values in the parts cls, mean, cls_2"),
        (("cls", "cls"), "with different names"),
        ((), "in the parts none"),
        (("cls", "content_hash"), "with different names"),
        (("cls", "cls_check"), "with different names"),
        (("cls", "a.b"), "lower-case letters"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    store: FeatureStore, parts: tuple[str, ...], message: str
) -> None:
    with pytest.raises(MismatchError, match=message):
        store.append(PRINT, names(2), matrix(2, 8), parts=parts)


def test_a_part_has_one_length(store: FeatureStore) -> None:
    store.append(PRINT, names(2), matrix(2, 4), parts=CLS)
    with pytest.raises(MismatchError, match="holds rows of 4 values, these rows have 3"):
        store.append(PRINT, names(2), matrix(2, 6), parts=BOTH)
    assert store.get(PRINT, names(2), parts=BOTH).position == {}
