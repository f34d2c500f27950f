import csv
import os
import random
import signal
import subprocess
import sys
import threading
import time
import types
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from dinoprobe.engine import Embedding, Encoded, Flush, embed, encode, write_failures
from dinoprobe.engine import pipeline as pipeline_module
from dinoprobe.engine.memory import images_in_flight
from dinoprobe.errors import (
    ConfigurationError,
    EncoderError,
    ImageError,
    MismatchError,
    StoreError,
)
from dinoprobe.pooling import columns_of, parts_of, pooled_fingerprint
from dinoprobe.store import FeatureStore, MemoryStore
from dinoprobe.types import Dataset, Failure, Sample, Source, Stamp

SIDE = 8


class Decoder:
    """Stands in for `preprocess.prepare`: bytes are pixels, and `bad...` is a broken image."""

    def __init__(self) -> None:
        self.decoded: list[bytes] = []

    def __call__(self, image: Any, preprocessing: object) -> torch.Tensor:
        content = image if isinstance(image, bytes) else image.tobytes()
        self.decoded.append(content)
        if content.startswith(b"bad"):
            raise ImageError("truncated after\n3 bytes", "broken")
        seed = int.from_bytes(content[:6], "little")
        pixels = np.random.default_rng(seed).integers(0, 256, (3, SIDE, SIDE), dtype=np.uint8)
        return torch.from_numpy(pixels)


@pytest.fixture(autouse=True)
def decoder(monkeypatch: pytest.MonkeyPatch) -> Decoder:
    fake: Any = types.ModuleType("dinoprobe.preprocess")
    fake.prepare = Decoder()
    fake.has_more_frames = lambda content: content.endswith(b"film")
    monkeypatch.setitem(sys.modules, "dinoprobe.preprocess", fake)
    made: Decoder = fake.prepare
    return made


@dataclass
class TinyEncoder:
    """A real, small torch model with attention over 4 patches, so that neighbours could matter."""

    dimension: int = 12
    fingerprint: str = "ab" * 16
    preprocessing: object = None
    description: dict[str, Any] = field(default_factory=lambda: {"kind": "tiny"})
    batches: list[int] = field(default_factory=list)
    room: int = 10**9

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.embed = torch.randn(48, self.dimension, generator=generator) / 7
        self.mix = torch.randn(self.dimension, self.dimension, generator=generator) / 3

    def encode(self, images: torch.Tensor) -> npt.NDArray[np.float32]:
        self.batches.append(len(images))
        if len(images) > self.room:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")
        x = images.float() / 255 - 0.5
        patches = x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(-1, 4, 48)
        tokens = patches @ self.embed
        weights = (tokens @ self.mix @ tokens.transpose(1, 2)).softmax(-1)
        return (weights @ tokens).mean(1).numpy()


class Memory(Source):
    def __init__(self, content: bytes | None, stamp: Stamp | None = None) -> None:
        self.content, self._stamp, self.reads = content, stamp, 0

    def read(self) -> bytes:
        self.reads += 1
        if self.content is None:
            raise OSError("the disk is\ngone")
        return self.content

    def stamp(self) -> Stamp | None:
        return self._stamp


def image(number: int) -> bytes:
    return number.to_bytes(4, "little") + b"image"


def dataset_of(contents: dict[str, bytes | None], uri: str = "here", age: int = 1) -> Dataset:
    samples = [
        Sample(key, Memory(content, Stamp(9, age)), label=key[0], split="train", group="g")
        for key, content in contents.items()
    ]
    return Dataset(uri, samples, tuple(sorted({key[0] for key in contents})), {"text file": 2})


def numbered(count: int, first: int = 0) -> dict[str, bytes | None]:
    return {f"{'cd'[i % 2]}{i:04}.jpg": image(i) for i in range(first, first + count)}


def reads(dataset: Dataset) -> int:
    return sum(sample.source.reads for sample in dataset.samples)  # type: ignore[attr-defined]


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "store")


# encode


def test_results_come_in_the_order_of_the_samples() -> None:
    contents = numbered(50) | {"z-bad": b"bad", "z-gone": None} | numbered(20, first=50)
    encoder = TinyEncoder()
    results = list(encode(dataset_of(contents).samples, encoder, batch_size=7, workers=3))
    assert [result.key for result in results] == list(contents)
    assert {type(result) for result in results} == {Encoded, Failure}
    assert results[50] == Failure("z-bad", "broken", "truncated after 3 bytes")
    assert results[51] == Failure("z-gone", "unreadable", "the disk is gone")
    assert sum(encoder.batches) == 70


@pytest.mark.parametrize(
    ("batch_size", "workers"), [(1, 1), (3, 2), (5, 1), (24, 4), ("auto", "auto")]
)
def test_features_do_not_depend_on_batch_or_threads(batch_size: Any, workers: Any) -> None:
    """Bit for bit would be too much to ask of BLAS for every shape: 1e-6, with features near 1."""
    samples = dataset_of(numbered(25)).samples
    one_by_one = [result for sample in samples for result in encode([sample], TinyEncoder())]
    together = list(encode(samples, TinyEncoder(), batch_size=batch_size, workers=workers))
    for alone, beside in zip(one_by_one, together, strict=True):
        assert isinstance(alone, Encoded)
        assert isinstance(beside, Encoded)
        np.testing.assert_allclose(beside.row, alone.row, rtol=0, atol=1e-6)


def test_no_more_is_read_than_a_few_batches_and_two_a_worker() -> None:
    taken = 0

    def endless() -> Iterator[Sample]:
        nonlocal taken
        while True:
            taken += 1
            yield Sample(f"{taken}", Memory(image(taken)))

    results = encode(endless(), TinyEncoder(), batch_size=4, workers=2)
    for _ in range(10):
        next(results)
    ahead, in_lanes = 2 * 4 + 2 * 2, (2 + 1) * 4
    assert taken <= 10 + 4 + ahead + in_lanes
    results.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name.startswith("dinoprobe-")]


def test_readers_use_one_torch_thread_each_and_leave_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inside: list[int] = []
    later: list[int] = []
    decode = sys.modules["dinoprobe.preprocess"].prepare

    def watched(image: Any, preprocessing: object) -> torch.Tensor:
        inside.append(torch.get_num_threads())
        return decode(image, preprocessing)

    monkeypatch.setattr(sys.modules["dinoprobe.preprocess"], "prepare", watched)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        list(encode(dataset_of(numbered(20)).samples, TinyEncoder(), workers=4))
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert (set(inside), later, torch.get_num_threads()) == ({1}, [3], 3)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("room", [1, 2, 3, 7])
def test_a_full_memory_halves_the_batch_and_keeps_the_rows(room: int) -> None:
    samples = dataset_of(numbered(33)).samples
    narrow, wide = TinyEncoder(room=room), TinyEncoder()
    small = [
        r.row for r in encode(samples, narrow, batch_size=16, workers=1) if isinstance(r, Encoded)
    ]
    large = [r.row for r in encode(samples, wide, batch_size=16) if isinstance(r, Encoded)]
    np.testing.assert_allclose(np.stack(small), np.stack(large), rtol=0, atol=1e-6)
    assert sum(size > room for size in narrow.batches) <= 4, "the size that fits is kept"


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_a_single_image_too_large_is_an_error_with_advice(error: Exception) -> None:
    encoder = TinyEncoder()

    def fail(images: torch.Tensor) -> Any:
        raise error

    encoder.encode = fail  # type: ignore[method-assign]
    with pytest.raises(EncoderError, match=r"single image of 8 x 8 pixels.*smaller encoder"):
        list(encode(dataset_of(numbered(3)).samples, encoder))


def test_another_error_of_the_encoder_is_not_swallowed() -> None:
    encoder = TinyEncoder()

    def fail(images: torch.Tensor) -> Any:
        raise RuntimeError("shapes do not match")

    encoder.encode = fail  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="shapes do not match"):
        list(encode(dataset_of(numbered(3)).samples, encoder))
    encoder.encode = lambda images: np.zeros((len(images), 5), np.float32)  # type: ignore[method-assign]
    with pytest.raises(EncoderError, match=r"shape \(3, 5\), expected \(3, 12\)"):
        list(encode(dataset_of(numbered(3)).samples, encoder))


@pytest.mark.parametrize("value", [0, -1, float("nan"), True, "long"])
def test_a_wrong_timeout_is_refused(value: Any) -> None:
    with pytest.raises(
        ConfigurationError, match=r"timeout .*expected seconds, more than 0, or None"
    ):
        list(encode([], TinyEncoder(), timeout_s=value))


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "many"])
def test_wrong_sizes_are_refused(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="batch size"):
        list(encode([], TinyEncoder(), batch_size=value))
    with pytest.raises(ConfigurationError, match="workers"):
        list(encode([], TinyEncoder(), workers=value))


def test_cuda_gets_larger_batches() -> None:
    encoder: Any = TinyEncoder()
    assert pipeline_module._batch_size("auto", encoder) == 4
    encoder.device = torch.device("cuda:0")
    assert pipeline_module._batch_size("auto", encoder) == 128


# embed


