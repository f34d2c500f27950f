import hashlib
import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import numpy.typing as npt
import pytest

from dinoprobe.errors import (
    ConfigurationError,
    FormatError,
    MismatchError,
    NonFiniteError,
    StoreError,
)
from dinoprobe.mapped import folder_of
from dinoprobe.store import Entry, FeatureStore, MemoryStore, default_uri
from dinoprobe.store import commits as commits_module
from dinoprobe.types import Stamp

PRINT = "ab" * 16


def names(count: int, first: int = 0) -> list[str]:
    return [hashlib.sha256(str(i).encode()).hexdigest() for i in range(first, first + count)]


def matrix(rows: int, d: int = 8, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(rows, d)).astype(np.float32)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "features")


@pytest.mark.parametrize("kind", ["lance", "memory"])
def test_rows_come_back_bit_for_bit_in_any_order(kind: str, store: FeatureStore) -> None:
    place = store if kind == "lance" else MemoryStore()
    X, hashes = matrix(50), names(50)
    place.append(PRINT, hashes[:20], X[:20])
    place.append(PRINT, hashes[20:], X[20:])
    asked = [hashes[40], *names(2, first=900), hashes[3], hashes[40]]
    rows = place.get(PRINT, asked)
    assert set(rows.position) == {hashes[40], hashes[3]}
    for name in rows.position:
        np.testing.assert_array_equal(rows.X[rows.position[name]], X[hashes.index(name)])
    known = place.known(PRINT)
    assert all(name in known for name in hashes)
    assert not any(name in known for name in names(100, first=900))


@pytest.mark.parametrize("kind", ["lance", "memory"])
def test_nothing_is_found_in_an_empty_store(kind: str, store: FeatureStore) -> None:
    place = store if kind == "lance" else MemoryStore()
    assert place.get(PRINT, names(3)).position == {}
    assert names(1)[0] not in place.known(PRINT)
    assert place.manifest(PRINT, "folder") == {}
    place.append(PRINT, [], np.empty((0, 8), np.float32))
    place.record(PRINT, "folder", [])
    place.compact(PRINT, "folder")


@pytest.mark.parametrize("kind", ["lance", "memory"])
def test_the_first_row_of_a_hash_counts(kind: str, store: FeatureStore) -> None:
    place = store if kind == "lance" else MemoryStore()
    for seed in range(3):
        place.append(PRINT, names(4), matrix(4, seed=seed))
    rows = place.get(PRINT, names(4))
    np.testing.assert_array_equal(
        rows.X[[rows.position[name] for name in names(4)]], matrix(4, seed=0)
    )


@pytest.mark.parametrize("kind", ["lance", "memory"])
def test_the_last_entry_of_a_key_counts(kind: str, store: FeatureStore) -> None:
    place = store if kind == "lance" else MemoryStore()
    old = Entry("a.jpg", Stamp(10, 5), names(1)[0], "cat", "train", "g")
    new = Entry("a.jpg", None, None, "dog", None, None, "broken", "cut", more_frames=True)
    place.record(PRINT, "folder", [old, Entry("b.jpg")])
    assert place.manifest(PRINT, "folder") == {"a.jpg": old, "b.jpg": Entry("b.jpg")}
    place.record(PRINT, "folder", [new])
    assert place.manifest(PRINT, "folder")["a.jpg"] == new
    assert place.manifest(PRINT, "another folder") == {}
    assert place.manifest("cd" * 16, "folder") == {}


def test_fingerprints_do_not_share_rows(store: FeatureStore) -> None:
    store.append(PRINT, names(2), matrix(2))
    assert store.get("cd" * 16, names(2)).position == {}


def test_another_length_under_one_fingerprint_is_refused(store: FeatureStore) -> None:
    store.append(PRINT, names(2), matrix(2, d=8))
    with pytest.raises(MismatchError, match=r"holds rows of 8 values, these rows have 6"):
        store.append(PRINT, names(2), matrix(2, d=6))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_refused(store: FeatureStore, bad: float) -> None:
    X = matrix(3)
    X[1, 4] = bad
    with pytest.raises(NonFiniteError, match="row 1"):
        store.append(PRINT, names(3), X)
    assert store.get(PRINT, names(3)).position == {}


def test_wrong_arguments_are_refused(store: FeatureStore) -> None:
    with pytest.raises(MismatchError, match="one row a hash"):
        store.append(PRINT, names(3), matrix(2))
    for text in ("", "../../etc", "AB" * 16, "abc"):
        with pytest.raises(ConfigurationError, match="lower-case hex"):
            store.get(text, names(1))
    for text in ("xyz", "ab", names(1)[0] + "00"):
        with pytest.raises(ConfigurationError, match="64 digits"):
            store.append(PRINT, [text], matrix(1))
    with pytest.raises(ConfigurationError, match="Lance forgets"):
        FeatureStore("memory://x")


