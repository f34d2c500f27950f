"""Backends: what is chosen, that each computes what plain transformers does, and that a wrong one
is not used.
"""

from __future__ import annotations

import itertools
import pickle
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from threading import Barrier, Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from tests.checkpoints import save_convnext, save_dinov2, save_vit

from dinoprobe.encoder import Encoder, EncoderSettings, open_encoder
from dinoprobe.encoder.backends import choice as choosing
from dinoprobe.encoder.backends import graphs, selftest
from dinoprobe.encoder.backends.choice import Choice, candidates
from dinoprobe.errors import ConfigurationError, EncoderError, MissingExtraError
from dinoprobe.processor import has_fast_bfloat16

if TYPE_CHECKING:
    from pathlib import Path

needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="extra cpu")
needs_onnx = pytest.mark.skipif(
    find_spec("onnx") is None or find_spec("onnxruntime") is None, reason="extra onnx"
)
needs_bfloat16 = pytest.mark.skipif(not has_fast_bfloat16(), reason="no bfloat16 in this CPU")
GRAPHS = [
    pytest.param("openvino", marks=needs_openvino),
    pytest.param("onnxruntime", marks=needs_onnx),
]
LARGE = 20_000_000


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DINOPROBE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def images(count: int = 3, size: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(size)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def distance(first: np.ndarray, second: np.ndarray) -> float:
    A, B = first.astype(np.float64), second.astype(np.float64)
    norms = np.linalg.norm(A, axis=1) * np.linalg.norm(B, axis=1)
    return float(np.abs(1 - (A * B).sum(1) / norms).max())


def plainly(encoder: Encoder, batch: torch.Tensor) -> np.ndarray:
    with torch.inference_mode():
        return encoder._forward.plain(batch, encoder.preprocessing).numpy()


@pytest.mark.parametrize("backend", GRAPHS)
@pytest.mark.parametrize(
    ("save", "pooling"),
    [
        *itertools.product([save_vit, save_convnext], ["cls", "mean", "cls+mean"]),
        *itertools.product([save_vit], ["blocks2", "blocks2+mean"]),
    ],
)
def test_a_graph_computes_what_transformers_does(
    save: Any, pooling: str, backend: str, tmp_path: Path
) -> None:
    encoder = Encoder.from_pretrained(
        str(save(tmp_path)), device="cpu", pooling=pooling, backend=backend
    )
    assert (encoder.backend, encoder.precision) == (backend, "float32")
    for size in (32, 64):
        for count in (1, 5):
            batch = images(count, size)
            assert distance(encoder.encode(batch), plainly(encoder, batch)) < 1e-9
    floats = images().float() / 255
    assert distance(encoder.encode(floats), plainly(encoder, floats)) < 1e-9


@pytest.mark.parametrize("backend", GRAPHS)
def test_a_backend_is_no_part_of_the_fingerprint(backend: str, tmp_path: Path) -> None:
    folder = str(save_vit(tmp_path))
    other = Encoder.from_pretrained(folder, device="cpu", backend=backend)
    assert other.fingerprint == Encoder.from_pretrained(folder, device="cpu").fingerprint


@pytest.mark.parametrize("backend", GRAPHS)
def test_threads_and_other_processes_get_the_same_rows(backend: str, tmp_path: Path) -> None:
    encoder = Encoder.from_pretrained(str(save_vit(tmp_path)), device="cpu", backend=backend)
    rows = encoder.encode(images())
    with ThreadPoolExecutor(3, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        found = list(pool.map(encoder.encode, [images()] * 9))
    for other in (*found, pickle.loads(pickle.dumps(encoder)).encode(images())):
        np.testing.assert_allclose(other, rows, atol=1e-5)


@pytest.mark.parametrize("backend", GRAPHS)
def test_a_graph_is_made_once_and_again_where_it_is_damaged(
    backend: str, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = EncoderSettings(name=str(save_vit(tmp_path)), device="cpu", backend=backend)
    rows = open_encoder(settings).encode(images())
    (folder,) = (own_cache / "graphs").iterdir()
    written = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    np.testing.assert_array_equal(open_encoder(settings).encode(images()), rows)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == written
    largest = max(written, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:100])
    np.testing.assert_array_equal(open_encoder(settings).encode(images()), rows)
    assert graphs.is_whole(folder)
    open_encoder(replace(settings, pooling="cls")).encode(images())
    assert len(list((own_cache / "graphs").iterdir())) == 2


def test_a_write_that_fails_leaves_nothing(own_cache: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "half").write_bytes(b"1")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        graphs.keep(own_cache / "graphs" / "one", write)
    assert list((own_cache / "graphs").iterdir()) == []


def test_the_first_calls_of_all_graphs_go_one_by_one_and_later_ones_together() -> None:
    inside, most = 0, []
    count = Lock()
    together = Barrier(2, timeout=10)

    def slow(images: torch.Tensor) -> torch.Tensor:
        nonlocal inside
        with count:
            inside += 1
            most.append(inside)
        time.sleep(0.02)
        with count:
            inside -= 1
        return images

    graphs_at_once = [graphs.FirstAlone(slow) for _ in range(3)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda graph: graph(images(1)), graphs_at_once * 2))
    assert max(most[:3]) == 1
    late = graphs.FirstAlone(lambda rows: (together.wait(), rows)[1])
    late._started = True
    with ThreadPoolExecutor(2) as pool:  # each waits for the other one to be inside
        assert len(list(pool.map(late, [images(1), images(1)]))) == 2


def test_a_first_call_that_fails_leaves_the_way_open() -> None:
    def broken(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("stop")

    graph = graphs.FirstAlone(broken)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="stop"):
            graph(images(1))
    torch.testing.assert_close(graphs.FirstAlone(lambda rows: rows)(images(1)), images(1))


@needs_openvino
def test_two_threads_may_be_the_first_ones_to_use_openvino(tmp_path: Path) -> None:
    """In processes of their own, because it is the first use that stood still, one time in five."""
    folder = save_vit(tmp_path)
    code = (
        "import sys, torch; from concurrent.futures import ThreadPoolExecutor;"
        "from dinoprobe.encoder import Encoder;"
        "e = Encoder.from_pretrained(sys.argv[1], device='cpu', backend='openvino');"
        "x = torch.zeros(1, 3, 32, 32, dtype=torch.uint8);"
        "list(ThreadPoolExecutor(4).map(e.encode, [x] * 8))"
    )
    for _ in range(4):
        subprocess.run([sys.executable, "-c", code, str(folder)], check=True, timeout=60)


@needs_openvino
def test_telemetry_never_loads(tmp_path: Path) -> None:
    encoder = Encoder.from_pretrained(str(save_vit(tmp_path)), device="cpu", backend="openvino")
    encoder.encode(images())
    assert not [name for name in sys.modules if name.startswith("openvino_telemetry")]


@needs_bfloat16
@pytest.mark.parametrize("backend", ["torch", pytest.param("openvino", marks=needs_openvino)])
def test_bf16_is_tested_before_it_is_used(
    backend: str, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(save_vit(tmp_path))
    encoder = Encoder.from_pretrained(folder, device="cpu", backend=backend, precision="bf16")
    assert (encoder.backend, encoder.precision) == (backend, "bfloat16")
    assert 0 < distance(encoder.encode(images()), plainly(encoder, images())) < 1e-3
    (record,) = (own_cache / "selftests").iterdir()
    monkeypatch.setattr(selftest, "build", None)  # what is known is not measured again
    Encoder.from_pretrained(folder, device="cpu", backend=backend, precision="bf16")
    record.write_text("{")
    with pytest.raises(EncoderError, match="not callable"):
        Encoder.from_pretrained(folder, device="cpu", backend=backend, precision="bf16")


@needs_bfloat16
def test_a_precision_that_was_named_and_fails_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(selftest.LIMITS, "bfloat16", 1e-12)
    with pytest.raises(EncoderError, match=r"bfloat16 is not used: .*allowed 1e-12"):
        Encoder.from_pretrained(
            str(save_vit(tmp_path)), device="cpu", backend="torch", precision="bf16"
        )


@needs_bfloat16
def test_where_nothing_was_named_the_next_one_is_taken_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "SMALL_PARAMETERS", 1)
    monkeypatch.setitem(selftest.LIMITS, "bfloat16", 1e-12)
    encoder = Encoder.from_pretrained(str(save_vit(tmp_path)), device="cpu")
    assert encoder.precision == "float32"
    assert "bfloat16 is not used" in encoder.notes[-1]
    assert distance(encoder.encode(images()), plainly(encoder, images())) < 1e-9


@needs_openvino
def test_a_backend_that_breaks_is_passed_over_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dinoprobe.encoder.backends import openvino

    def broken(*_: object) -> None:
        raise RuntimeError("no such kernel\nmore")

    monkeypatch.setattr(choosing, "SMALL_PARAMETERS", 1)
    monkeypatch.setattr(openvino, "write", broken)
    folder = str(save_vit(tmp_path))
    encoder = Encoder.from_pretrained(folder, device="cpu", precision="exact")
    assert encoder.backend == "torch"
    assert "openvino in float32 does not run here (no such kernel)." in encoder.notes
    with pytest.raises(EncoderError, match=r"no such kernel.*Leave --backend and --precision out"):
        Encoder.from_pretrained(folder, device="cpu", backend="openvino")


def test_each_part_of_a_row_is_within_the_limit() -> None:
    """A part that is wrong shows whatever the others are, for it may be used alone."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(4, 40, generator=generator)
    rows[:, :30] *= 100
    wrong = rows.clone()
    wrong[:, 30:] = -wrong[:, 30:]
    assert selftest.mean_distance(wrong, rows) < 1e-3
    assert selftest.mean_distance(wrong, rows, 4) == pytest.approx(2)
    assert selftest.mean_distance(wrong, rows, 2) == selftest.mean_distance(
        wrong[:, 20:], rows[:, 20:]
    )


@needs_bfloat16
@pytest.mark.parametrize("backend", ["torch", pytest.param("openvino", marks=needs_openvino)])
def test_a_pooling_that_is_taken_later_is_tested_too(
    backend: str, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = Encoder.from_pretrained(
        str(save_vit(tmp_path)), device="cpu", backend=backend, precision="bf16", pooling="cls"
    )
    other = encoder.with_pooling("blocks2+mean")
    assert len(list((own_cache / "selftests").iterdir())) == 2
    assert (other.backend, other.precision) == (backend, "bfloat16")
    whole = other.encode(images())
    assert 0 < distance(whole, plainly(other, images())) < 1e-3
    part = other.with_pooling("cls+mean")
    assert len(list((own_cache / "selftests").iterdir())) == 2  # it is part of what was tested
    np.testing.assert_array_equal(part.encode(images()), whole[:, 32:])
    monkeypatch.setitem(selftest.LIMITS, "bfloat16", 1e-12)
    with pytest.raises(EncoderError, match="bfloat16 is not used"):
        encoder.with_pooling("mean")


@pytest.mark.parametrize("backend", GRAPHS)
def test_a_graph_of_more_parts_gives_fewer(backend: str, tmp_path: Path, own_cache: Path) -> None:
    settings = EncoderSettings(
        name=str(save_vit(tmp_path)), device="cpu", backend=backend, pooling="blocks2+mean"
    )
    whole = open_encoder(settings)
    part = whole.with_pooling("mean")
    np.testing.assert_array_equal(part.encode(images()), whole.encode(images())[:, 64:])
    assert len(list((own_cache / "graphs").iterdir())) == 1
    assert part.fingerprint == open_encoder(replace(settings, pooling="mean")).fingerprint
    copied = pickle.loads(pickle.dumps(part))
    np.testing.assert_allclose(copied.encode(images()), part.encode(images()), atol=1e-5)


def test_numbers_that_are_not_finite_never_pass() -> None:
    rows = torch.ones(2, 4)
    assert selftest.mean_distance(rows, rows) == pytest.approx(0)
    assert selftest.mean_distance(rows * float("nan"), rows) == 2
    assert selftest.mean_distance(rows * float("inf"), rows) == 2
    assert selftest.mean_distance(torch.zeros(2, 4), rows) == pytest.approx(1)


def test_a_type_that_was_named_is_taken_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(selftest.LIMITS, "bfloat16", 1e-12)
    encoder = Encoder.from_pretrained(str(save_vit(tmp_path)), device="cpu", dtype="bfloat16")
    assert (encoder.precision, encoder.dtype) == ("bfloat16", torch.bfloat16)
    assert next(encoder.model.parameters()).dtype == torch.float32  # rounded once, when folded


def choose(monkeypatch: pytest.MonkeyPatch, fast: bool, here: tuple[str, ...]) -> None:
    monkeypatch.setattr(choosing, "has_fast_bfloat16", lambda: fast)
    monkeypatch.setattr(choosing, "find_spec", lambda name: name if name in here else None)
    monkeypatch.setattr(choosing.platform, "machine", lambda: "x86_64")


ALL = ("openvino", "onnxruntime")


@pytest.mark.parametrize(
    ("fast", "here", "parameters", "expected"),
    [
        (True, ALL, LARGE, ["openvino bfloat16", "torch bfloat16",
                            "openvino float32", "torch float32"]),
        (True, (), LARGE, ["torch bfloat16", "torch float32"]),
        (False, ALL, LARGE, ["openvino float32", "torch float32"]),
        (True, ALL, 1_000_000, ["torch float32"]),
    ],
)  # fmt: skip
def test_what_is_tried_by_itself(
    fast: bool,
    here: tuple[str, ...],
    parameters: int,
    expected: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    choose(monkeypatch, fast, here)
    found = candidates("auto", "auto", "auto", parameters=parameters)
    assert [f"{choice.backend} {choice.precision}" for choice in found] == expected


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (("openvino", "exact", "auto"), ["openvino float32"]),
        (("torch", "bf16", "auto"), ["torch bfloat16"]),
        (("onnxruntime", "auto", "auto"), ["onnxruntime float32"]),
        (("auto", "auto", "bfloat16"), ["openvino bfloat16", "torch bfloat16"]),
        (("auto", "int8", "auto"), ["openvino int8"]),
    ],
)
def test_what_is_tried_when_something_was_named(
    asked: tuple[str, str, str], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(monkeypatch, fast=True, here=ALL)
    found = candidates(*asked, parameters=LARGE, has_int8=True)
    assert [f"{choice.backend} {choice.precision}" for choice in found] == expected


def test_a_convnext_is_tried_in_torch_first(monkeypatch: pytest.MonkeyPatch) -> None:
    choose(monkeypatch, fast=True, here=ALL)
    found = candidates("auto", "exact", "auto", parameters=LARGE, is_convnext=True)
    assert [choice.backend for choice in found] == ["torch", "openvino"]


def test_without_bfloat16_in_the_cpu_openvino_is_not_asked_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    choose(monkeypatch, fast=False, here=ALL)
    assert candidates("auto", "bf16", "auto", parameters=LARGE) == [Choice("torch", "bfloat16")]


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (("tensorrt", "auto", "auto"), "backend 'tensorrt' is not known"),
        (("auto", "fp4", "auto"), "precision 'fp4' is not known"),
        (("auto", "bf16", "float32"), "--precision bf16 and --dtype float32 contradict"),
        (("onnxruntime", "bf16", "auto"), "'onnxruntime' has no precision 'bf16'"),
        (("auto", "int8", "auto"), "int8 is calibrated on images of yours"),
    ],
)
def test_what_can_not_be_is_refused(
    asked: tuple[str, str, str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(monkeypatch, fast=True, here=ALL)
    with pytest.raises(ConfigurationError, match=says):
        candidates(*asked, parameters=LARGE)


@pytest.mark.parametrize(("backend", "extra"), [("openvino", "cpu"), ("onnxruntime", "onnx")])
def test_a_missing_extra_is_named(
    backend: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(monkeypatch, fast=True, here=())
    with pytest.raises(MissingExtraError, match=rf"dinoprobe\[{extra}\]"):
        candidates(backend, "auto", "auto", parameters=LARGE)
    with pytest.raises(MissingExtraError, match=r"dinoprobe\[cpu\]"):
        candidates("auto", "int8", "auto", parameters=LARGE, has_int8=True)


def test_on_a_gpu_torch_alone_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    found = candidates("auto", "auto", "auto", parameters=LARGE, on_cpu=False)
    assert found == [Choice("torch", "bfloat16"), Choice("torch", "float32")]
    for asked in (("openvino", "auto", "auto"), ("auto", "int8", "auto")):
        with pytest.raises(ConfigurationError, match="run on a CPU"):
            candidates(*asked, parameters=LARGE, on_cpu=False, has_int8=True)


def test_a_model_that_is_not_folded_runs_in_torch_alone(tmp_path: Path) -> None:
    folder = str(save_dinov2(tmp_path))
    half = Encoder.from_pretrained(folder, device="cpu", precision="bf16")
    assert (half.backend, half.precision) == ("torch", "bfloat16")
    assert next(half.model.parameters()).dtype == torch.bfloat16
    with pytest.raises(ConfigurationError, match="backend openvino runs DINOv3 models"):
        Encoder.from_pretrained(folder, device="cpu", backend="openvino")


def test_the_fused_attention_of_gpus_computes_the_same(tmp_path: Path) -> None:
    from dinoprobe.encoder.optimized import fold

    encoder = Encoder.from_pretrained(str(save_vit(tmp_path)), device="cpu")
    size = replace(encoder.preprocessing, size=(32, 32))
    for pooling in ("cls", "cls+mean"):
        options: dict[str, Any] = {"pooling": pooling, "dtype": torch.float32}
        rows = [
            fold(encoder.model, encoder.model_type, size, **options, fused=fused)(images())
            for fused in (False, True)
        ]
        torch.testing.assert_close(rows[0], rows[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("save", [save_vit, save_convnext, save_dinov2])
def test_each_layer_is_compiled_and_nothing_else(
    save: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[torch.nn.Module] = []

    def note(self: torch.nn.Module) -> None:
        compiled.append(self)

    monkeypatch.setattr(torch.nn.Module, "compile", note)
    settings = EncoderSettings(name=str(save(tmp_path)), device="cpu", compiled=True)
    encoder = open_encoder(settings)
    plain = open_encoder(replace(settings, compiled=False))
    batch = images(3, encoder.preprocessing.size[0])
    np.testing.assert_array_equal(encoder.encode(batch), plain.encode(batch))
    config = encoder.model.config
    depth = sum(config.depths) if hasattr(config, "depths") else config.num_hidden_layers
    assert len(compiled) == depth
    assert encoder.fingerprint == plain.fingerprint


# An encoder that goes in another thread than the one that compiled it, and then Ctrl-C.
DROPPED = """
import os, signal, sys, threading, time
import torch
from dinoprobe.encoder import Encoder

signal.signal(signal.SIGINT, signal.default_int_handler)
kept = [Encoder.from_pretrained(sys.argv[1], backend="openvino", device="cpu")]
kept[0].encode(torch.zeros((1, 3, *kept[0].preprocessing.size), dtype=torch.uint8))
thread = threading.Thread(target=kept.clear)
thread.start()
thread.join()
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(9)
except KeyboardInterrupt:
    print("heard")
"""


@needs_openvino
def test_ctrl_c_is_heard_after_a_graph_went_in_another_thread(tmp_path: Path) -> None:
    """OpenVINO's stack for signals went with its last core, and the kernel killed the process."""
    command = [sys.executable, "-c", DROPPED, str(save_vit(tmp_path / "vit"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr
