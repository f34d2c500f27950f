"""`dinoprobe models`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from dinoprobe.cli import options
from dinoprobe.cli.console import Console

if TYPE_CHECKING:
    from dinoprobe.catalog import Checkpoint

SCHEMA = "dinoprobe.models/1"
_HEADER = ("name", "dim", "parameters", "patch", "statistics", "download", "time", "gated", "here")


def models(
    *,
    others: Annotated[
        bool, typer.Option("--all", help="Also DINOv2's checkpoints, and imported files.")
    ] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """List the published checkpoints: size, dimension, speed, access, and which are here."""
    console = Console(as_json=as_json, quiet=quiet)
    with console.guarded():
        from dinoprobe.catalog import CHECKPOINTS

        entries = [_entry(checkpoint) for checkpoint in CHECKPOINTS.values()]
        imported = _imported()
        if not as_json:
            shown = [e for e in entries if others or e["family"] != "dinov2"]
            _show(console, shown, imported if others else [])
        console.document({"schema": SCHEMA, "models": entries, "imported": imported})


def _entry(checkpoint: Checkpoint) -> dict[str, Any]:
    from dinoprobe.encoder.hub import cached

    here = cached(checkpoint.hub_id)
    return {
        "name": checkpoint.name,
        "hub_id": checkpoint.hub_id,
        "family": checkpoint.family,
        "weights": checkpoint.weights,
        "dimension": checkpoint.dimension,
        "token_width": checkpoint.width,
        "parameters": checkpoint.parameters,
        "patch_size": checkpoint.patch_size,
        "statistics": checkpoint.statistics,
        "mean": list(checkpoint.mean),
        "std": list(checkpoint.std),
        "download_bytes": checkpoint.download_bytes,
        "memory_bytes": {
            "float32": checkpoint.download_bytes,
            "bfloat16": checkpoint.download_bytes // 2,
        },
        "relative_time": checkpoint.relative_cost,
        "gated": checkpoint.gated,
        "licence": checkpoint.licence,
        "timm": [f"timm:{name}" for name in checkpoint.timm],
        "meta_file": checkpoint.meta_file,
        "cached": here is not None,
        "commit": here[1] if here else None,
        "folder": str(here[0]) if here else None,
    }


def _imported() -> list[dict[str, Any]]:
    """The files that `dinoprobe pull FILE.pth` has read here."""
    from dinoprobe.encoder.pth import import_folder, imports_folder

    folder = imports_folder()
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return [
        {"name": f"imported:{path.name}", "folder": str(path)}
        for path in found
        if not path.name.startswith(".") and import_folder(path.name) is not None
    ]


def _show(console: Console, entries: list[dict[str, Any]], imported: list[dict[str, Any]]) -> None:
    from dinoprobe.encoder.placement import gigabytes

    rows: list[tuple[str, ...]] = [_HEADER]
    for entry in entries:
        relative = entry["relative_time"]
        rows.append(
            (
                entry["name"],
                f"{entry['dimension']:,}",
                f"{entry['parameters'] / 1e6:,.1f} M",
                str(entry["patch_size"]),
                entry["statistics"],
                gigabytes(entry["download_bytes"]),
                "-" if relative is None else f"{relative:g} x",
                "yes" if entry["gated"] else "no",
                "yes" if entry["cached"] else "-",
            )
        )
    console.table(rows, right=[1, 2, 3, 5, 6])
    for item in imported:
        console.line(f"  {item['name']}  {item['folder']}")
    console.line()
    console.line("dim: numbers in a row of features with the default pooling (ViT: CLS and mean).")
    console.line("time: of one image on a CPU in float32, vits16 = 1. Gated: Meta asks to accept a")
    console.line("licence first (dinoprobe doctor --encoder NAME says how far you are).")
    console.line("dinoprobe pull NAME fetches one; timm:NAME is timm's copy of it, without a gate.")
