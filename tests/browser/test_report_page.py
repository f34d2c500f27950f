"""The report in a real browser: silent, offline, readable on a phone and in the dark."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from tests.browser.chromium import LOW_CONTRAST, needs_chromium

from dinoprobe.learning_curve import Expected, Law, LearningCurve, Point
from dinoprobe.report import (
    Baseline,
    EpochPoint,
    Prediction,
    ReportInput,
    SelectionPoint,
    render_report,
)
from dinoprobe.types import Failure

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

playwright_api = pytest.importorskip("playwright.sync_api")
pytestmark = needs_chromium

HOSTILE = ("<script>alert(1)</script>", "x" * 300, "\u202egnp.exe", "three words here")
CLASSES = {
    "2": ("cat", "dog"),
    "10": tuple("0123456789"),
    "40": tuple(f"a rather long class name {i}" for i in range(40)),
    "200": tuple(f"species {i}" for i in range(200)),
    "hostile": HOSTILE,
}


def thumbnail() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def make_evaluation(classes: tuple[str, ...]) -> dict:
    """Shares of every size, so that every colour of the matrix appears."""
    count = len(classes)
    confusion = np.diag(np.full(count, 40))
    for i in range(count):
        confusion[i, (i + 1) % count] += 1 + i * 17 % 90
        confusion[i, i // 2] += i % 3
    support, right = confusion.sum(axis=1), np.diag(confusion)
    recall, n = right / support, int(support.sum())
    accuracy = float(right.sum() / n)
    return {
        "n": n,
        "accuracy": accuracy,
        "accuracy_interval": [accuracy - 0.02, accuracy + 0.02],
        "balanced_accuracy": float(recall.mean()),
        "top5_accuracy": 0.99,
        "macro_precision": 0.8,
        "macro_recall": float(recall.mean()),
        "macro_f1": 0.8,
        "log_loss": 0.5,
        "expected_calibration_error": 0.03,
        "classes": list(classes),
        "per_class": [
            {
                "label": name,
                "precision": 0.8,
                "recall": float(recall[i]),
                "recall_interval": [max(recall[i] - 0.1, 0), min(recall[i] + 0.1, 1)],
                "f1": 0.8,
                "support": int(support[i]),
            }
            for i, name in enumerate(classes)
        ],
        "confusion": confusion.tolist(),
        "reliability": [
            {
                "low": i / 15,
                "high": (i + 1) / 15,
                "count": 10 + 97 * i,
                "confidence": (i + 0.5) / 15,
                "accuracy": (i + 0.5) / 15,
            }
            for i in range(15)
        ],
        "risk_coverage": [
            {"coverage": i / 20, "risk": (i / 20) ** 3 / 4, "threshold": 1 - i / 25}
            for i in range(2, 21)
        ],
    }


def make_curve() -> LearningCurve:
    points = [
        Point(100 * 2**i, 0.8 + i / 50, (0.78 + i / 50, 0.82 + i / 50), 0.01) for i in range(8)
    ]
    ends = (Expected(16_000, 0.95, (0.94, 0.96)), Expected(32_000, 0.96, (0.95, 0.97)))
    return LearningCurve(5, 3, tuple(points), Law(0.01, 1.5, 0.35, 100), *ends, None)


def make_page(classes: tuple[str, ...]) -> str:
    keys = [f"test/{classes[0]}/{i}.png" for i in range(24)]
    summary = ReportInput(
        dataset=classes[0],
        encoder={"id": "builtin", "weights_digest": "f" * 64, "commit": "c" * 40},
        evaluation=make_evaluation(classes),
        head={"name": "logistic probe", "strength": 1.0},
        run={"command": "dinoprobe train " + "photos/" * 30, "versions": {"torch": "2.10.0"}},
        baseline=Baseline("raw pixels", 0.9, (0.88, 0.92)),
        predictions=[Prediction(key, classes[0], classes[1], 0.9) for key in keys],
        thumbnails=dict.fromkeys(keys, thumbnail()),
        selection=[SelectionPoint(10.0**i, 0.9 - 0.02 * abs(i), 0.01) for i in range(-4, 4)],
        epochs=[EpochPoint(i, 1 / i, 1.2 / i) for i in range(1, 20)],
        curve=make_curve(),
        counts={split: dict.fromkeys(classes, 50) for split in ("train", "val", "test")},
        failures=[Failure("f" * 300, "truncated", "r" * 300)],
        ignored={".txt": 3},
        notes=["n" * 300],
        sets="Prediction sets for 90 %: 90.5 % hold the label.",
        novelty="Unlike the training images: 2 images are flagged, 0.5 %.",
        abstention="Target accuracy 95 %: an answer where the best probability is 0.8624.",
        answered=(0.6, 0.95),
    )
    return render_report(summary)


@pytest.fixture
def page(browser: playwright_api.Browser) -> Iterator[playwright_api.Page]:
    """A page that fails its test on any request but the report's own, message or error."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, color_scheme="light")
    page = context.new_page()
    unwanted: list[str] = []
    page.on("console", lambda message: unwanted.append(message.text))
    page.on("pageerror", lambda error: unwanted.append(str(error)))
    page.on("request", lambda request: unwanted.append(request.url))
    yield page
    own = [url for url in unwanted if url.startswith(("file:", "data:"))]
    assert [text for text in unwanted if text not in own] == []
    assert sum(url.startswith("file:") for url in own) == 1
    context.close()


def show(page: playwright_api.Page, folder: Path, name: str) -> None:
    path = folder / "report.html"
    path.write_text(make_page(CLASSES[name]), encoding="utf-8")
    page.goto(path.as_uri())


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("width", [360, 1280])
def test_never_scrolls_sideways(
    page: playwright_api.Page, tmp_path: Path, name: str, width: int
) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    show(page, tmp_path, name)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["10", "40", "hostile"])
def test_text_has_the_contrast_of_wcag_aa(
    page: playwright_api.Page, tmp_path: Path, name: str, scheme: str
) -> None:
    page.emulate_media(color_scheme=scheme)
    show(page, tmp_path, name)
    assert page.evaluate(LOW_CONTRAST) == []


def test_dark_mode_is_another_set_of_colours(page: playwright_api.Page, tmp_path: Path) -> None:
    show(page, tmp_path, "10")
    colours = "[getComputedStyle(document.body).color, getComputedStyle(document.body).background]"
    light = page.evaluate(colours)
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(colours)
    assert light[0] != dark[0]
    assert light[1] != dark[1]


def test_thumbnails_load(page: playwright_api.Page, tmp_path: Path) -> None:
    show(page, tmp_path, "2")
    widths = page.evaluate("[...document.images].map((image) => image.naturalWidth)")
    assert widths == [64] * 24


def test_tables_sort_by_column(page: playwright_api.Page, tmp_path: Path) -> None:
    show(page, tmp_path, "10")
    table = page.locator("table.sortable").first
    head = table.get_by_role("button", name="Recall", exact=True)
    column = "rows => rows.map((row) => parseFloat(row.cells[4].textContent))"
    head.click()
    values = table.locator("tbody tr").evaluate_all(column)
    assert values == sorted(values)
    head.click()
    values = table.locator("tbody tr").evaluate_all(column)
    assert values == sorted(values, reverse=True)
    assert table.locator("th[aria-sort=descending]").count() == 1


def test_sections_are_reached_by_their_links(page: playwright_api.Page, tmp_path: Path) -> None:
    show(page, tmp_path, "10")
    for link in page.locator("nav a").all():
        assert page.locator(link.get_attribute("href")).count() == 1


def test_regions_that_scroll_are_reached_by_keyboard(
    page: playwright_api.Page, tmp_path: Path
) -> None:
    page.set_viewport_size({"width": 360, "height": 800})
    show(page, tmp_path, "40")
    unreachable = """[...document.querySelectorAll("*")].filter((element) =>
      ["auto", "scroll"].includes(getComputedStyle(element).overflowX)
      && element.scrollWidth > element.clientWidth && element.tabIndex < 0).length"""
    assert page.evaluate(unreachable) == 0


def test_prints(page: playwright_api.Page, tmp_path: Path) -> None:
    show(page, tmp_path, "10")
    assert page.pdf().startswith(b"%PDF")