def test_the_result_follows_the_dataset(store: FeatureStore) -> None:
    contents = numbered(10) | {"x-bad": b"bad", "a-last": image(77)}
    for place in (None, store, store):
        result = embed(dataset_of(contents), TinyEncoder(), store=place)
        features = result.features
        assert features.keys == tuple(key for key in contents if key != "x-bad")
        assert features.X.shape == (11, 12)
        assert features.X.dtype == np.float32
        assert list(features.y) == [key[0] for key in features.keys]
        assert features.splits == ("train",) * 11
        assert features.groups == ("g",) * 11
        assert features.classes == ("a", "c", "d", "x")
        assert features.failures == (Failure("x-bad", "broken", "truncated after 3 bytes"),)
        assert (result.embedded, result.failed, result.skipped) == (11, 1, 2)
    assert store.describe("ab" * 16) == {"kind": "tiny"}


def test_a_second_run_reads_decodes_and_encodes_nothing(
    store: FeatureStore, decoder: Decoder
) -> None:
    contents = numbered(20) | {"x-bad": b"bad"}
    first = embed(dataset_of(contents), TinyEncoder(), store=store)
    assert (first.cached, first.encoded, first.embedded) == (0, 20, 20)
    decoder.decoded.clear()
    again, encoder = dataset_of(contents), TinyEncoder()
    second = embed(again, encoder, store=store)
    assert (second.cached, second.encoded, second.embedded, second.failed) == (20, 0, 20, 1)
    assert (reads(again), decoder.decoded, encoder.batches) == (0, [], [])
    assert second.content_digest() == first.content_digest()
    assert second.features.failures == first.features.failures
    assert any("only touched files" in note for note in second.notes)


def test_a_young_file_is_read_again_but_not_decoded(store: FeatureStore, decoder: Decoder) -> None:
    contents, now = numbered(4), time.time_ns()
    embed(dataset_of(contents, age=now), TinyEncoder(), store=store)
    decoder.decoded.clear()
    again = dataset_of(contents, age=now)
    assert embed(again, TinyEncoder(), store=store).cached == 4
    assert (reads(again), decoder.decoded) == (4, [])


def test_a_new_name_is_read_and_not_decoded(store: FeatureStore, decoder: Decoder) -> None:
    embed(dataset_of(numbered(5)), TinyEncoder(), store=store)
    decoder.decoded.clear()
    renamed = dataset_of({f"new{i}": image(i) for i in range(5)}, uri="elsewhere")
    result = embed(renamed, TinyEncoder(), store=store)
    assert (result.cached, result.encoded, reads(renamed), decoder.decoded) == (5, 0, 5, [])


def test_only_changed_bytes_are_encoded_again(store: FeatureStore, decoder: Decoder) -> None:
    contents = numbered(5)
    embed(dataset_of(contents), TinyEncoder(), store=store)
    decoder.decoded.clear()
    changed = dataset_of(contents, age=2)
    changed.samples[3].source.content = image(99)  # type: ignore[attr-defined]
    result = embed(changed, TinyEncoder(), store=store)
    assert (result.cached, result.encoded, decoder.decoded) == (4, 1, [image(99)])


def test_new_labels_cost_nothing_and_are_recorded(store: FeatureStore) -> None:
    embed(dataset_of(numbered(3)), TinyEncoder(), store=store)
    again = dataset_of(numbered(3))
    relabelled = Dataset("here", [s._replace(label="new") for s in again.samples], ("new",))
    result = embed(relabelled, TinyEncoder(), store=store)
    assert (list(result.features.y), result.cached, reads(again)) == (["new"] * 3, 3, 0)
    assert {e.label for e in store.manifest("ab" * 16, "here").values()} == {"new"}


def test_identical_images_are_encoded_once(store: FeatureStore) -> None:
    contents: dict[str, bytes | None] = {f"k{i:03}": image(i % 3) for i in range(60)}
    for place in (None, store):
        encoder = TinyEncoder()
        result = embed(dataset_of(contents), encoder, store=place, workers=4)
        assert (result.embedded, result.encoded, result.cached) == (60, 3, 0)
        assert sum(encoder.batches) == 3
        assert result.notes == (
            "57 images have the same bytes as another one and were encoded once.",
        )
        for i in range(60):
            np.testing.assert_array_equal(result.features.X[i], result.features.X[i % 3])


def test_animations_are_mentioned_in_every_run(store: FeatureStore) -> None:
    contents = numbered(3) | {"film": image(8) + b"film"}
    for _ in range(2):
        notes = embed(dataset_of(contents), TinyEncoder(), store=store).notes
        assert notes == ("1 images are animated or have pages: the first frame was used.",)


def test_copies_of_a_broken_image_all_fail(store: FeatureStore) -> None:
    contents: dict[str, bytes | None] = {f"k{i}": b"bad" for i in range(5)}
    for _ in range(3):
        result = embed(dataset_of(contents), TinyEncoder(), store=store)
        assert [failure.key for failure in result.features.failures] == list(contents)
        assert {failure.kind for failure in result.features.failures} == {"broken"}


def test_what_could_not_be_read_is_tried_again(store: FeatureStore) -> None:
    first = embed(dataset_of({"a": image(1), "b": None}), TinyEncoder(), store=store)
    assert first.features.failures == (Failure("b", "unreadable", "the disk is gone"),)
    second = embed(dataset_of({"a": image(1), "b": image(2)}), TinyEncoder(), store=store)
    assert (second.embedded, second.failed, second.encoded) == (2, 0, 1)


def test_features_that_are_not_finite_are_failures(store: FeatureStore) -> None:
    encoder = TinyEncoder()
    honest = encoder.encode

    def poisoned(images: torch.Tensor) -> npt.NDArray[np.float32]:
        rows = honest(images)
        rows[1, 3] = np.nan
        return rows

    encoder.encode = poisoned  # type: ignore[method-assign]
    result = embed(dataset_of(numbered(4)), encoder, store=store, batch_size=4)
    assert [(f.key, f.kind) for f in result.features.failures] == [("d0001.jpg", "non-finite")]
    assert np.isfinite(result.features.X).all()
    assert store.verify("ab" * 16).rows == 3


@dataclass
class PooledEncoder(TinyEncoder):
    """A CLS and a mean, of 6 values each; `poison` makes the mean NaN."""

    pooling: str = "cls+mean"
    base_fingerprint: str = "cd" * 16
    poison: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.fingerprint = pooled_fingerprint(self.base_fingerprint, self.pooling)
        self.dimension = 6 * len(parts_of(self.pooling))
        self.description = {"kind": "tiny", "pooling": self.pooling}

    def encode(self, images: torch.Tensor) -> npt.NDArray[np.float32]:
        rows = super().encode(images)
        if self.poison:
            rows[1:2, 7] = np.nan
        return rows[:, columns_of("cls+mean", self.pooling, 12)]


@pytest.fixture(params=["lance", "memory"])
def place(request: pytest.FixtureRequest, store: FeatureStore) -> FeatureStore | MemoryStore:
    return store if request.param == "lance" else MemoryStore()


def test_features_of_one_pass_serve_its_poolings(place: FeatureStore | MemoryStore) -> None:
    dataset = dataset_of(numbered(6))
    whole = embed(dataset, PooledEncoder(), store=place)
    assert (whole.features.pooling, whole.features.base_fingerprint) == ("cls+mean", "cd" * 16)
    seen = reads(dataset)
    for pooling in ("cls", "mean", "cls+mean"):
        encoder = PooledEncoder(pooling=pooling)
        found = embed(dataset, encoder, store=place)
        assert (found.cached, found.encoded, encoder.batches) == (6, 0, [])
        view = whole.features.pooled(pooling)
        np.testing.assert_array_equal(found.features.X, view.X)
        assert found.features.fingerprint == view.fingerprint == encoder.fingerprint
    assert reads(dataset) == seen  # one manifest for all poolings


def test_more_parts_are_encoded_again_and_of_one_pass(place: FeatureStore | MemoryStore) -> None:
    dataset = dataset_of(numbered(6))
    embed(dataset, PooledEncoder(pooling="cls"), store=place)
    both = embed(dataset, PooledEncoder(), store=place)
    assert (both.cached, both.encoded) == (0, 6)
    np.testing.assert_array_equal(both.features.X, embed(dataset, PooledEncoder()).features.X)
    assert embed(dataset, PooledEncoder(pooling="mean"), store=place).cached == 6


def test_a_table_says_what_its_rows_have_in_common(store: FeatureStore) -> None:
    embed(dataset_of(numbered(2)), PooledEncoder(pooling="cls"), store=store)
    assert store.describe("cd" * 16) == {"kind": "tiny"}


def test_a_part_that_is_not_finite_fails_no_other_pooling(
    place: FeatureStore | MemoryStore,
) -> None:
    dataset = dataset_of(numbered(4))
    first = embed(dataset, PooledEncoder(poison=True), store=place, batch_size=4)
    assert [f.kind for f in first.features.failures] == ["non-finite"]
    alone = embed(dataset, PooledEncoder(pooling="cls", poison=True), store=place, batch_size=4)
    assert (alone.cached, alone.encoded, alone.failed) == (3, 1, 0)
    again = embed(dataset, PooledEncoder(poison=True), store=place, batch_size=4)
    assert (again.cached, again.embedded, again.failed) == (3, 4, 0)  # alone it is row 0


