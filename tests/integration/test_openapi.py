"""The OpenAPI document and the service agree: schemathesis makes requests of it, right and wrong.

With real images from `tests/api_strategies.py` a request that the document allows must be answered
with 200, and one that it does not allow with a 4xx. `DINOPROBE_CASES` is how many cases of each
operation each phase makes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.served import ENVIRONMENT, ROOT, Process, save_builtin

if TYPE_CHECKING:
    from pathlib import Path

CASES = os.environ.get("DINOPROBE_CASES", "5")


def test_the_service_does_what_its_document_says(tmp_path: Path) -> None:
    save_builtin(tmp_path / "c")
    server = Process("-m", "dinoprobe", "serve", str(tmp_path / "c"), "--port", "0", "--json")
    address = f"http://127.0.0.1:{server.port}/openapi.json"
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file"]
    command += [str(ROOT / "tests" / "schemathesis.toml"), "run", address, "--checks", "all"]
    command += ["--max-examples", CASES, "--generation-deterministic", "--continue-on-failure"]
    command += ["--phases", "examples,coverage,fuzzing"]  # no operation leads to another
    hooks = {"SCHEMATHESIS_HOOKS": "tests.api_strategies"}
    try:
        done = subprocess.run(
            command, env=ENVIRONMENT | hooks, cwd=tmp_path, capture_output=True, check=False
        )
        server.end()
    finally:
        server.close()
    assert done.returncode == 0, done.stdout.decode()
    assert b"No issues found" in done.stdout
