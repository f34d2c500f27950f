"""The command line. Nothing heavy is imported before a verb runs."""

from __future__ import annotations


def main() -> None:
    """Run the command that the process was started with."""
    import os
    import sys

    from dinoprobe.cli.app import app

    if sys.stdout is None:  # closed by the caller
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal without UTF-8 gets escapes, not an error
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except SystemExit as ended:
        if "--json" in sys.argv and ended.code not in {0, None}:
            _leave_a_document(ended.code)
        raise


def _leave_a_document(code: object) -> None:
    """Wrong use is found before a verb runs: it too ends with a document on stdout."""
    import json

    from dinoprobe.cli.console import Console

    if not Console.spoken:
        values = {"schema": "dinoprobe.error/1", "error": "UsageError", "exit_code": code}
        print(json.dumps({**values, "message": "wrong use; stderr says more"}))  # noqa: T201


__all__ = ["main"]
