"""1,260 odd and broken files: each is prepared or fails with a reason, quickly and in silence."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dinoprobe.errors import ImageError
from dinoprobe.preprocess import Preprocessing, prepare

CORPUS = Path(__file__).parents[2].parent / "shared" / "corpus"
pytestmark = pytest.mark.skipif(not CORPUS.is_dir(), reason="the corpus is not here")

RUN = """
import collections, json, pathlib, resource, sys, time, warnings
warnings.simplefilter("error")
import torch
from dinoprobe.errors import ImageError
from dinoprobe.preprocess import Preprocessing, has_more_frames, prepare, thumbnail

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

torch.set_num_threads(1)
files = sorted(path for path in pathlib.Path(sys.argv[1]).rglob("*") if path.is_file())
preprocessing = Preprocessing(size=(64, 64), resize="squash")
cropped = Preprocessing(size=(64, 64), resize="crop", arithmetic="exact")
import numpy
prepare(numpy.zeros((9, 9), numpy.uint8), preprocessing)
before, slowest = peak(), 0.0
outcomes, kinds = collections.Counter(), {}
for path in files:
    data, start = path.read_bytes(), time.perf_counter()
    try:
        image = prepare(data, preprocessing)
        assert image.shape == (3, 64, 64)
        assert prepare(data, cropped).shape == (3, 64, 64)
        thumbnail(data, 64)
        kind = "ok"
    except ImageError as error:
        kind = error.kind
        assert str(error).count(". ") >= 1 and "expected" in str(error), error
    has_more_frames(data)
    slowest = max(slowest, time.perf_counter() - start)
    outcomes[kind] += 1
    kinds[path.name] = kind
print(json.dumps({"outcomes": outcomes, "kinds": kinds, "files": len(files),
                  "slowest_s": slowest, "growth_bytes": peak() - before}))
"""

EXPECTED = {
    "decompression_bomb.gif": "too-large",
    "reallybig.bmp": "too-large",
    "libtiff_segfault.tif": "too-large",
    "truncated_jpeg.jpg": "truncated",
    "truncated_image.png": "truncated",
    "broken.png": "broken",
    "hopper.psd": "unsupported-format",
    "README.md": "not-an-image",
    "16bit.cropped.tif": "ok",
    "basn0g16.png": "ok",
    "Landscape_6.jpg": "ok",
}


def test_every_file_is_prepared_or_fails_with_a_reason():
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(CORPUS)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    assert sum(result["outcomes"].values()) == result["files"] > 1000
    assert result["outcomes"]["ok"] >= 860
    assert set(result["outcomes"]) <= {
        "ok", "empty", "not-an-image", "unsupported-format", "truncated", "too-large", "bands",
        "values", "broken",
    }  # fmt: skip
    found = {name: result["kinds"][name] for name in EXPECTED if name in result["kinds"]}
    assert found == {name: EXPECTED[name] for name in found}
    assert result["slowest_s"] < 10
    assert result["growth_bytes"] < 1e9


def test_jpegs_give_the_same_with_and_without_simplejpeg(monkeypatch):
    pytest.importorskip("simplejpeg")
    import torch

    preprocessing = Preprocessing(size=(32, 32))
    files = [path.read_bytes() for path in sorted(CORPUS.rglob("*.jp*g"))]
    fast = [_outcome(data, preprocessing) for data in files]
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    slow = [_outcome(data, preprocessing) for data in files]
    assert len(files) > 50
    for left, right in zip(fast, slow, strict=True):
        if isinstance(left, str) or isinstance(right, str):
            assert left == right
        else:
            assert torch.equal(left, right)


def _outcome(data, preprocessing):
    try:
        return prepare(data, preprocessing)
    except ImageError as error:
        return error.kind