def test_the_description_of_the_first_writer_stays(store: FeatureStore) -> None:
    assert store.describe(PRINT) == {}
    store.append(PRINT, names(1), matrix(1), description={"encoder": "é \udce9", "pooling": "cls"})
    store.append(PRINT, names(1, 1), matrix(1), description={"encoder": "other"})
    assert store.describe(PRINT) == {"encoder": "é \udce9", "pooling": "cls"}


def test_names_that_are_not_utf8_survive_as_escapes(store: FeatureStore) -> None:
    store.record(PRINT, "ordner\udce9", [Entry("a", label="caf\udce9")])
    assert store.manifest(PRINT, "ordner\udce9")["a"].label == r"caf\udce9"


def test_compaction_keeps_rows_order_and_entries(store: FeatureStore) -> None:
    for i in range(40):
        store.append(PRINT, [*names(2, 2 * i), names(1)[0]], matrix(3, seed=i))
        store.record(PRINT, "d", [Entry("a", Stamp(i, i)), Entry(f"k{i}")])
    before, entries = store.get(PRINT, names(80)), store.manifest(PRINT, "d")
    store.compact(PRINT, "d")
    path = store._features(PRINT)
    assert len(commits_module.load_lance().dataset(path).get_fragments()) < 40
    after = store.get(PRINT, names(80))
    assert after.position == before.position
    np.testing.assert_array_equal(after.X, before.X)
    assert store.manifest(PRINT, "d") == entries
    assert entries["a"].stamp == Stamp(39, 39)
    assert store.verify(PRINT) == (120, 0, 40)


