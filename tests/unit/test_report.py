"""The report: honest numbers, safe names, one file, bounded size."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from dinoprobe.evaluation import evaluate
from dinoprobe.learning_curve import Expected, Law, LearningCurve, Point
from dinoprobe.report import (
    Baseline,
    Compared,
    EpochPoint,
    Prediction,
    ReportInput,
    SelectionPoint,
    charts,
    render_report,
)
from dinoprobe.report.charts import curve_chart
from dinoprobe.report.input import Figures
from dinoprobe.types import Failure

SCRIPT = "<script>alert(1)</script>"
QUOTES = "\"><img src=x onerror='alert(1)'>"
HOSTILE = (SCRIPT, QUOTES, "x" * 300, "\u202egnp.exe", "a\x00b\ud800", "{{ 7 * 7 }}")
PNG = b"\x89PNG\r\n\x1a\n"


def make_evaluation(classes: tuple[str, ...], per_class: int = 20, wrong: int = 2) -> dict:
    """`wrong` of each class are taken for the next one."""
    count, n = len(classes), len(classes) * per_class
    confusion = [[0] * count for _ in classes]
    for i in range(count):
        confusion[i][i] = per_class - wrong
        confusion[i][(i + 1) % count] += wrong
    right = (per_class - wrong) / per_class
    return {
        "n": n,
        "accuracy": right,
        "accuracy_interval": [right - 0.05, right + 0.03],
        "balanced_accuracy": right,
        "top5_accuracy": 0.9876 if count > 5 else None,
        "macro_precision": 0.8111,
        "macro_recall": 0.8222,
        "macro_f1": 0.8333,
        "log_loss": 0.2345,
        "expected_calibration_error": 0.0123,
        "classes": list(classes),
        "per_class": [
            {
                "label": name,
                "precision": right,
                "recall": right,
                "recall_interval": [right - 0.1, right + 0.05],
                "f1": right,
                "support": per_class,
            }
            for name in classes
        ],
        "confusion": confusion,
        "reliability": [
            {"low": 0.0, "high": 0.5, "count": n // 4, "confidence": 0.4, "accuracy": 0.5},
            {"low": 0.5, "high": 1.0, "count": n, "confidence": 0.9, "accuracy": 0.95},
            {"low": 1.0, "high": 1.0, "count": 0, "confidence": None, "accuracy": None},
        ],
        "worst_confusions": [
            {"true": classes[i], "predicted": classes[(i + 1) % count], "count": wrong}
            for i in range(min(count, 20))
        ],
    }


def make_input(classes: tuple[str, ...] = ("cat", "dog", "owl"), **changes: object) -> ReportInput:
    keys = [f"test/{i}.png" for i in range(40)]
    full = ReportInput(
        dataset="pets",
        encoder={"id": "facebook/dinov3-vits16-pretrain-lvd1689m", "fingerprint": "f00d"},
        evaluation=make_evaluation(classes),
        head={"name": "logistic probe", "strength": 0.1},
        run={"seed": 7, "command": "dinoprobe train pets", "versions": {"torch": "2.10.0"}},
        baseline=Baseline("raw pixels", 0.41, (0.3, 0.5)),
        predictions=[Prediction(key, classes[0], classes[1], 0.9) for key in keys],
        thumbnails=dict.fromkeys(keys, PNG + b"small"),
        selection=[SelectionPoint(10.0**i, 0.9 - 0.01 * abs(i), 0.01) for i in range(-3, 3)],
        epochs=[EpochPoint(i, 1 / i, 1.1 / i) for i in range(1, 9)],
        counts={"train": dict.fromkeys(classes, 50), "test": dict.fromkeys(classes, 20)},
        failures=[Failure("bad.jpg", "truncated", "not a readable image")],
        ignored={".txt": 3},
        notes=["a note"],
    )
    return dataclasses.replace(full, **changes)


class Elements(HTMLParser):
    """All tags, attributes and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def text_of(page: str) -> str:
    return " ".join(" ".join(Elements(page).texts).replace("\u00a0", " ").split())


def test_shows_the_figures_with_their_uncertainty():
    text = text_of(render_report(make_input()))
    assert "90.0 %" in text
    assert "95 % interval 85.0 to 93.0 %" in text
    assert "n = 60" in text
    assert "54 of 60 test images are classified correctly" in text
    for value in ("81.1 %", "82.2 %", "83.3 %", "0.234", "1.23 %", "41.0 %"):
        assert value in text


def test_shows_protocol_failures_and_data():
    text = text_of(render_report(make_input()))
    for part in ("f00d", "torch 2.10.0", "dinoprobe train pets", "Seed", "bad.jpg", "a note"):
        assert part in text


def test_top5_only_where_there_are_more_classes():
    assert "Top-5" not in render_report(make_input())
    assert "98.8 %" in text_of(render_report(make_input(tuple("abcdefgh"))))


def test_hostile_names_stay_text():
    summary = make_input(
        HOSTILE,
        dataset=SCRIPT,
        notes=[SCRIPT],
        failures=[Failure(QUOTES, "x", SCRIPT)],
        run={"command": SCRIPT, "versions": {SCRIPT: QUOTES}, QUOTES: SCRIPT},
        encoder={"id": SCRIPT, "note": QUOTES},
        head={"name": SCRIPT},
        baseline=Baseline(QUOTES, 0.5),
        ignored={SCRIPT: 1},
        predictions=[Prediction(QUOTES, SCRIPT, QUOTES, 0.9)],
        thumbnails={QUOTES: PNG},
    )
    page = render_report(summary)
    elements = Elements(page)
    assert sum(tag == "script" for tag, _ in elements.tags) == 1
    assert not any(name.startswith("on") for _, attrs in elements.tags for name in attrs)
    assert all(a["src"].startswith("data:") for tag, a in elements.tags if tag == "img")
    assert "{{ 7 * 7 }}" in html.unescape(page)
    page.encode("utf-8")
    assert "\x00" not in page


def test_names_are_isolated_from_the_direction_of_the_text():
    assert "<bdi>\u202egnp.exe</bdi>" in render_report(make_input(HOSTILE))


def test_needs_nothing_from_outside():
    page = render_report(make_input())
    assert not re.search(r"https?:|//[a-z]|@import|url\(", page)
    for tag, attrs in Elements(page).tags:
        assert tag not in {"link", "iframe", "object", "embed", "base", "form"}
        assert str(attrs.get("src", "data:")).startswith("data:")
        assert str(attrs.get("href", "#")).startswith("#")


def test_policy_allows_exactly_the_script_of_the_page():
    page = render_report(make_input())
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL).group(1)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(a["content"] for _, a in Elements(page).tags if "http-equiv" in a)
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert f"script-src 'sha256-{digest}'" in policy


@pytest.mark.parametrize("count", [2, 10, 40])
def test_few_classes_are_a_table(count: int):
    page = render_report(make_input(tuple(f"class {i:03d}" for i in range(count))))
    assert '<table class="matrix' in page
    assert '<svg class="picture"' not in page
    assert page.count('scope="row"') >= 2 * count


@pytest.mark.parametrize("count", [41, 200, 1000])
def test_many_classes_are_a_picture(count: int):
    page = render_report(make_input(tuple(f"class {i:04d}" for i in range(count))))
    assert '<svg class="picture"' in page
    assert '<table class="matrix' not in page
    assert "class 0000 taken for class 0001: 2 images" in text_of(page)
    assert len(page.encode()) < 3_000_000


def test_matrix_colours_right_and_wrong_apart():
    page = render_report(make_input(("a", "b")))
    assert re.search(r'class="hit-8" title="a: 18 images recognised, 90.0.%"', page)
    assert re.search(r'class="miss-3" title="a taken for b: 2 images, 10.0.% of a"', page)


def test_confusions_are_listed_even_without_a_matrix():
    evaluation = make_evaluation(("a", "b")) | {"confusion": None}
    text = text_of(render_report(make_input(evaluation=evaluation)))
    assert "The most frequent confusions" in text


def test_confusions_are_capped_with_a_count():
    text = text_of(render_report(make_input(tuple(f"c{i}" for i in range(200)))))
    assert "10 of 200." in text


