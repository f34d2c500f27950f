"""The command line. Nothing heavy is imported before a verb runs."""

from __future__ import annotations


def main() -> None:
    """Run the command that the process was started with."""
    from dinoprobe.cli.app import app

    app()


__all__ = ["main"]
