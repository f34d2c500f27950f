"""`dinoprobe open` as a person uses it: keys, corrections, refit, and nothing from elsewhere."""

from __future__ import annotations

import csv
import re
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from tests.browser.chromium import LOW_CONTRAST, needs_chromium
from tests.served import Process
from tests.workspaces import write_colours
from typer.testing import CliRunner

from dinoprobe.cli.app import app

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

playwright_api = pytest.importorskip("playwright.sync_api")
pytestmark = needs_chromium


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on colours of which two training labels are wrong."""
    root = tmp_path_factory.mktemp("page")
    photos = write_colours(root / "photos", per_class=20)
    for i in (5, 6):
        wrong = photos / "train" / "red" / f"{i}.png"
        wrong.rename(photos / "train" / "blue" / f"red-{i}.png")
    run = str(root / "runs" / "colours")
    options = ["--encoder", "builtin", "--head", "logistic", "--out", run]
    done = CliRunner().invoke(app, ["train", str(photos), *options])
    assert done.exit_code == 0, done.output
    return root / "runs" / "colours"


@pytest.fixture
def run(trained: Path) -> Path:
    """The run without corrections of another test."""
    for path in trained.glob("labels*.csv*"):
        path.unlink()
    for path in trained.parent.iterdir():
        if path != trained:
            shutil.rmtree(path)
    return trained


class Visitor:
    """Pages at one address. Anything unwanted that they say or ask for is kept."""

    def __init__(self, browser: Any, url: str) -> None:
        self.url = url
        self.base = url.split("?", maxsplit=1)[0]
        self.unwanted: list[str] = []
        self.context = browser.new_context(viewport={"width": 1280, "height": 800})

    def page(self, view: str = "") -> Any:
        page = self.context.new_page()
        page.on("console", lambda message: self.unwanted.append(message.text))
        page.on("pageerror", lambda error: self.unwanted.append(str(error)))
        page.on("request", lambda request: self._asked(request.url))
        page.goto(self.url)
        if view:
            page.goto(f"{self.base}#{view}")
        page.wait_for_selector("main:not([aria-busy])")
        return page

    def _asked(self, url: str) -> None:
        if not url.startswith((self.base, "data:", "blob:")):
            self.unwanted.append(url)


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[[Process], Visitor]]:
    visitors: list[Visitor] = []

    def start(process: Process) -> Visitor:
        visitors.append(Visitor(browser, process.first.split()[-1]))
        return visitors[-1]

    yield start
    for visitor in visitors:
        visitor.context.close()
        assert visitor.unwanted == []


@contextmanager
def opened(*arguments: str) -> Iterator[Process]:
    process = Process("-m", "dinoprobe", "open", *arguments, "--no-browser")
    try:
        yield process
        process.end()
    finally:
        process.close()


@pytest.fixture(scope="module")
def process(trained: Path) -> Iterator[Process]:
    """One page for the whole module; each test begins without corrections."""
    with opened(str(trained)) as found:
        yield found


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def corrections(run: Path) -> list[tuple[str, str]]:
    return [(row["key"], row["new"]) for row in table(run / "labels.csv")]


def bar(page: Any) -> Any:
    return page.get_by_role("region", name="Corrections and model")


def test_doubtful_labels_are_corrected_by_keys_and_refitted(
    run: Path, process: Process, visit: Any
) -> None:
    page = visit(process).page()
    chip = page.get_by_role("group", name="Kinds of findings").locator("[aria-current=true]")
    playwright_api.expect(chip).to_have_text(re.compile(r"Doubtful labels\s*2"))
    page.keyboard.press("Enter")
    playwright_api.expect(page.locator(".where")).to_contain_text("2 of 2")
    page.keyboard.press("3")
    playwright_api.expect(bar(page)).to_contain_text("2 corrections")
    assert sorted(corrections(run)) == [
        ("train/blue/red-5.png", "red"),
        ("train/blue/red-6.png", "red"),
    ]
    page.keyboard.press("r")
    result = page.get_by_role("group", name="Refit")
    playwright_api.expect(result).to_contain_text("on the test part")
    playwright_api.expect(result).to_contain_text("95 % interval")
    playwright_api.expect(page.get_by_role("status")).to_contain_text("Refitted on 45 images")
    page.keyboard.press("u")
    playwright_api.expect(bar(page)).to_contain_text("1 correction ")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("x")
    playwright_api.expect(page.get_by_role("status")).to_contain_text("left out")


def test_undo_works_after_a_restart(run: Path, process: Process, visit: Any) -> None:
    page = visit(process).page()
    page.keyboard.press("Enter")
    playwright_api.expect(bar(page)).to_contain_text("1 correction")
    with opened(str(run)) as another:
        again = visit(another).page()
        playwright_api.expect(bar(again)).to_contain_text("1 correction")
        again.keyboard.press("u")
        playwright_api.expect(bar(again)).to_contain_text("0 corrections")
        again.close()


def test_two_tabs_see_each_other(run: Path, process: Process, visit: Any) -> None:
    visitor = visit(process)
    one, other = visitor.page(), visitor.page()
    one.bring_to_front()
    one.keyboard.press("Enter")
    playwright_api.expect(bar(one)).to_contain_text("1 correction")
    other.bring_to_front()
    playwright_api.expect(bar(other)).to_contain_text("1 correction")


def test_a_new_label_is_chosen_by_name(run: Path, process: Process, visit: Any) -> None:
    page = visit(process).page()
    page.keyboard.press("l")
    page.get_by_role("textbox").or_(page.get_by_role("combobox")).fill("crimson")
    page.keyboard.press("Enter")
    playwright_api.expect(page.get_by_role("status")).to_contain_text("Labelled crimson")
    playwright_api.expect(page.get_by_role("group", name="Labels")).to_contain_text("crimson")


def test_saving_makes_a_run_with_the_corrected_labels(
    run: Path, process: Process, visit: Any
) -> None:
    page = visit(process).page()
    page.keyboard.press("Enter")
    playwright_api.expect(bar(page)).to_contain_text("1 correction")
    page.get_by_role("button", name="save as a new run").click()
    saved = page.get_by_role("group", name="Save")
    playwright_api.expect(saved).to_contain_text("Saved:", timeout=60_000)
    new = run.parent / "colours-corrected-001"
    rows = {row["key"]: row for row in table(new / "split.csv")}
    before = {row["key"]: row for row in table(run / "split.csv")}
    ((key, label),) = corrections(run)
    assert (rows[key]["label"], before[key]["label"]) == (label, "blue")
    assert {k: row["split"] for k, row in rows.items()} == {
        k: row["split"] for k, row in before.items()
    }
    playwright_api.expect(saved).to_contain_text("--labels")
    done = CliRunner().invoke(app, ["evaluate", str(new)])
    assert done.exit_code == 0, done.output


def test_help_lists_the_keys_and_gives_the_focus_back(
    run: Path, process: Process, visit: Any
) -> None:
    page = visit(process).page()
    page.keyboard.press("?")
    dialog = page.get_by_role("dialog")
    playwright_api.expect(dialog).to_contain_text("Undo the last correction")
    page.keyboard.press("Enter")
    playwright_api.expect(dialog).to_be_hidden()


def test_a_picture_is_predicted_with_its_neighbours(
    run: Path, process: Process, visit: Any
) -> None:
    page = visit(process).page("predict")
    photo = run.parents[1] / "photos" / "test" / "green" / "0.png"
    page.get_by_label("Image file").set_input_files(photo)
    bars = page.get_by_role("list", name="Most probable labels").get_by_role("listitem")
    playwright_api.expect(bars.first).to_contain_text("green")
    near = page.get_by_role("region", name="Nearest training images")
    playwright_api.expect(near.locator("figure")).to_have_count(6)
    assert all(near.locator("img").evaluate_all("all => all.map((each) => each.alt)"))


def test_a_picture_is_dropped_and_pasted(run: Path, process: Process, visit: Any) -> None:
    page = visit(process).page("predict")
    colours = {"drop": ("#c82828", "red"), "paste": ("#28c828", "green")}
    for event, (colour, label) in colours.items():
        page.evaluate(GIVE, [event, colour])
        first = page.get_by_role("list", name="Most probable labels").get_by_role("listitem").first
        playwright_api.expect(first).to_contain_text(label)


def test_the_camera_takes_a_picture(run: Path, process: Process, visit: Any) -> None:
    page = visit(process).page("predict")
    page.keyboard.press("c")
    page.wait_for_selector("video")
    ready = "document.querySelector('video').videoWidth > 0"
    while not page.evaluate(ready):
        page.wait_for_timeout(50)
    page.keyboard.press(" ")
    bars = page.get_by_role("list", name="Most probable labels").get_by_role("listitem")
    playwright_api.expect(bars).to_have_count(3)
    page.keyboard.press("c")
    playwright_api.expect(page.locator("video")).to_have_count(0)


def test_what_is_no_picture_is_told(run: Path, process: Process, visit: Any) -> None:
    visitor = visit(process)
    page = visitor.page("predict")
    text = {"name": "a.png", "mimeType": "image/png", "buffer": b"hello"}
    page.get_by_label("Image file").set_input_files(text)
    playwright_api.expect(page.locator(".problem")).to_contain_text("expected one of JPEG")
    (message,) = visitor.unwanted
    assert "415" in message
    visitor.unwanted.clear()


GIVE = """async ([type, colour]) => {
  const canvas = new OffscreenCanvas(40, 40);
  const context = canvas.getContext("2d");
  context.fillStyle = colour;
  context.fillRect(0, 0, 40, 40);
  const blob = await canvas.convertToBlob();
  const transfer = new DataTransfer();
  transfer.items.add(new File([blob], "given.png", { type: "image/png" }));
  const init = { bubbles: true, cancelable: true };
  document.querySelector("main").dispatchEvent(type === "drop"
    ? new DragEvent("drop", { ...init, dataTransfer: transfer })
    : new ClipboardEvent("paste", { ...init, clipboardData: transfer }));
}"""


def test_a_cell_of_the_matrix_opens_its_images_and_is_in_the_address(
    run: Path, process: Process, visit: Any
) -> None:
    visitor = visit(process)
    page = visitor.page("evaluate")
    page.get_by_role("button", name="5 images of red taken for red").click()
    images = page.get_by_role("region", name="red, taken for red:")
    playwright_api.expect(images.locator(".tile")).to_have_count(5)
    playwright_api.expect(page).to_have_url(re.compile("label=red&said=red"))
    again = visitor.page(page.url.split("#")[1])
    playwright_api.expect(again.locator(".tile")).to_have_count(5)
    again.keyboard.press("Escape")
    playwright_api.expect(again.locator(".tile")).to_have_count(0)


def test_the_threshold_answers_less_and_is_in_the_address(
    run: Path, process: Process, visit: Any
) -> None:
    page = visit(process).page("evaluate")
    words = page.locator("output")
    playwright_api.expect(words).to_contain_text("100.0 % answered")
    slider = page.get_by_role("slider")
    slider.focus()
    page.keyboard.press("End")
    playwright_api.expect(words).not_to_contain_text("100.0 % answered")
    page.keyboard.press("ArrowLeft")
    playwright_api.expect(page).to_have_url(re.compile("from=99"))
    playwright_api.expect(
        page.get_by_role("img", name="Reliability").locator("circle").first
    ).to_be_attached()


def test_a_lasso_selects_images_to_label_together(run: Path, process: Process, visit: Any) -> None:
    page = visit(process).page("map")
    playwright_api.expect(page.locator(".row .note")).to_have_text("60 images")
    page.keyboard.press("s")
    box = page.locator("canvas").bounding_box()
    left, right = box["x"] + 2, box["x"] + box["width"] - 2
    top, bottom = box["y"] + 2, box["y"] + box["height"] - 2
    page.mouse.move(left, top)
    page.mouse.down()
    for x, y in ((right, top), (right, bottom), (left, bottom)):
        page.mouse.move(x, y)
    page.mouse.up()
    chosen = page.get_by_role("region", name="Selected:")
    playwright_api.expect(chosen).to_contain_text("60 images")
    chosen.get_by_role("button", name="all / none").click()
    chosen.locator(".tile").nth(3).click()
    chosen.locator(".tile").nth(4).click()
    chosen.get_by_role("button", name="Label the chosen").click()
    page.get_by_role("combobox", name="Label of 2 images").fill("odd")
    page.keyboard.press("Enter")
    playwright_api.expect(bar(page)).to_contain_text("2 corrections")
    assert [label for _, label in corrections(run)] == ["odd", "odd"]
    page.keyboard.press("u")
    playwright_api.expect(bar(page)).to_contain_text("0 corrections")


def test_a_point_shows_its_image_and_the_map_its_colours(
    run: Path, process: Process, visit: Any
) -> None:
    page = visit(process).page("map?by=part")
    playwright_api.expect(page.locator(".legend")).to_contain_text("train")
    page.get_by_label("Colour").select_option("error")
    playwright_api.expect(page.locator(".legend")).to_contain_text("wrong")
    playwright_api.expect(page).to_have_url(re.compile("by=error"))
    playwright_api.expect(page.locator(".row .note")).to_have_text("60 images")
    place = page.locator("canvas").evaluate(
        "c => c.cloud.at(0).map((v) => v * c.clientWidth / c.width)"
    )
    box = page.locator("canvas").bounding_box()
    page.mouse.move(box["x"] + place[0], box["y"] + place[1])
    playwright_api.expect(page.locator(".hover img")).to_have_count(1)


def test_t_sne_comes_when_it_is_ready(run: Path, process: Process, visit: Any) -> None:
    page = visit(process).page("map")
    page.wait_for_selector("canvas")
    page.get_by_label("Layout").select_option("tsne")
    note = page.locator(".row .note")
    playwright_api.expect(note).to_contain_text("60 images", timeout=60_000)


def test_two_runs_are_compared(run: Path, process: Process, visit: Any) -> None:
    shutil.copytree(run, run.parent / "other")
    page = visit(process).page("runs")
    playwright_api.expect(page.locator(".finding")).to_contain_text("the same 15 images")
    playwright_api.expect(page).to_have_url(re.compile("other=other"))
    playwright_api.expect(page.locator("main code")).to_contain_text("dinoprobe compare")


def test_labelling_from_nothing(tmp_path: Path, visit: Any) -> None:
    """20 labels by keys, a model, and the next ones: those that it is unsure of."""
    photos = write_colours(tmp_path / "named", per_class=20)
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, path in enumerate(sorted(photos.rglob("*.png"))):
        shutil.copyfile(path, flat / f"{i:03d}-{path.parent.name}.png")
    labels = tmp_path / "labels.csv"
    arguments = (str(flat), "--encoder", "builtin", "--labels", str(labels))
    with opened(*arguments) as another:
        page = visit(another).page()
        playwright_api.expect(page.locator("main")).to_contain_text("0 labels")
        digits: dict[str, str] = {}
        for count in range(1, 21):
            colour = page.locator(".where .key").inner_text().rpartition("-")[2][:-4]
            if colour in digits:
                page.keyboard.press(digits[colour])
            else:
                page.keyboard.press("l")
                page.get_by_role("combobox").fill(colour)
                page.keyboard.press("Enter")
            playwright_api.expect(page.locator(".where").first).to_contain_text(
                "1 label " if count == 1 else f"{count} labels"
            )
            names = sorted({*digits, colour})
            digits = {name: str(place) for place, name in enumerate(names, start=1)}
        playwright_api.expect(page.locator("main")).to_contain_text("least sure of")
        playwright_api.expect(page.get_by_role("group", name="Refit")).to_contain_text(
            "out of fold"
        )
        playwright_api.expect(page.locator(".where").nth(1)).to_contain_text("1 of 20")
        page.close()
    assert len(table(labels)) == 20
    assert all(row["key"].endswith(f"-{row['new']}.png") for row in table(labels))
    out = str(tmp_path / "run")
    options = ["--encoder", "builtin", "--labels", str(labels), "--out", out]
    done = CliRunner().invoke(app, ["train", str(flat), *options])
    assert done.exit_code == 0, done.output


VIEWS = ["review", "evaluate", "map", "predict", "runs"]
UNNAMED = """[...document.querySelectorAll("button, a, input, select, img, [role]")]
  .filter((e) => e.checkVisibility() && e.role !== "status")
  .filter((e) => !(e.getAttribute("aria-label") ?? e.innerText ?? "").trim())
  .filter((e) => !e.labels?.length && !e.hasAttribute("alt") && !e.hasAttribute("aria-hidden"))
  .map((e) => e.outerHTML.slice(0, 100))"""


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view_is_readable(
    run: Path, process: Process, visit: Any, view: str, scheme: str
) -> None:
    page = visit(process).page(view)
    page.emulate_media(color_scheme=scheme)
    page.wait_for_timeout(300)
    assert page.evaluate(LOW_CONTRAST) == []
    for width in (1280, 360):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(UNNAMED) == []
