"""`dinoprobe embed --dry-run`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dinoprobe.cli.console import duration

if TYPE_CHECKING:
    from dinoprobe.cli.console import Console
    from dinoprobe.encoder import Encoder
    from dinoprobe.engine import Estimate, Facts

SCHEMA = "dinoprobe.embed-estimate/1"


def show(console: Console, encoder: Encoder | Facts, found: Estimate, *, store: str) -> None:
    """Lines for a person, and the document."""
    from dinoprobe.encoder.placement import gigabytes

    console.line(
        f"{found.images:,} images: {found.known:,} are in the store, {found.known_failures:,} are "
        f"known to fail, {found.left:,} are left ({gigabytes(found.left_bytes)} of files)"
    )
    if found.left:
        workers = f" with {found.workers} workers" if found.workers > 1 else ""
        console.line(
            f"{found.images_per_second:,.1f} images/s{workers}, by {found.sampled} of them in one: "
            f"{duration(found.seconds)}, and {gigabytes(found.store_bytes)} more in the store"
        )
    console.line("Nothing was written.")
    console.document(
        {
            "schema": SCHEMA,
            "images": found.images,
            "known": found.known,
            "known_failures": found.known_failures,
            "left": found.left,
            "left_bytes": found.left_bytes,
            "sampled": found.sampled,
            "workers": found.workers,
            "images_per_second": found.images_per_second,
            "seconds": found.seconds,
            "store_bytes": found.store_bytes,
            "store": store,
            "encoder": encoder.name,
            "backend": encoder.backend,
            "precision": encoder.precision,
            "fingerprint": encoder.fingerprint,
        }
    )