def test_reads_what_evaluate_writes():
    labels = ["a"] * 40 + ["b"] * 40
    probabilities = np.full((80, 2), 0.3)
    probabilities[:40, 0] = probabilities[40:, 1] = 0.7
    probabilities[:4] = [0.2, 0.8]
    evaluation = evaluate(labels, probabilities, ("a", "b"))
    figures = Figures.from_evaluation(evaluation.to_dict())
    assert figures.accuracy == evaluation.accuracy == 0.95
    assert figures.interval == evaluation.accuracy_interval
    assert figures.f1 == evaluation.macro_f1
    assert [row.recall for row in figures.per_class] == [0.9, 1.0]
    assert [(b.lower, b.images) for b in figures.reliability] == [
        (entry.low, entry.count) for entry in evaluation.reliability if entry.count
    ]
    assert figures.worst_confusions == (("a", "b", 4),)
    absent = [key for key, value in dataclasses.asdict(figures).items() if value is None]
    assert absent == ["top5_accuracy"]
    assert "95.0 %" in text_of(render_report(make_input(evaluation=evaluation.to_dict())))


def test_only_what_is_required():
    figures = {"n": 0, "accuracy": None, "classes": []}
    page = render_report(ReportInput(dataset="d", encoder={}, evaluation=figures))
    assert "There is no accuracy to report" in page
    assert "Most confident mistakes" not in page


def test_every_part_of_an_evaluation_can_be_absent():
    complete = make_evaluation(("a", "b"))
    for key in complete:
        if key != "n":
            without = {name: value for name, value in complete.items() if name != key}
            render_report(make_input(("a", "b"), evaluation=without))
            render_report(make_input(("a", "b"), evaluation=without | {key: None}))


def test_not_a_number_is_shown_as_absent():
    evaluation = make_evaluation(("a", "b")) | {"log_loss": float("nan")}
    page = render_report(make_input(("a", "b"), evaluation=evaluation))
    assert "nan" not in text_of(page).lower().split()


def test_optional_sections_disappear_from_the_contents_too():
    page = render_report(make_input(predictions=(), selection=(), epochs=(), head={}))
    assert "#mistakes" not in page
    assert "#training" not in page
    for _, attrs in Elements(page).tags:
        if attrs.get("href"):
            assert f'id="{attrs["href"][1:]}"' in page


