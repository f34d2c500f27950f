"""What the README tells people to type works; the built-in encoder stands for gated weights."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.served import Process
from typer.testing import CliRunner

from dinoprobe.cli.app import app
from dinoprobe.store import FeatureStore

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what the README speaks of: photos/, more_photos/, new/, cat.jpg."""
    root = tmp_path_factory.mktemp("readme")
    rng = np.random.default_rng(0)
    for folder in ("photos", "more_photos", "new", "photos/train"):
        for name, level in (("cat", 60), ("dog", 190)):
            (root / folder / name).mkdir(parents=True, exist_ok=True)
            for i in range(12):
                pixels = np.clip(rng.normal(level, 30, (32, 32, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / folder / name / f"{i}.jpg")
    for i in range(3):
        (root / "new" / "cat" / f"{i}.jpg").rename(root / "new" / f"{i}.jpg")
    (root / "photos" / "dog" / "0.jpg").rename(root / "cat.jpg")
    return root


def commands() -> list[str]:
    """The README's `dinoprobe` lines without their comments, but for those that need an account."""
    blocks = re.findall(r"```\n(.*?)```", README, flags=re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`(dinoprobe embed [^`]+)`", README)
    return [
        line
        for line in lines
        if re.match(r"dinoprobe (check|train|evaluate|predict|export|embed) \w*[/.]", line)
    ]


def test_there_are_commands_to_check() -> None:
    verbs = [line.split()[1] for line in commands()]
    assert verbs == [
        "check",
        "train",
        "evaluate",
        "predict",
        "predict",
        *["export"] * 5,
        "embed",
        "embed",
    ]


def test_the_commands_work_in_their_order(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    shutil.rmtree(place / "photos" / "train", ignore_errors=True)
    for line in commands():
        arguments = shlex.split(line.replace("vits16", "builtin"))[1:]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, (line, result.output)
    assert (place / "runs" / "photos-001" / "report.html").exists()
    assert (place / "runs" / "photos-001" / "exports" / "onnx-001" / "gate.json").exists()
    assert (place / "features.parquet").exists()


def test_an_export_is_used_as_the_document_says(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    document = (ROOT / "docs" / "exports.md").read_text(encoding="utf-8")
    run = str(tmp_path / "run")
    arguments = ["train", "photos", "--encoder", "builtin", "--out", run]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    arguments = ["export", run, "--to", "onnx", "--out", str(tmp_path / "e")]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    (code,) = re.findall(r"```python\n(.*?)```", document, flags=re.DOTALL)
    capsys.readouterr()
    exec(code.replace("model.onnx", str(tmp_path / "e" / "model.onnx")), {})
    found = capsys.readouterr().out.split()
    predicted = CliRunner().invoke(app, ["predict", run, "cat.jpg", "--json", "--quiet"])
    (row,) = json.loads(predicted.stdout)["rows"]
    assert found[0] == row["label"]
    assert float(found[1]) == pytest.approx(row["probability"], abs=0.02)


def test_the_python_lines_work(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    for name in ("cat", "dog"):
        target = place / "photos" / "train" / name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(place / "more_photos" / name)
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    scope: dict[str, object] = {}
    exec(code.replace("vits16", "builtin"), scope)
    assert scope["head"].classes_.tolist() == ["cat", "dog"]  # type: ignore[attr-defined]


def test_the_lines_on_more_rows_than_memory_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 40, 3000)
    X = 3 * rng.normal(size=(40, 16))[codes] + rng.normal(size=(3000, 16))
    hashes = [f"{row:064x}" for row in range(3000)]
    scope: dict[str, object] = {
        "fingerprint": "ab" * 16,
        "label_of": dict(zip(hashes, [f"class {code % 4}" for code in codes], strict=True)),
    }
    FeatureStore("features").append("ab" * 16, hashes, X.astype(np.float32), parts=("cls",))
    document = (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", document, flags=re.DOTALL)
    assert len(blocks) == 2
    for code in blocks:
        exec(code, scope)
    truth = np.array([f"class {code % 4}" for code in codes])
    for name in ("lda", "ridge", "logistic", "linear"):
        assert (scope[name].predict(X) == truth).mean() > 0.6, name  # type: ignore[attr-defined]
    index = scope["index"]
    labels = np.array(index.classes)[index.predict_proba(X).argmax(axis=1)]  # type: ignore[attr-defined]
    assert (labels == truth).mean() > 0.9
    assert {path.name for path in tmp_path.iterdir()} == {"features", "index"}


def test_every_file_that_the_documents_link_to_exists() -> None:
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        text = document.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), (document.name, target)


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_the_curl_lines_work(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    shutil.rmtree(place / "photos" / "train", ignore_errors=True)
    train = ["train", "photos", "--encoder", "builtin", "--out", "served", "--quiet"]
    assert CliRunner().invoke(app, train).exit_code == 0
    lines = re.findall(r"^(curl .*?)(?:  #.*)?$", README, flags=re.MULTILINE)
    assert len(lines) == 3
    server = Process("-m", "dinoprobe", "serve", "served", "--port", "0", "--json")
    try:
        for line in lines:
            here = line.strip().replace("127.0.0.1:8000", f"127.0.0.1:{server.port}")
            done = subprocess.run(
                [*shlex.split(here), "-sS", "--fail-with-body"], capture_output=True, check=False
            )
            assert done.returncode == 0, (line, done.stdout, done.stderr)
            assert b"predictions" in done.stdout
    finally:
        server.close()