def test_superseded_entries_are_dropped(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dinoprobe.store.feature_store._SUPERSEDED_ROWS", 10)
    for i in range(10):
        store.record(PRINT, "d", [Entry("a", Stamp(i, i)), Entry("b")])
    store.compact(PRINT, "d")
    path = store._manifest(PRINT, "d")
    assert commits_module.load_lance().dataset(path).count_rows() == 2
    assert store.manifest(PRINT, "d") == {"a": Entry("a", Stamp(9, 9)), "b": Entry("b")}
    store.record(PRINT, "d", [Entry("c")])
    assert set(store.manifest(PRINT, "d")) == {"a", "b", "c"}


def data_file(store: FeatureStore) -> Path:
    return max(Path(store._features(PRINT), "data").iterdir(), key=lambda path: path.stat().st_size)


def test_no_flipped_bit_comes_back_as_a_feature(store: FeatureStore) -> None:
    X, hashes = matrix(100, d=16), names(100)
    store.append(PRINT, hashes, X)
    path, generator = data_file(store), random.Random(7)
    sound = path.read_bytes()
    lost = refused = 0
    for _ in range(150):
        damaged = bytearray(sound)
        damaged[generator.randrange(len(sound))] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        try:
            rows = store.get(PRINT, hashes)
        except StoreError:
            refused += 1
            continue
        lost += len(hashes) - len(rows.position)
        for name, row in rows.position.items():
            np.testing.assert_array_equal(rows.X[row], X[hashes.index(name)])
    assert lost > 50
    assert refused < 50


def test_a_damaged_row_is_replaced_by_a_later_sound_one(store: FeatureStore) -> None:
    X, hashes = matrix(4, d=16), names(4)
    store.append(PRINT, hashes, X)
    path = data_file(store)
    content = bytearray(path.read_bytes())
    place = content.index(X[2].tobytes())
    content[place] ^= 1
    path.write_bytes(content)
    assert hashes[2] not in store.get(PRINT, hashes).position
    assert store.verify(PRINT) == (4, 1, 0)
    store.append(PRINT, [hashes[2]], X[2:3])
    rows = store.get(PRINT, hashes)
    np.testing.assert_array_equal(rows.X[rows.position[hashes[2]]], X[2])


@pytest.mark.parametrize("damage", ["cut", "gone", "version"])
def test_damage_is_a_store_error_with_path_and_advice(store: FeatureStore, damage: str) -> None:
    store.append(PRINT, names(10), matrix(10))
    path = data_file(store)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "gone":
        path.unlink()
    else:
        for version in Path(store._features(PRINT), "_versions").iterdir():
            version.write_bytes(b"junk")
    with pytest.raises(StoreError, match=r"features\.lance: .* delete this one folder"):
        store.get(PRINT, names(10))


def test_left_overs_of_a_killed_creation_do_no_harm(store: FeatureStore) -> None:
    other = FeatureStore(store.uri + "-other")
    other.append(PRINT, names(5), matrix(5))
    folder = Path(store._features(PRINT))
    (folder / "data").mkdir(parents=True)
    (folder / "_versions").mkdir()
    (folder / "_transactions").mkdir()
    (folder / "data" / "left.lance").write_bytes(data_file(other).read_bytes()[:77])
    (folder / "_versions" / ".tmp_1.manifest").write_bytes(b"half")
    assert store.get(PRINT, names(3)).position == {}
    store.append(PRINT, names(3), matrix(3))
    assert len(store.get(PRINT, names(3)).position) == 3


def test_a_newer_format_is_refused(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        for module in ("tables", "commits"):
            patch.setattr(f"dinoprobe.store.{module}.FORMAT", "99")
        store.append(PRINT, names(1), matrix(1))
    with pytest.raises(FormatError, match="store format 99, expected 2"):
        store.get(PRINT, names(1))


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("Generic LocalFileSystem error: No space left on device (os error 28)", "disk is full"),
        ("Permission denied (os error 13)", "no permission"),
    ],
)
def test_errors_of_the_disk_are_named(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, reason: str, message: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(reason)

    monkeypatch.setattr(commits_module.load_lance(), "write_dataset", fail)
    with pytest.raises(StoreError, match=rf"features\.lance: .*{message}"):
        store.append(PRINT, names(1), matrix(1))


def test_a_lost_race_is_run_again(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rival makes the dataset first, and then one loses the race of an append, too."""
    lance = commits_module.load_lance()
    commit, write = lance.LanceDataset.commit, lance.write_dataset
    rival = FeatureStore(store.uri)
    calls: list[str] = []

    def later(*args: object, **options: object) -> object:
        calls.append("create")
        if len(calls) == 1:
            rival.append(PRINT, names(1, 5), matrix(1))
        return commit(*args, **options)

    def lost(*args: object, **options: object) -> object:
        calls.append(str(options["mode"]))
        if len(calls) == 4:
            raise OSError("Commit conflict for version 3")
        return write(*args, **options)

    monkeypatch.setattr(lance.LanceDataset, "commit", staticmethod(later))
    monkeypatch.setattr(lance, "write_dataset", lost)
    store.append(PRINT, names(2), matrix(2))
    assert calls == ["create", "create", "append", "append", "append"]
    assert len(store.get(PRINT, [*names(2), *names(1, 5)]).position) == 3


def test_writers_who_all_want_to_be_the_first_lose_nothing(store: FeatureStore) -> None:
    """Lance's own creation lost rows of half of such races, without an error."""
    for number in range(8):
        kind, gate = f"{number:032x}", Barrier(6)

        def write(i: int, kind: str = kind, gate: Barrier = gate) -> None:
            gate.wait()
            FeatureStore(store.uri).append(kind, names(2, 2 * i), matrix(2, seed=i))

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(write, range(6)))
        assert store.verify(kind) == (12, 0, 0)


def test_the_default_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/u")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("DINOPROBE_CACHE", raising=False)
    assert default_uri() == os.path.join("/home/u", ".cache", "dinoprobe", "features")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert default_uri() == os.path.join("/x", "dinoprobe", "features")
    monkeypatch.setenv("DINOPROBE_CACHE", "~/y")
    assert FeatureStore().uri == os.path.join("/home/u", "y", "features")


def test_importing_the_store_is_cheap_and_using_it_is_silent(tmp_path: Path) -> None:
    code = (
        "import sys, dinoprobe.store, dinoprobe.files\n"
        "assert not {'lance', 'pyarrow', 'torch', 'numpy'} & set(sys.modules), sys.modules\n"
        "import numpy as np\n"
        "store = dinoprobe.store.FeatureStore(sys.argv[1])\n"
        "store.append('ab' * 16, ['00' * 32], np.ones((1, 4), np.float32))\n"
        "store.record('ab' * 16, 'd', [dinoprobe.store.Entry('a')])\n"
        "store.compact('ab' * 16, 'd')\n"
        "assert store.get('ab' * 16, ['00' * 32]).position == {'00' * 32: 0}\n"
        "import os\n"
        "pid = os.fork()\n"
        "os._exit(0) if pid == 0 else os.waitpid(pid, 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(tmp_path / "s")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_staged_rows_are_there_once_they_are_appended(store: FeatureStore) -> None:
    """Two processes write, a third one commits; what is never committed harms nobody."""
    X, hashes = matrix(9), names(9)
    description = {"encoder": "tiny"}
    staged = store.stage(PRINT, hashes[:3], X[:3], description=description)
    staged += store.stage(PRINT, hashes[3:6], X[3:6], description=description)
    lost = store.stage(PRINT, hashes[6:], X[6:], description=description)
    assert len(staged) == 2
    assert len(lost) == 1
    assert store.verify(PRINT) == (0, 0, 0)
    store.append(PRINT, names(1, first=50), matrix(1))
    store.append_staged(PRINT, staged)
    store.append_staged(PRINT, [])
    assert store.describe(PRINT) == description
    assert store.verify(PRINT) == (7, 0, 0)
    rows = store.get(PRINT, hashes)
    assert set(rows.position) == set(hashes[:6])
    for name in rows.position:
        np.testing.assert_array_equal(rows.X[rows.position[name]], X[hashes.index(name)])
    store.compact(PRINT)
    assert store.verify(PRINT) == (7, 0, 0)
    assert store.stage(PRINT, [], np.empty((0, 8), np.float32)) == []


def test_rows_staged_before_another_part_came_keep_their_parts(store: FeatureStore) -> None:
    X = matrix(4, d=8)
    staged = store.stage(PRINT, names(4), X, parts=("cls",))
    store.append(PRINT, names(2, first=20), matrix(2, d=16), parts=("cls", "mean"))
    store.append_staged(PRINT, staged)
    rows = store.get(PRINT, names(4), parts=("cls",))
    np.testing.assert_array_equal(rows.X[[rows.position[name] for name in names(4)]], X)
    assert store.get(PRINT, names(4), parts=("cls", "mean")).position == {}
    assert store.verify(PRINT) == (6, 0, 0)


def test_staged_rows_of_a_store_that_is_gone_are_an_error(
    store: FeatureStore, tmp_path: Path
) -> None:
    staged = store.stage(PRINT, names(2), matrix(2))
    (tmp_path / "features").rename(tmp_path / "moved")
    with pytest.raises(StoreError, match=r"is gone, with 1 files"):
        store.append_staged(PRINT, staged)


def test_a_scan_gives_every_row_once_block_by_block(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits_module, "PAGE_BYTES", 90 * 8 * 4)
    assert list(store.scan(PRINT)) == []
    X, hashes = matrix(300), names(300)
    for start in (0, 100, 200):
        store.append(PRINT, hashes[start : start + 100], X[start : start + 100])
    store.append(PRINT, hashes[:50], X[:50] + 1)  # written twice: the first counts
    found = list(store.scan(PRINT))
    assert [len(block) for block, _ in found] == [90, 10, 80, 20, 70, 30]  # and the copies: none
    assert [name for block, _ in found for name in block] == hashes
    np.testing.assert_array_equal(np.concatenate([rows for _, rows in found]), X)


def test_a_scan_ends_at_a_damaged_row_with_its_name(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits_module, "PAGE_BYTES", 100 * 16 * 4)
    X, hashes = matrix(200, d=16), names(200)
    store.append(PRINT, hashes[:100], X[:100])
    store.append(PRINT, hashes[100:], X[100:])
    files = sorted(Path(store.uri).rglob("*.lance"), key=os.path.getmtime)
    last = next(path for path in reversed(files) if X[150].tobytes() in path.read_bytes())
    content = last.read_bytes()
    row = X[150].tobytes()
    last.write_bytes(content.replace(row, bytes([row[0] ^ 1]) + row[1:]))
    blocks = store.scan(PRINT)
    assert next(blocks)[0] == hashes[:100]
    with pytest.raises(
        StoreError, match=rf"{hashes[150][:12]} is damaged .*Embed the dataset again"
    ):
        next(blocks)


def test_rows_come_in_a_file_where_a_folder_is_given(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, hashes = matrix(50), names(50)
    store.append(PRINT, hashes, X)
    monkeypatch.setattr(commits_module, "PAGE_BYTES", 7 * 8 * 4)
    for asked in (hashes[10:20], hashes[5:45]):  # picked, and scanned by pages
        rows = FeatureStore(store.uri, folder=tmp_path).get(PRINT, asked)
        assert folder_of(rows.X) == tmp_path
        assert list(rows.position) == asked
        for name in asked:
            np.testing.assert_array_equal(rows.X[rows.position[name]], X[hashes.index(name)])
    assert folder_of(store.get(PRINT, hashes).X) is None
