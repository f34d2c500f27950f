"""`dinoprobe pull`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dinoprobe.cli import options
from dinoprobe.cli.console import Console

if TYPE_CHECKING:
    from dinoprobe.encoder.reference import Address

SCHEMA = "dinoprobe.pull/1"


def pull(
    name: Annotated[
        str, typer.Argument(help="A short name, a hub id (@revision), timm:NAME, or a .pth file.")
    ],
    *,
    as_name: Annotated[
        str | None,
        typer.Option(
            "--as", metavar="NAME", help="Of a .pth file: which checkpoint it is, if not clear."
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check the digests of what is in the cache, too.")
    ] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Fetch weights into the Hugging Face cache, going on after a break; or import a .pth file."""
    console = Console(as_json=as_json, quiet=quiet)
    with console.guarded():
        from dinoprobe.encoder.reference import PICKLES, resolve

        path = Path(name).expanduser()
        if path.suffix.lower() in PICKLES and path.is_file():
            document = _import(console, path, as_name)
        else:
            address = resolve(name)
            _refuse_as(as_name, name)
            document = _fetch(console, name, address, verify=verify)
        console.line(f"Folder: {document['folder']}")
        console.line(f"Use: --encoder {shlex.quote(document['encoder'])}")
        console.document({"schema": SCHEMA, **document})


def _refuse_as(as_name: str | None, name: str) -> None:
    from dinoprobe.errors import ConfigurationError

    if as_name is not None:
        msg = f"--as says which checkpoint a .pth file is, and {name} is none. Leave it out."
        raise ConfigurationError(msg)


def _import(console: Console, path: Path, as_name: str | None) -> dict[str, Any]:
    """Meta's file, read once and safely."""
    from dinoprobe.encoder.pth import import_pth

    imported = import_pth(path, as_name=as_name, say=console.say)
    for note in imported.notes:
        console.say(note)
    what = imported.checkpoint or "none of the published checkpoints, by its shapes a DINOv3"
    done = "was imported before" if imported.already else "imported"
    console.line(f"{path}: {what}; {done}")
    return {
        "encoder": f"imported:{imported.slug}",
        "folder": str(imported.folder),
        "checkpoint": imported.checkpoint,
        "commit": None,
        "total_bytes": None,
        "fetched_bytes": None,
        "notes": list(imported.notes),
    }


def _present(name: str, folder: str, commit: str | None) -> dict[str, Any]:
    return {
        "encoder": name,
        "folder": folder,
        "checkpoint": None,
        "commit": commit,
        "total_bytes": None,
        "fetched_bytes": 0,
        "notes": [],
    }


def _fetch(console: Console, name: str, address: Address, *, verify: bool) -> dict[str, Any]:
    """A repository of the hub; what lies on this machine needs nothing."""
    from dinoprobe.catalog import by_hub_id
    from dinoprobe.encoder import hub
    from dinoprobe.encoder.hub import client

    if address.hub_id is None:
        console.line(f"{name}: on this machine already; nothing is fetched.")
        return _present(name, str(address.path), None)
    here = hub.cached(address.hub_id, address.revision) if client.is_offline() else None
    if here is not None:
        console.line(f"{name}: whole in the cache; HF_HUB_OFFLINE keeps the hub out.")
        return _present(name, str(here[0]), here[1])
    console.say(f"{address.hub_id}: asking the hub for access")
    plan = hub.preflight(address.hub_id, address.revision)
    console.line(
        f"{plan.hub_id} @ {plan.commit[:12]}: {plan.total_bytes / 1e6:,.1f} MB in "
        f"{len(plan.files)} files, {plan.missing_bytes / 1e6:,.1f} MB to fetch, "
        f"{plan.free_bytes / 1e9:,.1f} GB free at {plan.cache}"
    )
    folder, commit = hub.pull(
        address.hub_id,
        address.revision,
        progress=console.transfer(),
        say=console.say,
        verify=verify,
    )
    known = by_hub_id(address.hub_id)
    return {
        "encoder": name,
        "folder": str(folder),
        "checkpoint": known.name if known else None,
        "commit": commit,
        "total_bytes": plan.total_bytes,
        "fetched_bytes": plan.missing_bytes,
        "notes": [],
    }
