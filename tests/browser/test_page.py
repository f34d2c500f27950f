"""`dinoprobe open` as a person uses it: keys, corrections, refit, and nothing from elsewhere."""

from __future__ import annotations

import csv
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
    assert chip.inner_text().split() == ["Doubtful", "labels", "2"]
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
    assert "--labels" in saved.inner_text()
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


VIEWS = ["review"]
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
