"""From a run, or from images alone, to what the page works on; and back to a run by Save."""

from __future__ import annotations

import json
import shutil
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from tests.workspaces import write_colours
from typer.testing import CliRunner

from dinoprobe.cli.app import app
from dinoprobe.datasets import DataSettings, read_split
from dinoprobe.datasets.corrections import State
from dinoprobe.encoder import EncoderSettings
from dinoprobe.errors import ConfigurationError, FormatError
from dinoprobe.page.fitting import refit
from dinoprobe.page.opening import Hearers, is_run, open_data, open_run
from dinoprobe.page.saving import Saver, save_command

if TYPE_CHECKING:
    from pathlib import Path

BUILTIN = EncoderSettings(name="builtin")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("opening")
    photos = write_colours(root / "photos")
    out = str(root / "runs" / "colours")
    arguments = ["train", str(photos), "--encoder", "builtin", "--head", "lda", "--out", out]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    return root


@pytest.fixture
def place(trained: Path, tmp_path: Path) -> Path:
    """A copy of photos and run; the run still names the first photos."""
    shutil.copytree(trained, tmp_path / "copy")
    config = tmp_path / "copy" / "runs" / "colours" / "config.json"
    values = json.loads(config.read_text(encoding="utf-8"))
    values["data"]["source"] = str(tmp_path / "copy" / "photos")
    config.write_text(json.dumps(values), encoding="utf-8")
    return tmp_path / "copy"


class Counted:
    """Progress that counts what is encoded."""

    def __init__(self) -> None:
        self.images = 0

    def start(self, total: int, already: int) -> None:
        """Does nothing."""

    def advance(self, images: int, failures: int) -> None:
        self.images += images

    def finish(self) -> None:
        """Does nothing."""


def test_a_run_is_opened_as_it_was_and_nothing_is_encoded_again(trained: Path) -> None:
    counted = Counted()
    run = trained / "runs" / "colours"
    work = open_run(str(run), hearers=Hearers(progress=counted))
    assert counted.images == 0
    rows = {row.key: row for row in read_split(run / "split.csv")}
    assert dict(zip(work.features.keys, work.splits, strict=True)) == {
        key: row.split for key, row in rows.items()
    }
    assert work.recipe.name == "lda"
    told = refit(work, work.standing())
    assert told["test"]["difference"] == 0
    first = work.first.head.predict_proba(work.features.X)
    np.testing.assert_allclose(work.model.head.predict_proba(work.features.X), first, atol=1e-4)


def test_images_that_came_later_or_changed_are_in_no_part(place: Path) -> None:
    photos = place / "photos"
    Image.new("RGB", (24, 20), (250, 10, 10)).save(photos / "train" / "red" / "new.png")
    Image.new("RGB", (24, 20), (10, 10, 250)).save(photos / "test" / "blue" / "0.png")
    work = open_run(str(place / "runs" / "colours"))
    parts = dict(zip(work.features.keys, work.splits, strict=True))
    assert parts["train/red/new.png"] is None
    assert parts["test/blue/0.png"] is None
    assert parts["test/blue/4.png"] == "test"
    assert len(work.notes) >= 2
    assert work.rows["train/red/new.png"] in work.training_rows(work.standing())


def test_save_trains_with_the_corrections_and_the_split(place: Path) -> None:
    run = place / "runs" / "colours"
    work = open_run(str(run))
    assert "--labels" not in save_command(work)
    red, green = State("red"), State("green")
    work.log.append([work.wanted("train/red/1.png", red, green)])
    work.log.append([work.wanted("train/red/2.png", red, State("red", dropped=True))])
    assert save_command(work).endswith(f"--labels {run / 'labels.csv'}")
    saver = Saver(work, lambda _: None)
    saver.start()
    with pytest.raises(ConfigurationError, match="being made"):
        saver.start()
    work.log.append([work.wanted("train/red/3.png", red, green)])  # not of the saved version
    end = time.monotonic() + 120
    while saver.now.state == "runs" and time.monotonic() < end:
        time.sleep(0.05)
    assert saver.now.state == "done", saver.now.text
    rows = {row.key: row for row in read_split(place / "runs/colours-corrected-001/split.csv")}
    before = {row.key: row for row in read_split(run / "split.csv")}
    assert before.keys() - rows.keys() == {"train/red/2.png"}
    changed = {key for key, row in rows.items() if row != before[key]}
    assert changed == {"train/red/1.png"}
    assert rows["train/red/1.png"].label == "green"
    assert "labels-000002.csv" in save_command(work, 2)
    saved = json.loads((place / "runs/colours-corrected-001/config.json").read_text("utf-8"))
    assert saved["data"]["labels"].endswith("labels-000002.csv")


def test_images_without_labels_have_no_model(trained: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, path in enumerate(sorted((trained / "photos").rglob("*.png"))):
        shutil.copyfile(path, flat / f"{i}.png")
    labels = str(tmp_path / "labels.csv")
    work = open_data(DataSettings(source=str(flat)), BUILTIN, labels=labels)
    assert work.model is None
    assert set(work.splits) == {None}
    assert "--encoder builtin" in save_command(work)


def test_labelled_images_without_a_run_have_a_model_and_keep_their_test_part(
    trained: Path, tmp_path: Path
) -> None:
    data = DataSettings(source=str(trained / "photos"))
    work = open_data(data, BUILTIN, labels=str(tmp_path / "labels.csv"))
    assert work.model is not None
    assert work.splits.count("test") == 9
    assert len(work.training_rows(work.standing())) == 27


def test_what_can_not_be_opened_is_told(trained: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(trained / "runs" / "colours" / "classifier", moved)
    assert is_run(str(moved))
    with pytest.raises(FormatError, match="has left its run"):
        open_run(str(moved))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\nxx")
    with pytest.raises(ConfigurationError, match="none of 1 images can be used"):
        open_data(DataSettings(source=str(tmp_path / "broken")), BUILTIN)
    with pytest.raises(ConfigurationError, match="int8 is calibrated for a run"):
        open_data(
            DataSettings(source=str(tmp_path)), EncoderSettings(name="builtin", precision="int8")
        )


def test_the_command_line_asks_for_an_encoder(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["open", str(tmp_path), "--no-browser", "--json"])
    assert done.exit_code == 2
    assert "no encoder was given" in json.loads(done.stdout)["message"]
    done = CliRunner().invoke(app, ["open", str(tmp_path / "no"), "--encoder", "builtin"])
    assert done.exit_code == 2


def test_train_takes_corrections_beside_a_configuration(place: Path) -> None:
    run = place / "runs" / "colours"
    work = open_run(str(run))
    work.log.append([work.wanted("train/red/1.png", State("red"), State("green"))])
    out = str(place / "again")
    config, split = str(run / "config.json"), str(run / "split.csv")
    labels = str(run / "labels.csv")
    arguments = ["--config", config, "--labels", labels, "--split", split, "--out", out]
    done = CliRunner().invoke(app, ["train", *arguments])
    assert done.exit_code == 0, done.output
    assert "1 labels are corrected" in done.output
    rows = {row.key: row.label for row in read_split(place / "again" / "split.csv")}
    assert rows["train/red/1.png"] == "green"
