"""docs/serving.md: its lines work, and its tables are what the service has."""

from __future__ import annotations

import inspect
import io
import re
import subprocess
from contextlib import redirect_stdout
from typing import TYPE_CHECKING

import pytest
from PIL import Image
from tests.served import ROOT, Process, save_builtin

from dinoprobe.cli.serve import serve
from dinoprobe.server.metrics import Metrics
from dinoprobe.server.settings import MIB, ServerSettings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TEXT = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("c")
    save_builtin(folder / "c")
    found = Process("-m", "dinoprobe", "serve", str(folder / "c"), "--port", "0", "--json")
    yield found
    found.close()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    Image.new("RGB", (40, 30), (200, 30, 20)).save(tmp_path / "cat.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_lines_to_type_work(server: Process, place: Path) -> None:
    lines = [line for block in blocks("") for line in block.splitlines() if "curl" in line]
    assert len(lines) == 4
    for line in lines:
        here = line.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}")
        here = here.replace("curl ", "curl -sS --fail-with-body ")
        done = subprocess.run(["bash", "-c", here], capture_output=True, check=False)
        assert done.returncode == 0, (here, done.stdout, done.stderr)


def test_the_python_lines_work(server: Process, place: Path) -> None:
    (code,) = blocks("python")
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(code.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}"), {})
    assert re.fullmatch(r"\['[\d.]+:\d:\w+', '[\d.]+:\d:\w+'\]\n", printed.getvalue())


def test_the_limits_are_those_of_the_options_and_of_the_settings() -> None:
    rows = dict(re.findall(r"^\| `--([a-z-]+)` \| ([\d.]+) \|", TEXT, flags=re.MULTILINE))
    options = inspect.signature(serve).parameters
    limits = {
        name.replace("_", "-")
        for name, option in options.items()
        if "rich_help_panel='Limits'" in str(option.annotation) or "_LIMITS" in str(option)
    }
    assert set(rows) == limits - {"exit-when-stuck"}
    for name, shown in rows.items():
        assert float(shown) == options[name.replace("-", "_")].default, name
    settings = ServerSettings()
    assert settings.max_body_bytes == options["max_body_mb"].default * MIB
    assert settings.max_pixels == options["max_megapixels"].default * 1e6
    for name in ("max_images", "max_pending", "max_connections", "max_stuck", "decode_timeout_s"):
        assert getattr(settings, name) == options[name.removesuffix("_s")].default


def test_the_metrics_are_those_that_there_are() -> None:
    named = {family.name for family in Metrics().registry.collect()}
    assert set(re.findall(r"`(dinoprobe_\w+)`", TEXT)) == named


def test_a_container_holds_what_the_readme_names() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (packages,) = re.findall(r"^pip install (numpy .*)$", readme, flags=re.MULTILINE)
    (dockerfile,) = blocks("dockerfile")
    assert packages in dockerfile
    options = set(re.findall(r"--[a-z-]+", dockerfile.partition('CMD ["dinoprobe')[2]))
    (unit,) = blocks("ini")
    options |= set(re.findall(r"--[a-z-]+", unit))
    known = {"--" + name.replace("_", "-") for name in inspect.signature(serve).parameters}
    assert options <= known, options - known
