"""Ctrl-C, and the end of a process, while something takes for ever."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.checkpoints import save_vit

from dinoprobe.engine.pool import GRACE_S, PATIENCE_S
from dinoprobe.store import FeatureStore

# The command line with an encoder that never ends its fourth batch, and says so.
EMBED = """
import signal, sys, torch
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in jobs of the background
from dinoprobe.cli import main
from dinoprobe.encoder import Encoder

honest, calls = Encoder.encode, []

def encode(self, images):
    calls.append(len(images))
    if len(calls) == 4:
        print("busy", file=sys.stderr, flush=True)
        while True:
            torch.mm(torch.ones(300, 300), torch.ones(300, 300))
    return honest(self, images)

Encoder.encode = encode
main()
"""

# A read that hangs: late, then left behind when the interpreter ends.
HANGING = """
import threading
import numpy as np
from dinoprobe.engine import encode
from dinoprobe.preprocess import Preprocessing
from dinoprobe.types import Sample, Source

class Pixels(Source):
    def __init__(self, number):
        self.number = number

    def read(self):
        if self.number == 3:
            threading.Event().wait()
        return np.full((9, 9), self.number, np.uint8)

class Corner:
    preprocessing = Preprocessing(size=(16, 16))
    dimension, fingerprint, description = 3, "ab" * 16, {}

    def encode(self, images):
        return images[:, :, 0, 0].numpy().astype(np.float32)

samples = [Sample(str(number), Pixels(number)) for number in range(4)]
print(*(type(result).__name__ for result in encode(samples, Corner(), workers=1, timeout_s=1)))
if END:
    results = encode(samples, Corner(), workers=1, timeout_s=None, batch_size=1)
    next(results)
    raise SystemExit(5)
"""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(80):
        pixels = generator.integers(0, 256, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i:03}.png")
    return tmp_path / "photos"


def test_ctrl_c_ends_a_run_within_seconds_and_keeps_its_rows(photos: Path, tmp_path: Path) -> None:
    """The fourth batch of 4 begins after the first one was taken: its rows are committed."""
    store, vit = tmp_path / "store", save_vit(tmp_path / "vit")
    command = ["embed", str(photos), "--encoder", str(vit), "--store", str(store), "--json"]
    run = subprocess.Popen(
        [sys.executable, "-c", EMBED, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with run:
        assert run.stderr is not None
        while run.stderr.readline() not in {"busy\n", ""}:
            pass
        run.send_signal(signal.SIGINT)
        start = time.monotonic()
        stdout, stderr = run.communicate(timeout=60)
        took = time.monotonic() - start
    assert (run.returncode, "Traceback" in stderr) == (130, False), stderr
    assert "Interrupted. What was finished is kept" in stderr
    assert json.loads(stdout)["exit_code"] == 130
    assert took < GRACE_S + PATIENCE_S + 2

    command = [sys.executable, "-m", "dinoprobe", *command]
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(again.stdout)
    assert found["embedded"] == 80
    assert 4 <= found["cached"] <= 12
    assert FeatureStore(store).verify(found["base_fingerprint"]) == (80, 0, 0)


@pytest.mark.parametrize(("end", "code"), [(False, 0), (True, 5)])
def test_a_read_that_hangs_keeps_no_process_alive(end: bool, code: int) -> None:
    """Also where the results are not taken to their end."""
    script = HANGING.replace("END", str(end))
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (code, "")
    assert done.stdout.split() == ["Encoded", "Encoded", "Encoded", "Failure"]