def test_an_empty_dataset_and_one_that_fails_whole_give_empty_features(
    store: FeatureStore,
) -> None:
    for contents in ({}, {"a": b"bad", "b": None}):
        for place in (None, store):
            result = embed(dataset_of(contents), TinyEncoder(), store=place)
            assert result.features.X.shape == (0, 12)
            assert result.failed == len(contents)
            assert result.images_per_second == 0


def test_an_encoder_with_other_rows_under_one_fingerprint_is_refused(store: FeatureStore) -> None:
    embed(dataset_of(numbered(3)), TinyEncoder(), store=store)
    with pytest.raises(MismatchError, match=r"rows of 12 values .* the encoder gives 10"):
        embed(dataset_of(numbered(3)), TinyEncoder(dimension=10), store=store)
    with pytest.raises(MismatchError, match=r"rows of 12 values, these rows have 10"):
        embed(dataset_of(numbered(3, first=9)), TinyEncoder(dimension=10), store=store)


def test_ctrl_c_keeps_what_is_finished_and_stops_the_threads(store: FeatureStore) -> None:
    encoder = TinyEncoder()
    honest = encoder.encode

    def interrupted(images: torch.Tensor) -> npt.NDArray[np.float32]:
        if len(encoder.batches) == 5:
            raise KeyboardInterrupt
        return honest(images)

    encoder.encode = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        embed(dataset_of(numbered(60)), encoder, store=store, batch_size=4, workers=1)
    assert not [t for t in threading.enumerate() if t.name.startswith("dinoprobe-")]
    assert store.verify("ab" * 16).rows == 20
    result = embed(dataset_of(numbered(60)), TinyEncoder(), store=store)
    assert (result.cached, result.encoded) == (20, 40)


def test_rows_are_committed_on_the_way(store: FeatureStore) -> None:
    seen: list[int] = []

    class Watch:
        def start(self, total: int, already: int) -> None:
            assert (total, already) == (30, 0)

        def advance(self, images: int, failures: int) -> None:
            seen.append(store.verify("ab" * 16).rows)

        def finish(self) -> None:
            seen.append(-1)

    options: Any = {"store": store, "batch_size": 1, "progress": Watch()}
    embed(dataset_of(numbered(30)), TinyEncoder(), flush=Flush(rows=10), **options)
    assert sorted(set(seen)) == [-1, 0, 10, 20, 30]


def test_progress_adds_up_to_the_whole(store: FeatureStore) -> None:
    counts: list[int] = []

    class Count:
        def start(self, total: int, already: int) -> None:
            counts[:] = [total, already]

        def advance(self, images: int, failures: int) -> None:
            counts[1] += images + failures

        def finish(self) -> None:
            counts.append(1)

    contents = numbered(9) | {"x": b"bad", "y": None, "z": image(0)}
    for _ in range(2):
        embed(dataset_of(contents), TinyEncoder(), store=store, progress=Count())
        assert counts == [12, 12, 1]


def test_a_damaged_row_is_encoded_again(store: FeatureStore) -> None:
    result = embed(dataset_of(numbered(6)), TinyEncoder(), store=store)
    path = next(Path(store._features("ab" * 16), "data").iterdir())
    content = bytearray(path.read_bytes())
    content[content.index(result.features.X[2].tobytes())] ^= 1
    path.write_bytes(content)
    again = embed(dataset_of(numbered(6)), TinyEncoder(), store=store)
    assert (again.encoded, again.cached) == (1, 5)
    assert again.content_digest() == result.content_digest()
    assert again.notes == ("1 stored rows were damaged and were encoded again.",)
    assert embed(dataset_of(numbered(6)), TinyEncoder(), store=store).encoded == 0


class Wrapped:
    def __init__(self) -> None:
        self.store = MemoryStore()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


def test_a_store_that_forgets_is_an_error() -> None:
    class Forgetful(Wrapped):
        def append(self, *_: object, **__: object) -> None: ...

    with pytest.raises(StoreError, match=r"can not be read back, the first for c0000\.jpg"):
        embed(dataset_of(numbered(2)), TinyEncoder(), store=Forgetful())


def test_a_store_that_can_not_be_tidied_costs_no_features() -> None:
    class Untidy(Wrapped):
        def compact(self, *_: object) -> None:
            raise StoreError("the disk is full")

    result = embed(dataset_of(numbered(2)), TinyEncoder(), store=Untidy())
    assert result.embedded == 2
    assert "not compacted: the disk is full" in result.notes[0]


def digest_of(X: npt.NDArray[np.float32], order: list[int]) -> str:
    base = embed(dataset_of(numbered(len(X))), TinyEncoder()).features
    features = type(base)(**{name: getattr(base, name) for name in base.__slots__} | {"X": X})
    chosen = features.select(np.asarray(order))
    return Embedding(chosen, len(X), 0, 0, 0, 0, 1.0).content_digest()


def test_the_digest_sees_values_and_not_order_or_rounding_noise() -> None:
    X = np.asarray([[1, 2, 3], [4, 5, 6], [0, 0, 0]], np.float32)
    shuffled = [0, 1, 2]
    random.Random(1).shuffle(shuffled)
    reference = digest_of(X, [0, 1, 2])
    assert digest_of(X, shuffled) == reference
    assert digest_of(X * np.float32(1 + 1e-7), [0, 1, 2]) == reference
    assert digest_of(X + np.float32(0.1) * np.eye(3, dtype=np.float32), [0, 1, 2]) != reference


def test_known_failures_are_tried_again_when_asked(store: FeatureStore, decoder: Decoder) -> None:
    contents = numbered(3) | {"z-bad": b"bad"}
    for flush, tried in ((Flush(), 1), (Flush(), 0), (Flush(retry_failures=True), 1)):
        decoder.decoded.clear()
        done = embed(dataset_of(contents), TinyEncoder(), store=store, flush=flush)
        assert (done.embedded, done.failed) == (3, 1)
        assert decoder.decoded.count(b"bad") == tried
        assert any("known from an earlier run" in note for note in done.notes) == (not tried)


def test_failures_are_written_as_csv(tmp_path: Path) -> None:
    failures = [Failure('a,"b".jpg', "broken", "cut"), Failure("é", "unreadable", "x \udce9")]
    write_failures(tmp_path / "failures.csv", failures)
    with (tmp_path / "failures.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["key", "kind", "reason"],
        ['a,"b".jpg', "broken", "cut"],
        ["é", "unreadable", "x \\udce9"],
    ]


def test_importing_the_engine_loads_nothing_heavy() -> None:
    code = "import sys, dinoprobe.engine, dinoprobe.export_features; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "lance", "pyarrow", "numpy", "PIL"} & set(done.stdout.split())


def test_the_number_of_workers_follows_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, workers in ((1, 1), (2, 2), (64, 16)):
        monkeypatch.setattr(
            os, "sched_getaffinity", lambda _, n=cores: set(range(n)), raising=False
        )
        assert pipeline_module._workers("auto") == workers


def test_lanes_that_share_too_little_memory_go_one_after_the_other() -> None:
    """Room for one call at a time: two lanes at once are out of memory, one is not."""
    inside, calls, gate = 0, threading.Lock(), threading.Event()

    class Crowded(TinyEncoder):
        def encode(self, images: torch.Tensor) -> npt.NDArray[np.float32]:
            nonlocal inside
            with calls:
                inside += 1
                crowded = inside > 1
            try:
                gate.wait(0.01)
                if crowded:
                    raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
                return super().encode(images)
            finally:
                with calls:
                    inside -= 1

    samples = dataset_of(numbered(40)).samples
    found = [r.row for r in encode(samples, Crowded(), batch_size=4) if isinstance(r, Encoded)]
    plain = [r.row for r in encode(samples, TinyEncoder(), batch_size=4) if isinstance(r, Encoded)]
    np.testing.assert_allclose(np.stack(found), np.stack(plain), rtol=0, atol=1e-6)


def test_on_cuda_one_batch_is_copied_while_another_computes() -> None:
    """Two threads, and not as many as there are cores."""
    encoder: Any = TinyEncoder()
    encoder.device = torch.device("cuda:0")
    names: set[str] = set()
    whole = encoder.encode

    def encode_noted(batch: torch.Tensor) -> np.ndarray:
        names.add(threading.current_thread().name)
        idents.add(threading.get_ident())
        time.sleep(0.01)
        return whole(batch)

    idents: set[int] = set()
    encoder.encode = encode_noted
    samples = dataset_of(numbered(40)).samples
    found = list(encode(samples, encoder, batch_size=4, workers=4))
    assert [item.key for item in found] == [sample.key for sample in samples]
    assert names == {"dinoprobe-encoder"}
    assert len(idents) == 2


# What hangs


TIMEOUT_S = 0.5