def test_references_inside_the_page_resolve_and_ids_are_unique():
    page = render_report(make_input())
    tags = Elements(page).tags
    ids = [attrs["id"] for _, attrs in tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs in tags:
        for target in (attrs.get("aria-labelledby") or "").split():
            assert target in ids


def test_pictures_are_named_for_who_can_not_see_them():
    for tag, attrs in Elements(render_report(make_input())).tags:
        if tag == "svg":
            assert attrs["role"] == "img"
            assert attrs["aria-labelledby"]
        if tag == "img":
            assert attrs["alt"]


def test_mistakes_are_the_most_confident_and_capped():
    predictions = [Prediction(f"{i}.png", "cat", "dog", i / 100) for i in range(100)]
    predictions.append(Prediction("right.png", "cat", "cat", 1.0))
    text = text_of(render_report(make_input(predictions=predictions)))
    assert "24 of 100 mistakes" in text
    assert "99.png" in text
    assert "76.png" in text
    assert "75.png" not in text
    assert "right.png" not in text


def test_thumbnails_stay_within_a_budget():
    keys = [f"test/{i}.png" for i in range(24)]
    page = render_report(make_input(thumbnails=dict.fromkeys(keys, PNG + b"\0" * 200_000)))
    assert len(page.encode()) < 3_000_000
    assert page.count("data:image/png") == 7
    assert "no thumbnail" in page


def test_a_thumbnail_that_is_no_picture_is_left_out():
    summary = make_input(thumbnails={"test/0.png": b"<svg onload='alert(1)'/>"})
    assert "data:image" not in render_report(summary)


def test_failures_are_capped_with_a_count():
    failures = [Failure(f"{i:04d}.jpg", "x", "r") for i in range(1234)]
    text = text_of(render_report(make_input(failures=failures)))
    assert "and 1,184 more in failures.csv" in text
    assert "0049.jpg" in text
    assert "0050.jpg" not in text


def test_huge_inputs_stay_small():
    classes = tuple(f"{i:05d}" + "x" * 300 for i in range(1500))
    failures = [Failure("k" * 4000, "x", "r" * 4000)] * 500
    notes = ["n" * 10_000] * 500
    page = render_report(make_input(classes, failures=failures, notes=notes))
    assert len(page.encode()) < 3_000_000
    assert "500 more are left out" in text_of(page)


def test_caveats():
    evaluation = make_evaluation(("a", "b"), per_class=8)
    counts = {"train": {"a": 5}, "test": {"a": 8, "b": 8}}
    text = text_of(
        render_report(
            make_input(
                ("a", "b"),
                encoder={"id": "builtin"},
                evaluation=evaluation,
                counts=counts,
                baseline=Baseline("pixels", 0.99),
            )
        )
    )
    assert "for demos and tests only" in text
    assert "There are only 16 test images" in text
    assert "2 of 2 classes have fewer than 10 test images" in text
    assert "1 class occurs only among the test images and can not be learned: b." in text
    assert "1 image could not be used" in text
    assert "not better than the baseline, pixels" in text


def test_no_caveats_without_reason():
    evaluation = make_evaluation(("a", "b"), per_class=500)
    page = render_report(make_input(("a", "b"), evaluation=evaluation, failures=()))
    assert "Read with care" not in page


def test_one_error_in_many_is_not_called_perfect():
    evaluation = make_evaluation(("a", "b")) | {"n": 10_000, "accuracy": 0.9999}
    assert "99.99 %" in text_of(render_report(make_input(("a", "b"), evaluation=evaluation)))


def test_the_same_input_gives_the_same_page():
    assert render_report(make_input()) == render_report(make_input())


def test_selection_marks_the_chosen_strength():
    page = render_report(make_input())
    assert page.count('class="chosen"') == 1
    assert re.search(r'class="chosen"[^>]*><title>C = 0.1:', page)


@pytest.mark.parametrize(
    "epochs",
    [
        [EpochPoint(1, 0.5)],
        [EpochPoint(i, float("nan")) for i in range(5)],
        [EpochPoint(i, 0.5) for i in range(5)],
        [EpochPoint(i, 1e-12 * i) for i in range(5)],
        [EpochPoint(i, 1e6 / (i + 1)) for i in range(5000)],
    ],
    ids=["one", "nan", "flat", "tiny", "many"],
)
def test_any_loss_can_be_drawn_or_left_out(epochs: list[EpochPoint]):
    assert len(render_report(make_input(epochs=epochs))) < 200_000


def test_strengths_that_have_no_logarithm_are_left_out():
    selection = [SelectionPoint(0.0, 0.5), SelectionPoint(1.0, 0.6), SelectionPoint(10.0, 0.7)]
    assert "C = 10:" in text_of(render_report(make_input(selection=selection)))


@pytest.mark.parametrize(
    ("option", "axis"), [("alpha", "Strength alpha"), ("shrinkage", "Shrinkage")]
)
def test_selection_by_another_option(option: str, axis: str):
    selection = [SelectionPoint(10.0**-i, 0.9 - i / 10, option=option) for i in range(3)]
    head = {"name": "some head", option: 0.1}
    page = render_report(make_input(selection=selection, head=head))
    assert re.search(rf'class="chosen"[^>]*><title>{option} = 0.1:', page)
    assert f"{axis} (larger: more regularised)" in text_of(page)


def test_doubtful_labels_are_shown_and_capped():
    suspects = [Prediction(f"train/{i}.png", "cat", "dog", 0.9) for i in range(20)]
    page = render_report(
        ReportInput(
            dataset="pets",
            encoder={"id": "builtin"},
            evaluation=make_evaluation(("cat", "dog")),
            suspects=suspects,
            thumbnails={"train/0.png": PNG},
        )
    )
    assert "12 of 20 training images whose label is contradicted" in page
    assert page.count("train/11.png") == 1
    assert "train/12.png" not in page
    assert "Labels to look at" not in render_report(
        ReportInput(dataset="pets", encoder={}, evaluation=make_evaluation(("cat", "dog")))
    )


def test_what_was_compared_stands_in_a_table_with_the_one_that_was_kept() -> None:
    rows = (
        Compared("lda", "cls", 0.8, 0.61234, 0.05, 0.01, False),
        Compared("ridge", "cls+mean", 0.85, 0.5, 0.0, 0.0, True),
    )
    page = render_report(dataclasses.replace(make_input(), compared=rows))
    assert "<strong>ridge</strong>" in page
    assert "<strong>lda</strong>" not in page
    assert "0.612" in page
    assert "compared-caption" not in render_report(make_input())


def curve_of(doubled: Expected | None, refusal: str | None) -> LearningCurve:
    points = tuple(
        Point(10 * 2**i, 0.5 + i / 20, (0.45 + i / 20, 0.55 + i / 20), 0.01) for i in range(6)
    )
    law = Law(0.01, 1.4, 0.45, 20) if doubled else None
    now = Expected(400, 0.81, (0.79, 0.83)) if doubled else None
    return LearningCurve(5, 3, points, law, now, doubled, refusal)


def test_the_learning_curve_is_drawn_with_its_law_and_what_it_says() -> None:
    doubled = Expected(800, 0.86, (0.84, 0.88))
    chart = curve_chart(curve_of(doubled, None))
    assert chart is not None
    assert len(chart.dots) == 7
    ring = chart.dots[-1]
    assert ring.style == "chosen"
    assert ring.text == "800 images: 86.0\u00a0%, 95 % interval 84.0 to 88.0\u00a0%"
    (law,) = [line for line in chart.lines if line.style == "curve"]
    first = float(law.points.split()[0].split(",")[0])
    assert first == pytest.approx(chart.dots[1].x)  # the law starts at 20 images
    assert float(law.points.split()[-1].split(",")[0]) == pytest.approx(ring.x)
    heights = [dot.y for dot in chart.dots]
    assert heights == sorted(heights, reverse=True)
    ticks = [tick.text for tick in chart.x_ticks]
    assert ticks == ["20", "80", "320", "800"]


def test_a_refusal_has_points_and_a_reason_but_no_law() -> None:
    chart = curve_chart(curve_of(None, "the points do not follow a power law"))
    assert chart is not None
    assert len(chart.dots) == 6
    assert {line.style for line in chart.lines} == {"spread"}
    assert curve_chart(None) is None
    page = render_report(
        ReportInput(
            dataset="d",
            encoder={"id": "x"},
            evaluation=make_evaluation(("a", "b")),
            curve=curve_of(None, "the points do not follow a power law"),
        )
    )
    assert "No extrapolation: the points do not follow a power law." in page
    assert "the line is the fitted law" not in page


def kept(*rows: tuple[float, float, float]) -> dict[str, Any]:
    names = ("coverage", "risk", "threshold")
    return {"risk_coverage": [dict(zip(names, row, strict=True)) for row in rows]}


def test_the_curve_of_answers_goes_through_its_points_and_marks_the_rule():
    points = kept((0.5, 0.02, 0.9), (1.0, 0.1, 0.3))
    summary = make_input(answered=(0.75, 0.97), abstention="Target accuracy 95 %.")
    summary = dataclasses.replace(summary, evaluation={**summary.evaluation, **points})
    figures = Figures.from_evaluation(summary.evaluation)
    chart = charts.abstention_chart(figures.kept, summary.answered)
    assert chart is not None
    middle = charts.LEFT + (charts.WIDTH - charts.LEFT - charts.RIGHT) / 2
    first, last, rule = chart.dots
    assert (first.x, last.x) == (middle, charts.WIDTH - charts.RIGHT)
    assert first.y < rule.y < last.y
    assert (rule.style, rule.x) == ("chosen", middle * 1.5 - charts.LEFT / 2)
    assert "50.0 % answered, from a probability of 0.900 on: 98.0 % correct" in (
        chart.description.replace("\u00a0", " ")
    )
    text = text_of(render_report(summary))
    assert "The ring is the rule that this classifier keeps." in text
    assert "Target accuracy 95 %." in text
    assert "Answers" in text


def test_without_a_rule_there_is_no_ring_and_without_points_no_curve():
    points = kept((0.5, 0.02, 0.9), (1.0, 0.1, 0.3))
    summary = make_input()
    assert 'id="answers"' not in render_report(summary)
    summary = dataclasses.replace(summary, evaluation={**summary.evaluation, **points})
    page = render_report(summary)
    assert 'id="answers"' in page
    assert "The ring is the rule" not in page
    one = Figures.from_evaluation(kept((1.0, 0.1, 0.3)))
    assert charts.abstention_chart(one.kept, None) is None
