"""What the page asks and does, in this process, over features that are mean colours."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient
from tests.workspaces import PORT, TOKEN, make_workspace, served, write_rows

from dinoprobe.types import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from dinoprobe.page.workspace import Workspace


class Page:
    """A client that is logged in, and the workspace behind it."""

    def __init__(self, work: Workspace) -> None:
        self.work = work
        gate, self.service = served(work)
        base = f"http://127.0.0.1:{PORT}"
        self.client = TestClient(gate, base_url=base, headers={"x-dinoprobe-token": TOKEN})

    def get(self, path: str, **query: Any) -> Any:
        answer = self.client.get(f"/api/{path}", params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, body: Any = None, *, status: int = 200) -> Any:
        answer = self.client.post(f"/api/{path}", json=body or {})
        assert answer.status_code == status, answer.text
        return answer.json()

    def label(self, key: str, new: str | None, *, status: int = 200, **more: Any) -> Any:
        old = self.work.features.y[self.work.rows[key]]
        change = {"key": key, "old": old, "new": new, **more}
        return self.post("labels", {"changes": [change]}, status=status)


@pytest.fixture
def open_page(tmp_path: Path) -> Iterator[Callable[..., Page]]:
    made: list[Page] = []

    def make(**options: Any) -> Page:
        made.append(Page(make_workspace(tmp_path, **options)))
        return made[-1]

    yield make
    for page in made:
        page.client.close()
        page.service.batcher.close()


@pytest.fixture
def page(open_page: Callable[..., Page]) -> Page:
    return open_page()


def png(colour: tuple[int, int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 20), colour).save(file, "PNG")
    return file.getvalue()


def test_rows_are_columns(page: Page) -> None:
    found = page.get("rows")
    assert len(found["keys"]) == len(found["splits"]) == len(found["labels"]) == 36
    assert found["splits"].count("test") == 9
    info = page.get("info")
    assert (info["kind"], info["n"], info["parts"]) == ("run", 36, {"test": 9, "train": 27})


def test_a_label_is_written_told_and_undone(page: Page) -> None:
    assert page.label("train/red/1.png", " blue ") == {"action": 1}
    told = page.get("labels", since=0)
    assert told["version"] == 1
    (change,) = told["changes"]
    assert (change["key"], change["old"], change["new"]) == ("train/red/1.png", "red", "blue")
    assert page.get("labels", since=1)["changes"] == []
    page.post("undo")
    (change,) = page.get("labels", since=1)["changes"]
    assert (change["new"], change["undoes"]) == ("red", 1)
    assert page.work.standing().labels[page.work.rows["train/red/1.png"]] == "red"


def test_a_new_label_is_a_class_from_then_on(page: Page) -> None:
    page.label("train/red/1.png", "crimson")
    assert page.get("labels")["classes"] == ["blue", "crimson", "green", "red"]


def test_a_label_that_another_tab_changed_is_a_conflict(page: Page) -> None:
    page.label("train/red/1.png", "blue")
    told = page.label("train/red/1.png", "green", status=409)
    assert told["reason"] == "conflict"
    assert "'blue' now" in told["error"]
    assert page.get("labels")["version"] == 1


@pytest.mark.parametrize(
    "body",
    [
        {"changes": []},
        {"changes": [{"key": "no such key", "new": "red"}]},
        {"changes": [{"key": "../colours/train/red/1.png", "new": "red"}]},
        {"changes": [{"key": "train/red/1.png", "old": "red", "new": "x" * 201}]},
        {"changes": [{"key": "train/red/1.png", "old": "red", "new": "blue"}] * 2},
        {"changes": "all"},
    ],
)
def test_what_is_no_correction_is_refused(page: Page, body: Any) -> None:
    page.post("labels", body, status=422)
    assert page.get("labels")["version"] == 0
    assert not page.work.origin.labels.exists()


def test_pictures_are_asked_for_by_key_alone(page: Page, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png((1, 2, 3)))
    answer = page.client.get("/api/image", params={"key": "train/red/1.png", "size": 128})
    assert answer.headers["content-type"] == "image/jpeg"
    assert answer.headers["cache-control"] == "private, max-age=600"
    assert Image.open(io.BytesIO(answer.content)).size == (24, 20)
    for key in (
        "../secret.png",
        str(tmp_path / "secret.png"),
        "",
        "train/red",
        "train/red/1.png\0",
    ):
        assert page.client.get("/api/image", params={"key": key}).status_code == 404
    for size in (0, 127, 100_000):
        asked = {"key": "train/red/1.png", "size": size}
        assert page.client.get("/api/image", params=asked).status_code == 404


def test_a_picture_that_is_gone_is_told(page: Page, tmp_path: Path) -> None:
    (tmp_path / "colours" / "train" / "red" / "1.png").unlink()
    answer = page.client.get("/api/image", params={"key": "train/red/1.png"})
    assert (answer.status_code, answer.json()["reason"]) == (422, "unreadable")


def test_a_refit_says_what_it_changed_on_the_same_labels(page: Page) -> None:
    for i in (1, 2, 3):
        page.label(f"train/red/{i}.png", "green")
    told = page.post("refit")
    assert (told["n_train"], told["n_corrected"], told["version"]) == (27, 3, 3)
    test = told["test"]
    assert (test["n"], test["before"]["accuracy"]) == (9, 1.0)
    low, high = test["difference_interval"]
    assert low <= test["difference"] <= high
    assert test["difference"] == pytest.approx(test["after"]["accuracy"] - 1.0)
    assert told["test_corrected"] is None
    assert page.get("model")["version"] == 3


def test_corrections_of_test_labels_are_kept_apart(page: Page) -> None:
    page.label("test/red/0.png", "green")
    told = page.post("refit")
    assert (told["n_corrected"], told["n_corrected_test"], told["n_train"]) == (0, 1, 27)
    assert told["test"]["before"] == told["test"]["after"]
    assert told["test"]["before"]["accuracy"] == 1.0
    apart = told["test_corrected"]
    assert apart["before"]["accuracy"] == apart["after"]["accuracy"] == pytest.approx(8 / 9)


def test_dropped_images_are_not_trained_on(page: Page) -> None:
    page.label("train/red/1.png", "red", dropped=True)
    assert page.post("refit")["n_train"] == 26


def test_figures_are_of_the_test_part_with_labels_as_they_stand(page: Page) -> None:
    found = page.get("figures")
    assert (found["n"], found["accuracy"], found["corrected"]) == (9, 1.0, 0)
    page.label("test/red/0.png", "green")
    found = page.get("figures")
    assert found["corrected"] == 1
    assert found["accuracy"] == pytest.approx(8 / 9)
    wrong = [row for row in found["answers"] if row["label"] != row["predicted"]]
    assert [row["key"] for row in wrong] == ["test/red/0.png"]


def test_a_dropped_picture_is_judged_with_its_neighbours(page: Page) -> None:
    told = page.client.post(
        "/api/predict", content=png((210, 35, 30)), headers={"content-type": "image/png"}
    ).json()
    assert told["top"][0]["label"] == "red"
    assert sum(score["probability"] for score in told["top"]) == pytest.approx(1)
    assert {near["label"] for near in told["neighbours"][:3]} == {"red"}
    assert all(near["key"].startswith("train/") for near in told["neighbours"])
    assert told["novel"] is None


def test_what_is_no_image_is_told(page: Page) -> None:
    answer = page.client.post(
        "/api/predict", content=b"hello", headers={"content-type": "application/octet-stream"}
    )
    assert (answer.status_code, answer.json()["reason"]) == (415, "not-an-image")


def test_the_queue_is_what_the_run_found(open_page: Callable[..., Page], tmp_path: Path) -> None:
    failures = (Failure("train/red/broken.png", "truncated", "cut off"),)
    page = open_page(failures=failures)
    run = page.work.origin.run
    write_rows(
        run / "suspects.csv",
        ("key", "label", "predicted", "probability", "label_probability"),
        ("train/red/2.png", "red", "blue", "0.9", "0.05"),
        ("not/here.png", "red", "blue", "0.9", "0.05"),
    )
    write_rows(
        run / "leaks.csv",
        ("key", "label", "other_key", "other_label", "kind", "correlation"),
        ("test/red/0.png", "red", "train/red/1.png", "red", "near", "0.99"),
    )
    items = {item["kind"]: item for item in page.get("queue")["items"]}
    assert set(items) == {"suspect", "duplicate", "failure"}
    assert items["suspect"]["key"] == "train/red/2.png"
    assert items["suspect"]["suggestion"] == "blue"
    assert items["duplicate"]["other"] == "train/red/1.png"
    assert "truncated" in items["failure"]["text"]


def test_what_a_check_found_joins_the_queue(page: Page, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "colours-check-001"
    folder.mkdir()
    write_rows(
        folder / "check.csv",
        ("key", "kind", "score", "suggestion", "related", "split", "label", "severity", "reason"),
        ("train/red/1.png", "copy", "0.99", "", "train/red/2.png", "", "red", "low", "the same"),
        ("", "tiny-class", "", "", "", "", "blue", "low", "9 images"),
    )
    (item,) = [item for item in page.get("queue")["items"] if item["kind"] == "check"]
    assert (item["key"], item["other"]) == ("train/red/1.png", "train/red/2.png")
    assert item["text"] == "dinoprobe check, copy: the same"


def test_looking_again_finds_the_wrong_label(page: Page) -> None:
    page.label("train/red/1.png", "blue")
    items = page.get("queue", again=True)["items"]
    found = [item for item in items if item["kind"] == "suspect"]
    assert [(item["key"], item["suggestion"]) for item in found] == [("train/red/1.png", "red")]


def test_a_map_has_a_point_for_each_row(page: Page) -> None:
    answer = page.client.get("/api/map", params={"kind": "pca"})
    points = np.frombuffer(answer.content, "<f4").reshape(-1, 2)
    assert points.shape == (36, 2)
    assert np.abs(points).max() == pytest.approx(1)
    reds = [row for key, row in page.work.rows.items() if "/red/" in key]
    others = [row for key, row in page.work.rows.items() if "/red/" not in key]
    centre = points[reds].mean(axis=0)
    within = np.linalg.norm(points[reds] - centre, axis=1).max()
    assert within < np.linalg.norm(points[others] - centre, axis=1).min()
    assert page.client.get("/api/map", params={"kind": "umap"}).status_code == 422


def test_labelling_from_nothing(open_page: Callable[..., Page]) -> None:
    page = open_page(run=False, labelled=False)
    assert page.get("model")["version"] is None
    told = page.post("refit", status=422)
    assert "two classes" in told["error"]
    picks = page.get("picks", count=9)
    assert picks["how"] == "diverse"
    colours = [key.split("/")[1] for key in picks["keys"]]
    assert set(colours) == {"red", "green", "blue"}
    for key, colour in zip(picks["keys"], colours, strict=True):
        page.label(key, colour)
    told = page.post("refit")
    assert told["n_train"] == 9
    assert told["test"] is None
    assert told["out_of_fold"]["accuracy"] > 0.8
    following = page.get("picks", count=5)
    assert following["how"] == "uncertain"
    assert not set(following["keys"]) & set(picks["keys"])
    model = page.get("model")
    said = [model["classes"][code] for code in model["predicted"]]
    assert said == [key.split("/")[1] for key in page.work.features.keys]


def test_runs_beside_this_one_go_by_their_names(page: Page, tmp_path: Path) -> None:
    other = tmp_path / "runs" / "colours-002"
    other.mkdir()
    header = ("key", "label", "predicted", "probability", "correct", "content_hash")
    rows = [(f"{i}.png", "red", "red", 1.0, 1, f"h{i}") for i in range(12)]
    wrong = [*rows[:6], *((*row[:2], "blue", *row[3:]) for row in rows[6:])]
    write_rows(other / "predictions.csv", header, *wrong)
    write_rows(page.work.origin.run / "predictions.csv", header, *rows)
    assert page.get("runs")["runs"] == ["colours-002"]
    found = page.get("compare", other="colours-002")
    assert (found["a"]["accuracy"], found["b"]["accuracy"], found["n"]) == (0.5, 1.0, 12)
    for name in ("../runs/colours-002", "colours-001", str(other), ""):
        assert page.client.get("/api/compare", params={"other": name}).status_code == 422


def test_a_label_that_only_test_images_have_is_left_out_of_the_figures(page: Page) -> None:
    page.label("test/red/0.png", "violet")
    found = page.get("figures")
    assert (found["n"], found["left_out"]) == (8, 1)