def engine_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("dinoprobe-")]


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What hangs waits here; opened at the end, so that no thread outlives its test."""
    made = threading.Event()
    yield made
    made.set()
    for thread in engine_threads():
        thread.join(10)
    assert engine_threads() == []


class Hanging(Memory):
    """A read that does not come back before the gate is opened."""

    def __init__(self, content: bytes, gate: threading.Event) -> None:
        super().__init__(content, Stamp(9, 1))
        self.gate, self.thread = gate, threading.current_thread()

    def read(self) -> bytes:
        self.thread = threading.current_thread()
        self.gate.wait()
        return super().read()


def hang_on(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch, content: bytes, gate: threading.Event
) -> None:
    """Decoding this content waits for the gate."""

    def slow(image: Any, preprocessing: object) -> torch.Tensor:
        if image == content:
            gate.wait()
        return decoder(image, preprocessing)

    monkeypatch.setattr(sys.modules["dinoprobe.preprocess"], "prepare", slow)


def with_hanging(dataset: Dataset, gate: threading.Event, *rows: int) -> list[Sample]:
    samples = list(dataset.samples)
    for row in rows:
        content = samples[row].source.content  # type: ignore[attr-defined]
        samples[row] = samples[row]._replace(source=Hanging(content, gate))
    return samples


@pytest.mark.parametrize("workers", [1, 3])
def test_what_hangs_becomes_a_failure_and_the_run_goes_on(
    workers: int, gate: threading.Event, decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one worker the last ones wait in line for longer than the limit, and are not late."""
    hang_on(decoder, monkeypatch, image(9), gate)
    samples = with_hanging(dataset_of(numbered(30)), gate, 3, 20)
    results = list(
        encode(samples, TinyEncoder(), batch_size=4, workers=workers, timeout_s=TIMEOUT_S)
    )
    assert [result.key for result in results] == [sample.key for sample in samples]
    failures = [result for result in results if isinstance(result, Failure)]
    assert [failure.key for failure in failures] == [samples[row].key for row in (3, 9, 20)]
    assert {failure.kind for failure in failures} == {"timeout"}
    assert failures[0].reason.startswith("not decoded within 0.5 s; ")
    assert len(engine_threads()) == 3, "only those that hang are left"


def test_a_late_sample_and_its_copies_are_tried_again_the_next_time(
    store: FeatureStore,
    gate: threading.Event,
    decoder: Decoder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hang_on(decoder, monkeypatch, image(2), gate)
    contents = numbered(5) | {"copy": image(2)}
    first = embed(dataset_of(contents), TinyEncoder(), store=store, workers=1, timeout_s=TIMEOUT_S)
    assert [(f.key, f.kind) for f in first.features.failures] == [
        ("c0002.jpg", "timeout"),
        ("copy", "timeout"),
    ]
    assert (first.embedded, first.encoded, first.notes) == (4, 4, ())
    gate.set()
    again = embed(dataset_of(contents), TinyEncoder(), store=store)
    assert (again.embedded, again.encoded, again.failed) == (6, 1, 0)


def test_a_result_that_comes_late_is_dropped_and_claims_no_image(gate: threading.Event) -> None:
    """Its copy is read after it was given up, and after it has come to its end."""
    late = Hanging(image(0), gate)

    class Copy(Memory):
        def read(self) -> bytes:
            gate.set()
            late.thread.join(10)
            assert not late.thread.is_alive()
            return super().read()

    contents = numbered(12)
    samples = list(dataset_of(contents).samples)
    samples[0] = samples[0]._replace(source=late)
    samples.append(Sample("copy", Copy(image(0))))
    result = embed(
        Dataset("here", samples, ()),
        TinyEncoder(),
        batch_size=2,
        workers=1,
        timeout_s=TIMEOUT_S,
    )
    assert [(f.key, f.kind) for f in result.features.failures] == [("c0000.jpg", "timeout")]
    assert (result.embedded, result.encoded, result.notes) == (12, 12, ())


def test_too_many_that_hang_end_the_run(gate: threading.Event) -> None:
    samples = with_hanging(dataset_of(numbered(12)), gate, *range(12))
    with pytest.raises(ConfigurationError, match=r"^c0004.jpg: one of 5 images .* at most 4 at"):
        list(encode(samples, TinyEncoder(), batch_size=2, workers=1, timeout_s=0.1))
    assert len(engine_threads()) <= 6


def test_without_a_timeout_a_slow_sample_is_waited_for(gate: threading.Event) -> None:
    samples = with_hanging(dataset_of(numbered(5)), gate, 2)
    threading.Timer(0.3, gate.set).start()
    results = list(encode(samples, TinyEncoder(), timeout_s=None))
    assert {type(result) for result in results} == {Encoded}


# How it ends


def broken_source() -> Iterator[Sample]:
    yield from dataset_of(numbered(30)).samples
    raise OSError("the listing broke")


def fail_at(batch: int, error: BaseException) -> TinyEncoder:
    encoder = TinyEncoder()
    honest = encoder.encode

    def encode_or_fail(images: torch.Tensor) -> npt.NDArray[np.float32]:
        if len(encoder.batches) >= batch:
            raise error
        return honest(images)

    encoder.encode = encode_or_fail  # type: ignore[method-assign]
    return encoder


@pytest.mark.parametrize(
    ("samples", "encoder", "raised"),
    [
        (dataset_of(numbered(60)).samples, TinyEncoder(), None),
        (broken_source(), TinyEncoder(), OSError),
        (dataset_of(numbered(60)).samples, fail_at(0, RuntimeError("bug")), RuntimeError),
        (dataset_of(numbered(60)).samples, fail_at(6, RuntimeError("bug")), RuntimeError),
        (dataset_of(numbered(60)).samples, fail_at(6, KeyboardInterrupt()), KeyboardInterrupt),
    ],
)
def test_no_thread_is_left_when_it_ends(
    samples: Any, encoder: TinyEncoder, raised: type[BaseException] | None
) -> None:
    results = encode(samples, encoder, batch_size=4, workers=3)
    if raised is None:
        assert len(list(results)) == 60
    else:
        with pytest.raises(raised):
            list(results)
    assert engine_threads() == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_no_thread_is_left_when_the_consumer_stops(error: type[BaseException]) -> None:
    def consume() -> None:
        for number, _ in enumerate(encode(dataset_of(numbered(60)).samples, TinyEncoder())):
            if number == 20:
                assert engine_threads()
                raise error

    with pytest.raises(error):
        consume()
    assert engine_threads() == []


def test_ctrl_c_does_not_wait_for_a_long_batch(store: FeatureStore, gate: threading.Event) -> None:
    """The signal comes while the third batch is encoded, which would take for ever."""
    encoder = TinyEncoder()
    honest = encoder.encode
    main = threading.main_thread().ident or 0
    unsent = threading.Lock()  # one signal, whatever the number of lanes

    def slow(images: torch.Tensor) -> npt.NDArray[np.float32]:
        if len(encoder.batches) == 2:
            if unsent.acquire(blocking=False):
                signal.pthread_kill(main, signal.SIGINT)
            while not gate.is_set():
                torch.mm(images[0, 0].float(), images[0, 0].float())
        return honest(images)

    encoder.encode = slow  # type: ignore[method-assign]
    start = time.monotonic()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background
    try:  # has it ignored
        with pytest.raises(KeyboardInterrupt):
            embed(dataset_of(numbered(60)), encoder, store=store, batch_size=4, workers=1)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - start < 5
    assert engine_threads() == []
    assert store.verify("ab" * 16).rows >= 4


# Memory and batches


class Live:
    """Counts the prepared images that something still holds."""

    def __init__(self, decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.decoder, self.lock = decoder, threading.Lock()
        self.count = self.peak = 0
        monkeypatch.setattr(sys.modules["dinoprobe.preprocess"], "prepare", self.prepare)

    def prepare(self, image: Any, preprocessing: object) -> torch.Tensor:
        made = self.decoder(image, preprocessing)
        with self.lock:
            self.count += 1
            self.peak = max(self.peak, self.count)
        weakref.finalize(made, self.gone)
        return made

    def gone(self) -> None:
        with self.lock:
            self.count -= 1


@pytest.mark.parametrize(("batch_size", "workers"), [(4, 1), (4, 3), (16, 2)])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_prepared_images_never_exceed_the_stated_count(
    batch_size: int,
    workers: int,
    device: str,
    decoder: Decoder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A slow consumer, so that every queue is full; each row is looked at before the next."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(3)), raising=False)
    live, encoder = Live(decoder, monkeypatch), TinyEncoder()
    encoder.device = device  # type: ignore[attr-defined]
    lanes = pipeline_module.LANES_CUDA if device == "cuda" else workers
    bound = images_in_flight(batch_size, workers, lanes)
    results = encode(
        dataset_of(numbered(12 * batch_size)).samples,
        encoder,
        batch_size=batch_size,
        workers=workers,
    )
    waiting = threading.Event()
    for number, _ in enumerate(results):
        if number % batch_size == 0:
            waiting.wait(0.02)
    assert 3 * batch_size <= live.peak <= bound
    assert live.count == 0


@pytest.mark.parametrize("workers", [1, 4])
def test_failures_and_known_images_make_no_small_batches(workers: int, store: FeatureStore) -> None:
    """One image in fifty is new; the others are known, broken or gone."""
    embed(dataset_of(numbered(10), uri="known"), TinyEncoder(), store=store)
    contents: dict[str, bytes | None] = {}
    for i in range(1500):
        other: bytes | None = (image(i % 10), b"bad%d" % i, None)[i % 3]
        contents[f"k{i:04}"] = image(1000 + i) if i % 50 == 0 else other
    encoder = TinyEncoder()
    result = embed(dataset_of(contents), encoder, store=store, batch_size=8, workers=workers)
    assert result.encoded == 30
    assert sorted(encoder.batches, reverse=True) == [8, 8, 8, 6]
