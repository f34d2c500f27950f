"""`dinoprobe open`: how long a refit takes, and how many frames a second the map has.

    python benchmarks/page.py [--rows 10000] [--points 50000] > page.json

Refits are those of `page.fitting.refit`, with what they tell of a test part of 2,000 rows; features
are made. The map runs in the system's Chromium, headless, without a GPU, and is moved and zoomed in
each frame.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from dinoprobe.datasets import DataSettings
from dinoprobe.encoder import Encoder, EncoderSettings
from dinoprobe.heads import LDAProbe, LogisticProbe, RidgeProbe
from dinoprobe.page.fitting import QUICK_TOL, Model, Recipe, refit
from dinoprobe.page.predicting import EncoderPredictor
from dinoprobe.page.run import guarded_page, settings_for
from dinoprobe.page.workspace import Origin, Workspace
from dinoprobe.server.run import listen, serve_app
from dinoprobe.server.service import Service
from dinoprobe.types import Features
from dinoprobe.versions import versions

CHROMIUM = "/usr/bin/chromium"
CLASSES, DIMENSION, TESTED, ROUNDS = 10, 384, 2_000, 5
RECIPES = {
    "logistic, C = 0.01": LogisticProbe(C=0.01, tol=QUICK_TOL),
    "logistic, C = 0.1": LogisticProbe(C=0.1, tol=QUICK_TOL),
    "logistic, C = 1": LogisticProbe(C=1.0, tol=QUICK_TOL),
    "ridge": RidgeProbe(alpha=1000.0, temperature=0.5),
    "lda": LDAProbe(shrinkage=0.1, temperature=1.0),
}
MOVE = """async (seconds) => {
  const cloud = document.querySelector("canvas").cloud;
  const begin = performance.now(), first = cloud.frames;
  const times = [];
  let last = begin;
  while (performance.now() - begin < 1000 * seconds) {
    const i = times.length;
    cloud.pan(i % 40 < 20 ? 6 : -6, i % 20 < 10 ? 4 : -4);
    cloud.zoom(i % 60 < 30 ? 1.03 : 1 / 1.03, cloud.canvas.width / 3, cloud.canvas.height / 3);
    await new Promise(requestAnimationFrame);
    const now = performance.now();
    times.push(now - last);
    last = now;
  }
  const paint = performance.now();
  for (let i = 0; i < 20; i++) cloud.paint();
  const paintMs = (performance.now() - paint) / 20;
  times.sort((a, b) => a - b);
  return {
    frames_per_second: 1000 * (cloud.frames - first - 20) / (paint - begin),
    frame_ms_p50: times[Math.floor(times.length / 2)],
    frame_ms_p95: times[Math.floor(0.95 * times.length)],
    paint_ms: paintMs,
    canvas: [cloud.canvas.width, cloud.canvas.height],
  };
}"""


def features(n: int, tested: int) -> Features:
    """Made rows of overlapping classes; the last ones are the test part."""
    rng = np.random.default_rng(0)
    centres = 0.15 * rng.normal(size=(CLASSES, DIMENSION))
    codes = rng.integers(0, CLASSES, n + tested)
    X = (centres[codes] + rng.normal(size=(n + tested, DIMENSION))).astype(np.float32)
    names = [f"class {code}" for code in range(CLASSES)]
    keys = tuple(f"folder/{i:06d}.jpg" for i in range(n + tested))
    return Features(
        keys=keys,
        X=X,
        y=np.array([names[code] for code in codes], dtype=object),
        classes=tuple(names),
        fingerprint="made",
        hashes=keys,
        splits=("train",) * n + ("test",) * tested,
        groups=(None,) * (n + tested),
    )


def workspace(rows: Features, encoder: Encoder, head: Any, folder: Path) -> Workspace:
    """Rows with a model, as a run would have them."""
    recipe = Recipe("made", head)
    work = Workspace(
        origin=Origin(
            title="made",
            data=DataSettings(source="made"),
            encoder=EncoderSettings(name="builtin"),
            labels=folder / "made" / "labels.csv",
        ),
        features=rows,
        samples={},
        splits=rows.splits,
        encoder=encoder,
        recipe=recipe,
    )
    chosen = work.training_rows(work.standing())
    work.first = work.model = Model.of(recipe.fit(rows.X[chosen], rows.y[chosen]), rows.X, 0)
    return work


def time_refits(rows: Features, encoder: Encoder, folder: Path) -> dict[str, Any]:
    """Median seconds of each head: the fit alone, and with what is told; and of all cores."""
    found = {}
    for name, head in RECIPES.items():
        work = workspace(rows, encoder, head, folder)
        wall, fits, cpu = [], [], []
        for _ in range(ROUNDS):
            start, used = time.perf_counter(), time.process_time()
            told = refit(work, work.standing())
            wall.append(time.perf_counter() - start)
            cpu.append(time.process_time() - used)
            fits.append(told["fit_s"])
        found[name] = {
            "fit_s": round(statistics.median(fits), 4),
            "refit_s": round(statistics.median(wall), 4),
            "cpu_s": round(statistics.median(cpu), 4),
            "refit_s_range": [round(min(wall), 4), round(max(wall), 4)],
        }
    return found


def time_map(points: int, encoder: Encoder, folder: Path, seconds: float) -> dict[str, Any]:
    """Frames of the map in Chromium, and how long the page takes to be there."""
    from playwright.sync_api import sync_playwright

    work = workspace(features(points - 100, 100), encoder, LDAProbe(shrinkage=0.1), folder)
    settings = settings_for(0)
    listening = listen(settings)
    service = Service(EncoderPredictor(encoder), settings)
    gate = guarded_page(work, service, "token", lambda _: None)
    gate.port = listening.getsockname()[1]
    thread = threading.Thread(
        target=serve_app, args=(gate, service, listening), kwargs={"logs": False}, daemon=True
    )
    thread.start()
    address = f"http://127.0.0.1:{gate.port}/"
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--headless", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(f"{address}?token=token")
        start = time.perf_counter()
        page.goto(f"{address}#map")
        page.reload()
        page.wait_for_selector("canvas")
        while not page.evaluate("document.querySelector('canvas').cloud.frames > 0"):
            time.sleep(0.05)
        while not page.evaluate("document.querySelector('canvas').cloud.points.length > 0"):
            time.sleep(0.05)
        shown_s = time.perf_counter() - start
        time.sleep(1)
        moved = page.evaluate(MOVE, seconds)
        browser.close()
    return {"points": points, "shown_s": round(shown_s, 2), **moved}


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--points", type=int, default=50_000)
    parser.add_argument("--seconds", type=float, default=5.0)
    given = parser.parse_args()
    encoder = Encoder.from_pretrained("builtin")
    with tempfile.TemporaryDirectory() as folder:
        refits = time_refits(features(given.rows, TESTED), encoder, Path(folder))
        drawn = time_map(given.points, encoder, Path(folder), given.seconds)
    found = {
        "rows": given.rows,
        "dimension": DIMENSION,
        "classes": CLASSES,
        "refits": refits,
        "map": drawn,
        "load_average": os.getloadavg()[0],
        "versions": versions(),
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
