"""The verbs end to end on real files, through the command line, in this process."""

from __future__ import annotations

import csv
import json
import re
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.checkpoints import save_vit
from typer.testing import CliRunner, Result

from dinoprobe.classifier import ImageClassifier
from dinoprobe.cli.app import app
from dinoprobe.encoder import Encoder
from dinoprobe.train.few_shot import ShotFigures

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 60, 220)}
DESCRIBED = {"schema"} | set(
    re.findall(r"`([a-z_]+)`", (Path(__file__).parents[2] / "docs" / "json.md").read_text("utf-8"))
)
RUN_FILES = {
    "classifier", "config.json", "evaluation.json", "failures.csv", "leaks.csv",
    "metrics.jsonl",
    "predictions.csv", "report.html", "split.csv", "suspects.csv",
}  # fmt: skip


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vit(tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 noisy pictures in three class folders, a broken one and two files that are no images."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (root / name).mkdir()
        for i in range(20):
            pixels = np.clip(np.array(colour) + rng.normal(0, 30, (40, 48, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i:02d}.png")
    (root / "red" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a jpeg")
    (root / "red" / "readme.txt").write_text("notes")
    (root / "Thumbs.db").write_bytes(b"x")
    return root


def invoke(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def document(*arguments: object, code: int = 0) -> dict[str, object]:
    result = invoke(*arguments, "--json")
    assert result.exit_code == code, result.output
    value: dict[str, object] = json.loads(result.stdout)
    assert set(value) <= DESCRIBED, "docs/json.md describes every key"
    return value


@pytest.fixture(scope="module")
def run(
    photos: Path, vit: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, object]]:
    base = tmp_path_factory.mktemp("run")
    found = document(
        "train", photos, "--encoder", vit, "--store", base / "store", "--out", base / "run"
    )
    return base / "run", found


def test_train_writes_the_whole_run(run: tuple[Path, dict[str, object]], photos: Path) -> None:
    path, found = run
    assert {p.name for p in path.iterdir()} == RUN_FILES
    assert found["schema"] == "dinoprobe.train/1"
    assert found["accuracy"] == 1.0
    low, high = found["interval"]  # type: ignore[misc]
    assert 0.7 < low < high <= 1.0
    assert (found["n_train"], found["n_test"], found["failed"]) == (48, 12, 1)
    assert found["classes"] == ["blue", "green", "red"]
    assert found["run"] == str(path)
    with (path / "failures.csv").open() as file:
        (failure,) = csv.DictReader(file)
    assert failure["key"] == "red/broken.jpg"
    with (path / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    with (path / "split.csv").open() as file:
        parts = {row["key"]: row["split"] for row in csv.DictReader(file)}
    assert {row["key"] for row in rows} == {key for key, part in parts.items() if part == "test"}


def test_a_few_shot_table_knows_no_choice_of_the_whole_training_part(
    photos: Path,
    vit: Path,
    run: tuple[Path, dict[str, object]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its features are of the encoder's pooling, whichever one the saved classifier has."""
    widths = []

    def table(_protocol: object, training: Any, test: Any, **_: object) -> list[ShotFigures]:
        widths.append((training[0].shape[1], test[0].shape[1]))
        return [ShotFigures(2, 6, 0.5, 0.0, (0.5, 0.5), ("lda", "lda"))]

    monkeypatch.setattr(import_module("dinoprobe.heads.search"), "chosen", lambda _: 0)
    monkeypatch.setattr("dinoprobe.train.recipe.few_shot_figures", table)
    options = ("--protocol", "fewshot-k", "--store", run[0].parent / "store")
    shown = invoke("train", photos, "-e", vit, "--out", tmp_path / "a", *options)
    assert "2 images a class: 50.0 % ± 0.0 over 2 draws of 6\n" in shown.stdout
    classifier = ImageClassifier.load(tmp_path / "a" / "classifier")
    assert classifier.encoder.pooling == "cls"
    assert widths == [(2 * classifier.encoder.dimension,) * 2]


def test_a_learning_curve_and_the_rule_are_asked_for(
    photos: Path, vit: Path, run: tuple[Path, dict[str, object]], tmp_path: Path
) -> None:
    store = run[0].parent / "store"
    options = ("--head", "lda", "--learning-curve", "--select", "one-se", "--store", store)
    shown = invoke("train", photos, "-e", vit, "--out", tmp_path / "a", *options)
    assert shown.exit_code == 0
    assert "Learning curve (5 folds of the training part, 3 draws each" in shown.stdout
    assert "No extrapolation:" in shown.stdout  # every size gets all of them right
    found = document("train", "--config", tmp_path / "a" / "config.json", "--out", tmp_path / "b")
    curve = found["learning_curve"]
    assert set(curve) <= DESCRIBED  # type: ignore[call-overload]
    assert [set(point) for point in curve["points"]] == [  # type: ignore[index]
        {"n", "accuracy", "interval", "deviation"}
    ] * len(curve["points"])  # type: ignore[index]
    assert curve["doubled"] is None  # type: ignore[index]
    assert "within one standard error" in str(found["protocol"])
    with (tmp_path / "b" / "learning_curve.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(curve["points"])  # type: ignore[index]
    for folder in ("a", "b"):
        assert {p.name for p in (tmp_path / folder).iterdir()} == RUN_FILES | {"learning_curve.csv"}
    events = (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()
    assert all("standard_error" in json.loads(line) for line in events)


def test_the_report_is_one_file_that_fetches_nothing(run: tuple[Path, dict[str, object]]) -> None:
    html = (run[0] / "report.html").read_text()
    assert "<link" not in html
    assert 'src="http' not in html
    assert "default-src 'none'" in html


def test_a_second_run_embeds_nothing_and_repeats_the_figures(
    run: tuple[Path, dict[str, object]], tmp_path: Path
) -> None:
    again = document("train", "--config", run[0] / "config.json", "--out", tmp_path / "again")
    assert again["cached"] == again["embedded"] == 60
    for key in ("accuracy", "interval", "fingerprint", "n_train"):
        assert again[key] == run[1][key]
    first, second = (p / "classifier" / "head.safetensors" for p in (run[0], tmp_path / "again"))
    assert first.read_bytes() == second.read_bytes()


def test_the_encoder_is_unchanged_by_training(vit: Path, photos: Path, tmp_path: Path) -> None:
    from dinoprobe.encoder import EncoderSettings
    from dinoprobe.train import DataSettings, TrainConfig, train

    before = Encoder.from_pretrained(str(vit), device="cpu").parameters_digest()
    for options in ({"head": "logistic"}, {"head": "linear", "on_the_fly": True}):
        trained = train(
            TrainConfig(
                data=DataSettings(source=str(photos)),
                encoder=EncoderSettings(name=str(vit), device="cpu"),
                store=str(tmp_path / "store"),
                out=str(tmp_path / str(options["head"])),
                **options,  # type: ignore[arg-type]
            )
        )
        assert trained.classifier.encoder.parameters_digest() == before


def test_evaluate_repeats_the_run_on_its_own_test_part(run: tuple[Path, dict[str, object]]) -> None:
    found = document("evaluate", run[0])
    for key in ("accuracy", "interval", "n_test", "fingerprint", "encoder"):
        assert found[key] == run[1][key]
    assert found["schema"] == "dinoprobe.evaluate/1"
    assert (Path(str(found["run"])) / "report.html").exists()


def test_evaluate_leaves_out_what_was_trained_on(
    run: tuple[Path, dict[str, object]], photos: Path
) -> None:
    found = document("evaluate", run[0], photos)
    assert found["n_test"] == 12
    assert any("48 of 60 images were trained on and left out" in n for n in found["notes"])  # type: ignore[attr-defined]


def test_evaluate_refuses_a_changed_test_part(photos: Path, vit: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "copy")
    document("train", tmp_path / "copy", "-e", vit, "--out", tmp_path / "r")
    with (tmp_path / "r" / "split.csv").open() as file:
        key = next(row["key"] for row in csv.DictReader(file) if row["split"] == "test")
    Image.new("RGB", (9, 9)).save(tmp_path / "copy" / key)
    found = document("evaluate", tmp_path / "r", code=2)
    assert f"{key}: the image or its label is not what the run tested" in str(found["message"])
    (tmp_path / "copy" / key).unlink()
    found = document("evaluate", tmp_path / "r", code=2)
    assert f"found 11 of the 12 images of the run's test part, {key} is missing" in str(
        found["message"]
    )


def test_a_run_that_fails_leaves_no_directory(
    photos: Path, vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dinoprobe.outcome.write_atomic", full)
    found = document("train", photos, "-e", vit, "--out", tmp_path / "r", code=2)
    assert "No space left" in str(found["message"])
    assert list(tmp_path.iterdir()) == []


def test_evaluate_refuses_a_class_that_was_never_trained(
    run: tuple[Path, dict[str, object]], tmp_path: Path
) -> None:
    (tmp_path / "Red").mkdir()
    Image.new("RGB", (20, 20)).save(tmp_path / "Red" / "a.png")
    found = document("evaluate", run[0], tmp_path, code=2)
    assert "'Red' is close to 'red'" in str(found["message"])


def test_predict_gives_a_row_for_each_image_and_for_each_failure(
    run: tuple[Path, dict[str, object]], photos: Path
) -> None:
    found = document(
        "predict", run[0], photos / "blue" / "00.png", photos / "red" / "broken.jpg",
        photos / "nothing.png",
    )  # fmt: skip
    good, broken, missing = found["rows"]  # type: ignore[misc]
    assert good["label"] == "blue"
    assert good["probability"] == good["top"][0]["probability"]
    assert sum(score["probability"] for score in good["top"]) == pytest.approx(1, abs=1e-6)
    assert broken["label"] is None
    assert broken["failure"]["reason"]
    assert missing["failure"]["kind"] == "unreadable"
    assert found["failed"] == 2


def test_predict_agrees_with_the_predictions_of_the_run(
    run: tuple[Path, dict[str, object]], photos: Path
) -> None:
    with (run[0] / "predictions.csv").open() as file:
        expected = {row["key"]: row for row in csv.DictReader(file)}
    rows = document("predict", run[0], photos)["rows"]
    found = {row["key"]: row for row in rows if "failure" not in row}  # type: ignore[attr-defined]
    for key, row in expected.items():
        assert found[key]["label"] == row["predicted"]
        assert found[key]["probability"] == pytest.approx(float(row["probability"]), abs=1e-6)


def test_predict_formats(run: tuple[Path, dict[str, object]], photos: Path) -> None:
    images = [photos / "blue" / "00.png", photos / "red" / "broken.jpg"]
    lines = [
        json.loads(line)
        for line in invoke("predict", run[0], *images, "--jsonl").stdout.splitlines()
    ]
    assert [line["label"] for line in lines] == ["blue", None]
    table = list(csv.DictReader(invoke("predict", run[0], *images, "--csv").stdout.splitlines()))
    assert [row["label"] for row in table] == ["blue", ""]
    assert table[1]["failure"]
    plain = invoke("predict", run[0], *images)
    assert "00.png  blue" in plain.stdout
    assert "broken.jpg  failed: " in plain.stdout
    assert invoke("predict", run[0], *images, "--csv", "--json").exit_code == 2


def test_predict_reads_paths_from_stdin(run: tuple[Path, dict[str, object]], photos: Path) -> None:
    paths = "".join(f"{photos / 'green' / name}\n" for name in ("00.png", "01.png"))
    result = CliRunner().invoke(app, ["predict", str(run[0]), "-", "--json"], input=paths)
    rows = json.loads(result.stdout)["rows"]
    assert [row["label"] for row in rows] == ["green", "green"]


def test_a_dry_run_tells_and_writes_nothing(photos: Path, vit: Path, tmp_path: Path) -> None:
    arguments = ["embed", photos, "--encoder", vit, "--store", tmp_path / "store", "--dry-run"]
    found = document(*arguments)
    assert found["schema"] == "dinoprobe.embed-estimate/1"
    assert (found["images"], found["left"], found["workers"]) == (61, 61, 1)
    shown = invoke(*arguments)
    assert "61 are left" in shown.stdout
    assert "Nothing was written." in shown.stdout
    assert not (tmp_path / "store").exists()


def test_embed_counts_everything_and_exports(photos: Path, vit: Path, tmp_path: Path) -> None:
    arguments = ["embed", photos, "--encoder", vit, "--store", tmp_path / "store"]
    first = document(
        *arguments, "--export", tmp_path / "x.safetensors", "--failures", tmp_path / "f.csv"
    )
    again = document(*arguments)
    assert (first["embedded"], first["cached"], first["failed"], first["skipped"]) == (60, 0, 1, 2)
    assert (again["embedded"], again["cached"], again["failed"]) == (60, 60, 1)
    assert again["content_digest"] == first["content_digest"]
    assert (tmp_path / "x.safetensors").stat().st_size > 60 * 64 * 4
    with (tmp_path / "f.csv").open() as file:
        listed = {row["key"]: row["kind"] for row in csv.DictReader(file)}
    assert set(listed) == {"red/broken.jpg", "red/readme.txt", "Thumbs.db"}
    assert listed["red/readme.txt"] == listed["Thumbs.db"] == "ignored"


@pytest.mark.parametrize("encoder", ["vit", "builtin"])
def test_what_was_embedded_serves_every_pooling_within(
    photos: Path, vit: Path, tmp_path: Path, encoder: str
) -> None:
    name = vit if encoder == "vit" else encoder
    arguments = ["embed", photos, "--encoder", name, "--store", tmp_path / "store"]
    whole = document(*arguments, "--pooling", "blocks2+mean")
    assert (whole["pooling"], whole["cached"], whole["embedded"]) == ("blocks2+mean", 0, 60)
    width = int(str(whole["dimension"])) // 3
    for pooling, parts in (("cls", 1), ("cls+mean", 2), ("blocks2", 2), ("mean", 1)):
        found = document(*arguments, "--pooling", pooling)
        assert (found["cached"], found["embedded"]) == (60, 60)
        assert found["dimension"] == parts * width
        assert found["base_fingerprint"] == whole["base_fingerprint"]
        assert found["fingerprint"] != whole["fingerprint"]
    assert (tmp_path / "store" / str(whole["base_fingerprint"])).is_dir()
    text = invoke(*arguments, "--pooling", "cls").stdout
    assert "60 images have features, 60 of them from before" in text
    assert "0 images encoded" in text


def test_a_pooling_with_more_parts_encodes_again(photos: Path, vit: Path, tmp_path: Path) -> None:
    arguments = ["embed", photos, "--encoder", vit, "--store", tmp_path / "store"]
    alone = document(*arguments, "--pooling", "cls")
    both = document(*arguments, "--pooling", "cls+mean")
    assert (alone["cached"], both["cached"], both["failed"]) == (0, 0, 1)
    for pooling in ("mean", "cls", "cls+mean"):
        assert document(*arguments, "--pooling", pooling)["cached"] == 60
    fresh = document(
        *arguments[:-1], tmp_path / "other", "--pooling", "cls+mean",
    )  # fmt: skip
    assert fresh["content_digest"] == both["content_digest"]


def test_train_and_predict_with_blocks(photos: Path, vit: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    found = document(
        "train", photos, "-e", vit, "--pooling", "blocks2+mean", "--store", tmp_path / "s",
        "--out", run,
    )  # fmt: skip
    assert found["accuracy"] == 1.0
    config = json.loads((run / "classifier" / "config.json").read_text())
    assert (config["pooling"], config["fingerprint"]) == ("blocks2+mean", found["fingerprint"])
    rows = document("predict", run, photos / "green" / "00.png")["rows"]
    assert rows[0]["label"] == "green"  # type: ignore[index]


def test_strict_exits_with_4_after_the_work_is_done(
    photos: Path, vit: Path, tmp_path: Path
) -> None:
    found = document(
        "embed", photos, "--encoder", vit, "--store", tmp_path / "s", "--strict", code=4
    )
    assert found["embedded"] == 60


@pytest.mark.parametrize(
    ("options", "accuracy"),
    [
        (["--head", "linear", "--epochs", "30", "--lr", "0.01"], 0.9),
        (["--head", "linear", "--on-the-fly", "--epochs", "8", "--lr", "0.02"], 0.6),
        (["--head", "linear-grid", "-O", "batch_size=16", "--epochs", "20"], 0.6),
        (["--head", "linear-grid", "--on-the-fly", "-O", "batch_size=8", "--epochs", "8"], 0.6),
        (["--head", "knn"], 0.9),
        (["--head", "lda"], 0.9),
        (["--head", "ridge"], 0.9),
        (["--head", "prototype"], 0.9),
        (["--head", "sklearn:sklearn.naive_bayes.GaussianNB"], 0.9),
        (["--pooling", "cls", "--size", "64", "--exact"], 0.9),
    ],
)
def test_heads_and_options(
    photos: Path, vit: Path, tmp_path: Path, options: list[str], accuracy: float
) -> None:
    found = document("train", photos, "-e", vit, "--out", tmp_path / "r", *options)
    assert found["accuracy"] >= accuracy  # type: ignore[operator]
    again = document("evaluate", tmp_path / "r")
    assert again["accuracy"] == found["accuracy"]
    events = [
        json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()
    ]
    if "lda" in options:
        assert sum(event.get("option") == "shrinkage" for event in events) == 12
        assert "lda head, shrinkage chosen on 5 folds of the training part" in found["protocol"]
    if "linear" in options:
        losses = [event["loss"] for event in events if event["event"] == "epoch"]
        assert losses[-1] < losses[0]


def test_given_splits_are_used_and_validation_chooses(
    photos: Path, vit: Path, tmp_path: Path
) -> None:
    for i, part in enumerate(["Train", "Validation", "TEST"]):
        for name in COLOURS:
            (tmp_path / "d" / part / name).mkdir(parents=True)
            for j in range(i * 6, i * 6 + 6):
                source = photos / name / f"{j:02d}.png"
                (tmp_path / "d" / part / name / source.name).symlink_to(source)
    found = document("train", tmp_path / "d", "-e", vit, "--out", tmp_path / "r")
    assert (found["n_train"], found["n_test"]) == (36, 18)
    assert "strength chosen on the validation part" in str(found["protocol"])
    assert "given split; test part used once" in str(found["protocol"])


def test_features_beyond_a_limit_are_read_from_files(
    photos: Path, vit: Path, tmp_path: Path
) -> None:
    figures = []
    for memory in ("1GB", "1KB"):
        out = tmp_path / memory / "run"
        result = invoke("train", photos, "-e", vit, "--memory", memory, "--out", out)
        assert result.exit_code == 0, result.output
        assert ("read from files in" in result.output) == (memory == "1KB")
        assert [path.name for path in out.parent.iterdir()] == ["run"]
        config = json.loads((out / "config.json").read_text())
        assert config["memory"] == {"1GB": 10**9, "1KB": 1000}[memory]
        figures.append(json.loads((out / "evaluation.json").read_text())["accuracy"])
    assert figures == [1.0, 1.0]
    found = invoke("train", "--config", out / "config.json", "--out", tmp_path / "again")
    assert found.exit_code == 0, found.output
    same = tmp_path / "again" / "predictions.csv"
    assert same.read_text() == (out / "predictions.csv").read_text()


@pytest.mark.parametrize("size", ["2", "-1GB", "much", "0GB"])
def test_a_limit_that_is_no_size_is_refused(photos: Path, size: str) -> None:
    result = invoke("train", photos, "-e", "builtin", f"--memory={size}")
    assert result.exit_code == 2
    assert f"--memory {size}: expected such as 2GB" in result.output


def test_a_protocol_claims_no_choice_that_was_not_made(
    photos: Path, vit: Path, tmp_path: Path
) -> None:
    one = ("--head", "logistic", "-O", "C=0.1")
    found = document("train", photos, "-e", vit, "--out", tmp_path / "r", *one)
    assert "strength as given" in str(found["protocol"])


def test_a_table_with_columns_by_flag(photos: Path, vit: Path, tmp_path: Path) -> None:
    rows = [
        f"{photos / name / f'{i:02d}.png'},{name},{i % 5}" for name in COLOURS for i in range(20)
    ]
    (tmp_path / "t.csv").write_text("where,what,plate\n" + "\n".join(rows) + "\n")
    found = document(
        "train", tmp_path / "t.csv", "-e", vit, "--out", tmp_path / "r",
        "--path-column", "where", "--label-column", "what", "--group-column", "plate",
    )  # fmt: skip
    assert found["accuracy"] == 1.0
    with (tmp_path / "r" / "split.csv").open() as file:
        sides = {(row["group"], row["split"]) for row in csv.DictReader(file)}
    assert len(sides) == 5


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "nowhere", "-e", "builtin"], "nowhere"),
        (["train", ".", "-e", "vits61"], "Did you mean vits16"),
        (["train", "."], "no encoder was given"),
        (["train", ".", "-e", "builtin", "--head", "logistik"], "logistic"),
        (["train", ".", "-e", "builtin", "--head", "knn", "--on-the-fly"], "Use --head linear"),
        (["train", ".", "-e", "builtin", "-O", "C"], "expected NAME=VALUE"),
        (["train", ".", "-e", "builtin", "--select", "x"], "expected one of best, one-se"),
        (["train", ".", "-e", "builtin", "--augment", "x"], "belongs to on-the-fly"),
        (
            ["train", ".", "-e", "builtin", "--head", "linear", "--on-the-fly", "--augment", "x"],
            "crop+flip, imagenet, crop, flip, none",
        ),
        (["train", "--config", "x.json", "--seed", "3"], "'seed' can not be given with it"),
        (["train", "--config", "nowhere.json"], "Give a run's config.json"),
        (["evaluate", "nowhere"], "no such directory"),
        (["predict", "nowhere", "x.jpg"], "no such directory"),
        (["embed", ".", "-e", "builtin", "--export", "x.csv"], "Expected one of"),
        (["embed", ".", "-e", "builtin", "--engine", "dask"], "expected one of local, ray"),
        (["embed", ".", "-e", "builtin", "--pooling", "max"], "pooling 'max' is not known"),
        (["embed", ".", "-e", "builtin", "--pooling", "blocks99"], "this model has"),
        (["embed", ".", "-e", "builtin", "--export", "no/x.npy"], "its folder does not exist"),
        (["train", ".", "-e", "builtin", "--head", "logistic", "-O", "C=a"], "an option of Log"),
        (["train", ".", "-e", "builtin", "--head", "logistic", "-O", "Cs=5"], "an option of Log"),
        (
            ["train", ".", "-e", "builtin", "-O", "C=1"],
            "tries lda, ridge too, without an option 'C'",
        ),
        (["train", ".", "-e", "builtin", "--protocol", "dinov3-knm"], "Did you mean 'dinov3-knn'"),
        (["train", ".", "-e", "builtin", "--protocol", "auto", "--head", "lda"], "Leave out one"),
        (["train", ".", "-e", "builtin", "-O", "C=Infinity"], "expected a finite number"),
        (["train", ".", "-e", "builtin", "--head", "knn", "-O", "temperature=x"], "KNNProbe"),
        (["train", ".", "-e", "builtin", "--head", "lda", "-O", "shrinkage=2"], "up to 1, such as"),
        (["train", ".", "-e", "builtin", "--head", "ridge", "-O", "alphas=x"], "RidgeProbe"),
        (["train", ".", "-e", "builtin", "--head", "prototype", "-O", "cv=1"], "at least 2 folds"),
        (["train", ".", "-e", "builtin", "--head", "linear", "-O", "epochs=2.5"], "LinearProbe"),
        (["train", ".", "-e", "builtin", "--head", "linear", "--optimizer", "x"], "adam, adamw"),
        (["train", "red", "-e", "builtin"], "expected at least 2"),
        (["train", "*/*.png", "-e", "builtin"], "a list or a pattern of files has no labels"),
        (["train", ".", "-e", "builtin", "--out", "red/00.png/x"], "Give another --out"),
        (["train", ".", "--config", "x.json"], "can not be given with it"),
        (["train", ".", "-e", "~nobody/x"], "is not an encoder"),
        (["embed", ".", "-e", "builtin", "--dtype", "float16"], "Use bfloat16 or float32"),
    ],
)
def test_a_users_mistake_is_one_message_and_exit_2(
    arguments: list[str], says: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos)
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert says in result.stderr
    assert "Traceback" not in result.output


def test_an_empty_out_directory_is_filled(
    photos: Path, vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    document("train", photos, "-e", vit, "--out", ".")
    assert {p.name for p in (tmp_path / "here").iterdir()} == RUN_FILES
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    document("train", photos, "-e", vit, "--out", tmp_path / "link")
    assert {p.name for p in (tmp_path / "empty").iterdir()} == RUN_FILES


def test_a_classifier_named_through_a_link_still_knows_its_run(
    run: tuple[Path, dict[str, object]], photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "best").symlink_to(run[0] / "classifier")
    found = document("evaluate", tmp_path / "best", photos, "--out", tmp_path / "e")
    assert found["n_test"] == 12


def test_several_folders_on_stdin_are_told_apart(
    run: tuple[Path, dict[str, object]], photos: Path
) -> None:
    lines = f"{photos / 'blue'}\n{photos / 'nowhere'}\n{photos / 'green'}\n"
    result = CliRunner().invoke(app, ["predict", str(run[0]), "-", "--json"], input=lines)
    rows = json.loads(result.stdout)["rows"]
    keys = [row["key"] for row in rows]
    assert len(keys) == len(set(keys)) == 41
    assert [row["key"] for row in rows if "failure" in row] == [str(photos / "nowhere")]


def test_an_out_directory_in_use_is_refused_before_any_work(
    photos: Path, vit: Path, tmp_path: Path
) -> None:
    (tmp_path / "x").write_text("")
    found = document("train", photos, "-e", vit, "--out", tmp_path, code=2)
    assert "not an empty directory" in str(found["message"])


def test_two_runs_are_compared_on_their_common_images(
    run: tuple[Path, dict[str, object]], photos: Path, vit: Path, tmp_path: Path
) -> None:
    arguments = ("--encoder", vit, "--store", run[0].parent / "store", "--out", tmp_path / "knn")
    other = document("train", photos, *arguments, "--head", "knn")
    found = document("compare", run[0], tmp_path / "knn")
    assert found["schema"] == "dinoprobe.compare/1"
    assert (found["n"], found["matched_by"]) == (12, "content hash")
    assert found["a"]["accuracy"] == 1.0  # type: ignore[index]
    assert found["b"]["accuracy"] == other["accuracy"]  # type: ignore[index]
    counts = [found[key] for key in ("both_right", "only_a", "only_b", "both_wrong")]
    assert counts == [12, 0, 0, 0] if other["accuracy"] == 1.0 else sum(counts) == 12
    for side in ("a", "b"):
        assert set(found[side]) <= DESCRIBED  # type: ignore[call-overload]
    shown = invoke("compare", run[0], tmp_path / "knn")
    assert shown.exit_code == 0
    assert str(found["verdict"]) in shown.stdout
    refused = document("compare", run[0], tmp_path / "knn", "--at-least", 13, code=2)
    assert "12 images in common" in str(refused["message"])


def test_an_evaluation_is_compared_with_another(
    run: tuple[Path, dict[str, object]], photos: Path, tmp_path: Path
) -> None:
    evaluated = document("evaluate", run[0], "--out", tmp_path / "again")
    found = document("compare", run[0], str(evaluated["run"]))
    assert (found["n"], found["p_value"], found["difference"]) == (12, 1.0, 0.0)


def train_again(run: tuple[Path, dict[str, object]], *arguments: object, code: int = 0) -> dict:  # type: ignore[type-arg]
    config = json.loads((run[0] / "config.json").read_text())
    place = ("--encoder", config["encoder"]["name"], "--store", run[0].parent / "store")
    return document("train", config["data"]["source"], *place, *arguments, code=code)


def test_a_logistic_head_is_calibrated_and_says_so(photos: Path, vit: Path, tmp_path: Path) -> None:
    path = tmp_path / "r"
    found = document("train", photos, "-e", vit, "--out", path, "--head", "logistic")
    calibration = found["calibration"]
    assert set(calibration) <= DESCRIBED  # type: ignore[call-overload]
    assert calibration["n"] == 48  # type: ignore[index]
    evaluation = json.loads((path / "evaluation.json").read_text())
    assert evaluation["calibration"] == calibration
    assert evaluation["expected_calibration_error"] == calibration["test_error_after"]  # type: ignore[index]
    assert json.loads((path / "config.json").read_text())["calibrate"] == "temperature"
    assert "Calibrated by temperature" in (path / "report.html").read_text()
    head = json.loads((path / "classifier" / "config.json").read_text())["training"]["head"]
    assert head["temperature"] == calibration["temperature"]  # type: ignore[index]

    one = ("--head", "logistic", "--calibrate", "none")
    plain = document("train", photos, "-e", vit, "--out", tmp_path / "plain", *one)
    assert plain["calibration"] is None
    assert plain["accuracy"] == found["accuracy"]
    before = json.loads((tmp_path / "plain" / "evaluation.json").read_text())
    assert before["expected_calibration_error"] == pytest.approx(
        calibration["test_error_before"],  # type: ignore[index]
        abs=1e-5,
    )
    again = document(
        "train", "--config", tmp_path / "plain" / "config.json", "--out", tmp_path / "c"
    )
    assert again["calibration"] is None
    shown = invoke("train", "--config", path / "config.json", "--out", tmp_path / "shown")
    assert "Calibrated by temperature" in shown.stdout


def test_other_heads_are_calibrated_where_that_is_asked_for_and_possible(
    run: tuple[Path, dict[str, object]], tmp_path: Path
) -> None:
    linear = ("--head", "linear", "--epochs", 2)
    assert train_again(run, *linear, "--out", tmp_path / "a")["calibration"] is None
    found = train_again(run, *linear, "--calibrate", "vector", "--out", tmp_path / "b")
    assert found["calibration"]["method"] == "vector"
    told = (tmp_path / "b" / "report.html").read_text()
    assert "Calibrated by a factor and a bias for each class" in told
    assert found["calibration"]["log_loss_after"] < found["calibration"]["log_loss_before"]
    refused = train_again(run, "--head", "knn", "--calibrate", "temperature", code=2)
    assert "can not be calibrated" in str(refused["message"])
    refused = train_again(run, *linear, "--on-the-fly", "--calibrate", "vector", code=2)
    assert "trained on the fly" in str(refused["message"])
    refused = train_again(run, "--calibrate", "platt", code=2)
    assert "expected one of auto, temperature, vector, none" in str(refused["message"])


def test_probabilities_for_other_class_frequencies(
    run: tuple[Path, dict[str, object]], photos: Path, tmp_path: Path
) -> None:
    assert run[1]["prior"] is None
    shares = "red=0.5,green=0.25,blue=0.25"
    found = train_again(run, "--prior", shares, "--out", tmp_path / "a")
    assert found["prior"] == {"blue": 0.25, "green": 0.25, "red": 0.5}
    assert found["sets"]["per_class"] is True  # type: ignore[index]
    assert "probabilities for given class frequencies" in str(found["protocol"])
    assert any("--prior" in note for note in found["notes"])  # type: ignore[attr-defined]
    # the temperature, and the errors before and after it, know nothing of the prior
    assert found["calibration"] == pytest.approx(run[1]["calibration"], abs=1e-5)
    again = document("evaluate", tmp_path / "a", "--out", tmp_path / "e")
    assert any("--prior" in note for note in again["notes"])  # type: ignore[attr-defined]
    plain, shifted = (
        document("predict", path, photos / "green" / "00.png")["rows"][0]["top"]  # type: ignore[index]
        for path in (run[0], tmp_path / "a")
    )
    before, after = ({row["label"]: row["probability"] for row in top} for top in (plain, shifted))
    odds = (after["red"] / after["green"]) / (before["red"] / before["green"])
    assert odds == pytest.approx(2, rel=1e-4)

    repeated = document(
        "train", "--config", tmp_path / "a" / "config.json", "--out", tmp_path / "again"
    )
    assert repeated["prior"] == found["prior"]
    refused = train_again(run, "--prior", "red=0.5", code=2)
    assert "lacks" in str(refused["message"])
    refused = train_again(run, "--prior", "red:0.5", code=2)
    assert "expected uniform, or LABEL=NUMBER" in str(refused["message"])


def test_class_weights_reach_the_head(run: tuple[Path, dict[str, object]], tmp_path: Path) -> None:
    found = train_again(
        run, "--head", "lda", "--class-weight", "balanced", "--prior", "uniform",
        "--out", tmp_path / "a",
    )  # fmt: skip
    assert "equally frequent classes" in str(found["protocol"])
    given = ("--class-weight", "red=2,green=0.5", "--out", tmp_path / "b")
    train_again(run, "--head", "ridge", *given)
    options = json.loads((tmp_path / "b" / "config.json").read_text())["head_options"]
    assert options == {"class_weight": {"red": 2.0, "green": 0.5}}
    refused = train_again(run, "--head", "lda", "--class-weight", "pink=2", code=2)
    assert "names 'pink'" in str(refused["message"])
    fly = ("--head", "linear", "--epochs", 1, "--on-the-fly", "--class-weight", "balanced")
    assert train_again(run, *fly, "--out", tmp_path / "c")["head"] == "linear"


def test_a_given_validation_part_calibrates(photos: Path, vit: Path, tmp_path: Path) -> None:
    lines = ["image_path,label,split"]
    for name in COLOURS:
        for i in range(20):
            part = "test" if i < 5 else "val" if i < 9 else "train"
            lines.append(f"{photos}/{name}/{i:02d}.png,{name},{part}")
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    place = ("--encoder", vit, "--store", tmp_path / "store", "--out", tmp_path / "run")
    found = document("train", tmp_path / "table.csv", *place)
    assert found["calibration"]["n"] == 12  # type: ignore[index]


def test_prediction_sets_go_from_training_to_prediction(
    run: tuple[Path, dict[str, object]], photos: Path, tmp_path: Path
) -> None:
    found = run[1]["sets"]
    assert set(found) <= DESCRIBED  # type: ignore[call-overload]
    assert (found["method"], found["coverage"], found["n"]) == ("lac", 0.9, 48)  # type: ignore[index]
    assert document("evaluate", run[0], "--out", tmp_path / "e")["sets"] == found
    assert json.loads((tmp_path / "e" / "evaluation.json").read_text())["sets"] == found
    assert "Prediction sets for 90 %" in (tmp_path / "e" / "report.html").read_text()
    assert "Prediction sets for 90 %" in invoke("evaluate", run[0]).stdout
    for row in document("predict", run[0], photos / "red")["rows"]:  # type: ignore[attr-defined]
        assert set(row) <= DESCRIBED
        if "failure" in row:
            assert row["labels"] is None
        else:
            assert row["label"] == row["labels"][0]

    wide = train_again(run, "--coverage", 0.99, "--sets", "aps", "--out", tmp_path / "wide")
    assert wide["sets"]["mean_size"] == 3  # too few rows for 99 %
    (row,) = document("predict", tmp_path / "wide", photos / "red" / "00.png")["rows"]  # type: ignore[misc]
    assert sorted(row["labels"]) == ["blue", "green", "red"]
    each = train_again(run, "--sets-per-class", "--out", tmp_path / "each")
    assert each["sets"]["per_class"] is True
    config = json.loads((tmp_path / "each" / "classifier" / "config.json").read_text())
    assert len(config["sets"]["thresholds"]) == 3
    none = train_again(run, "--sets", "none", "--out", tmp_path / "none")
    assert none["sets"] is None
    (row,) = document("predict", tmp_path / "none", photos / "red" / "00.png")["rows"]  # type: ignore[misc]
    assert row["labels"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("--sets", "raps"), "expected one of lac, aps"), (("--coverage", 1.5), "coverage is 1.5")],
)
def test_sets_that_do_not_exist_are_refused_before_any_work(
    run: tuple[Path, dict[str, object]], arguments: tuple[object, ...], message: str
) -> None:
    assert message in str(train_again(run, *arguments, code=2)["message"])


def test_knn_has_sets_and_a_head_trained_on_the_fly_has_none(
    run: tuple[Path, dict[str, object]], tmp_path: Path
) -> None:
    found = train_again(run, "--head", "knn", "--out", tmp_path / "knn")
    assert found["sets"]["n"] == 48
    fly = ("--head", "linear", "--epochs", 1, "--on-the-fly")
    assert train_again(run, *fly, "--out", tmp_path / "fly")["sets"] is None


def test_predict_abstains_where_that_is_asked_for(
    run: tuple[Path, dict[str, object]], photos: Path
) -> None:
    plain = document("predict", run[0], photos / "red")
    assert plain["abstained"] == 0
    sure = sorted(row["probability"] for row in plain["rows"] if row["label"])  # type: ignore[attr-defined]
    threshold = sure[5]
    found = document("predict", run[0], photos / "red", "--abstain-below", repr(threshold))
    assert found["abstained"] == 5
    for row in found["rows"]:  # type: ignore[attr-defined]
        assert set(row) <= DESCRIBED
        if "failure" not in row:
            assert row["abstained"] == (row["probability"] < threshold) == (row["label"] is None)
            assert row["top"]
    shown = invoke("predict", run[0], photos / "red", "--abstain-below", repr(threshold))
    assert shown.stdout.count("no label   (") == 5
    assert "5 of 21 images were too unsure for a label." in shown.stderr
    table = invoke("predict", run[0], photos / "red", "--abstain-below", repr(threshold), "--csv")
    rows = list(csv.DictReader(table.stdout.splitlines()))
    assert sum(row["label"] == row["failure"] == "" for row in rows) == 5


def test_what_is_unlike_the_training_images_is_flagged(
    run: tuple[Path, dict[str, object]], photos: Path, tmp_path: Path
) -> None:
    found = run[1]["novelty"]
    assert set(found) <= DESCRIBED  # type: ignore[call-overload]
    assert (found["method"], found["n"]) == ("mahalanobis", 48)  # type: ignore[index]
    assert found["share"] == pytest.approx(1 / 49)  # type: ignore[index]
    assert document("evaluate", run[0], "--out", tmp_path / "e")["novelty"] == found
    assert "Unlike the training images" in (tmp_path / "e" / "report.html").read_text()
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    sources = (tmp_path / "noise.png", photos / "red" / "00.png")
    strange = document("predict", run[0], *sources)
    assert [row["novel"] for row in strange["rows"]] == [True, False]  # type: ignore[attr-defined]
    assert strange["flagged"] == 1
    for row in strange["rows"]:  # type: ignore[attr-defined]
        assert row["novel"] == (row["novelty"] > strange["novelty_threshold"])
    shown = invoke("predict", run[0], *sources)
    assert shown.stdout.splitlines()[0].endswith("unlike the training images")
    assert "1 of 2 images are unlike the training images." in shown.stderr
    table = csv.DictReader(invoke("predict", run[0], *sources, "--csv").stdout.splitlines())
    rows = list(table)
    assert [row["novel"] for row in rows] == ["1", "0"]
    assert json.loads(rows[1]["labels"]) == strange["rows"][1]["labels"]  # type: ignore[index]
    knn = train_again(run, "--novelty", "knn", "--novelty-share", 0.2, "--out", tmp_path / "knn")
    assert knn["novelty"]["method"] == "knn"
    assert 0.1 < knn["novelty"]["share"] <= 0.2
    none = train_again(run, "--novelty", "none", "--out", tmp_path / "none")
    assert none["novelty"] is None
    plain = document("predict", tmp_path / "none", *sources)
    assert (plain["flagged"], plain["novelty_threshold"]) == (0, None)
    assert plain["rows"][0]["novelty"] is None  # type: ignore[index]


@pytest.mark.parametrize("by", ["probability", "energy", "distance"])
def test_a_target_accuracy_is_kept_by_leaving_images_unanswered(
    run: tuple[Path, dict[str, object]], photos: Path, tmp_path: Path, by: str
) -> None:
    target = ("--target-accuracy", 0.6, "--abstain-by", by, "--out", tmp_path / by)
    found = train_again(run, *target)
    rule = found["abstention"]
    assert set(rule) <= DESCRIBED
    assert (rule["by"], rule["target"], rule["n"]) == (by, 0.6, 48)
    assert rule["expected_accuracy"] > 0.6
    assert document("evaluate", tmp_path / by, "--out", tmp_path / "e")["abstention"] == rule
    report = (tmp_path / "e" / "report.html").read_text()
    assert "Target accuracy 60 %" in report
    assert "The ring is the rule" in report
    answers = document("predict", tmp_path / by, photos)
    saved = json.loads((tmp_path / by / "classifier" / "config.json").read_text())["abstention"]
    for row in answers["rows"]:  # type: ignore[attr-defined]
        if by != "energy" and "failure" not in row:
            sure = row["probability"] if by == "probability" else -row["novelty"]
            assert row["abstained"] == (sure < saved["threshold"])
    assert document("predict", tmp_path / by, photos, "--abstain-below", 0)["abstained"] == 0


def test_a_target_that_is_out_of_reach_is_told_and_an_impossible_one_refused(
    run: tuple[Path, dict[str, object]], tmp_path: Path
) -> None:
    found = train_again(run, "--target-accuracy", 0.99, "--out", tmp_path / "a")
    assert found["abstention"] is None
    assert any("No threshold by probability" in note for note in found["notes"])
    linear = ("--head", "linear", "--epochs", 1, "--on-the-fly")
    for arguments, message in (
        (("--target-accuracy", 2), "target accuracy is 2"),
        (("--abstain-by", "energy"), "without a target"),
        (("--target-accuracy", 0.9, "--abstain-by", "odds"), "expected one of probability"),
        (("--target-accuracy", 0.9, *linear), "never has"),
        (
            ("--target-accuracy", 0.9, "--abstain-by", "distance", "--novelty", "none"),
            "needs a measure of novelty",
        ),
        (("--target-accuracy", 0.9, "--abstain-by", "energy", "--head", "knn"), "has no logits"),
        (("--novelty", "energy"), "expected one of mahalanobis, knn"),
        (("--novelty-share", 1), "share is 1"),
    ):
        assert message in str(train_again(run, *arguments, code=2)["message"])


def test_the_curve_of_an_evaluation_says_where_to_abstain(
    run: tuple[Path, dict[str, object]],
) -> None:
    evaluation = json.loads((run[0] / "evaluation.json").read_text())
    for point in evaluation["risk_coverage"]:
        assert set(point) <= DESCRIBED
    *_, before, last = evaluation["risk_coverage"]
    assert (last["coverage"], last["risk"]) == (1.0, 1 - evaluation["accuracy"])
    with (run[0] / "predictions.csv").open() as file:
        sure = [float(row["probability"]) for row in csv.DictReader(file)]
    kept = sum(probability >= before["threshold"] - 1e-6 for probability in sure)
    assert before["coverage"] == pytest.approx(kept / len(sure))
