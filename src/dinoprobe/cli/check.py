"""`dinoprobe check`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dinoprobe.cli import options
from dinoprobe.cli.console import Console

if TYPE_CHECKING:
    from dinoprobe.audit import Check, Finding

_EXAMPLES = 3
_HEADINGS = {"high": "Look at these first", "medium": "Then these", "low": "Small things"}


def check(
    data: Annotated[
        str, typer.Argument(help="Folder, table, archive or URI; labels may be missing.")
    ],
    *,
    encoder: options.EncoderName = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the folds and the trial.")] = 0,
    pooling: options.PoolingName = "auto",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    precision: options.Precision = "auto",
    backend: options.Backend = "auto",
    compiled: options.Compiled = False,
    size: options.Size = None,
    resize: options.Resize = None,
    exact: options.Exact = False,
    bands: options.Bands = None,
    normalize: options.Normalize = None,
    rope: options.Rope = "float32",
    device_map: options.DeviceMap = None,
    max_memory: options.MaxMemory = None,
    batch_size: options.BatchSize = None,
    path_column: options.PathColumn = None,
    label_column: options.LabelColumn = None,
    split_column: options.SplitColumn = None,
    group_column: options.GroupColumn = None,
    store: options.Store = None,
    out: options.Out = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    strict: options.Strict = False,
) -> None:
    """What is wrong with these images: copies, labels, leaks, outliers, classes, broken files."""
    console = Console(as_json=as_json, quiet=quiet)
    with console.guarded():
        name, chosen_bands = options.require_encoder(encoder), options.parse_bands(bands)
        from dinoprobe.checking import check_data, write_check
        from dinoprobe.datasets import DataSettings
        from dinoprobe.encoder import EncoderSettings, open_encoder
        from dinoprobe.quantize import int8_for
        from dinoprobe.run import check_out

        check_out(out)
        settings = EncoderSettings(
            name=name,
            pooling=pooling,
            device=device,
            dtype=dtype,
            precision=precision,
            backend=backend,
            compiled=compiled,
            size_px=size,
            resize=resize,
            exact=exact,
            bands=chosen_bands,
            normalize=normalize,
            rope=rope,
            device_map=device_map,
            max_memory=max_memory,
        )
        dataset = DataSettings(
            source=data,
            path_column=path_column,
            label_column=label_column,
            split_column=split_column,
            group_column=group_column,
        ).open()
        transfer = console.transfer()
        int8 = int8_for(
            dataset, settings, say=console.say, progress=console.progress(), transfer=transfer
        )
        checked = check_data(
            dataset,
            open_encoder(settings, say=console.say, transfer=transfer, int8=int8),
            store=store,
            batch_size=batch_size,
            seed=seed,
            progress=console.progress(),
            say=console.say,
        )
        path, document = write_check(checked, out)
        show_check(console, checked.found)
        console.line()
        console.line(f"All {len(checked.found.findings):,} findings: {path / 'check.csv'}")
        console.document(document)
        console.strict(checked.found.failed, asked=strict)


def show_check(console: Console, found: Check) -> None:
    """One screen: what was looked at, and the findings by severity and kind with examples."""
    from dinoprobe.audit import KINDS, SEVERITIES

    console.line(_counts(found))
    for severity in SEVERITIES:
        chosen = [finding for finding in found.findings if finding.severity == severity]
        if chosen:
            console.line()
            console.line(_HEADINGS[severity])
        for kind in KINDS:
            some = [finding for finding in chosen if finding.kind == kind]
            if some:
                _show_kind(console, some, brief=severity == "low")
    console.line()
    if not found.findings:
        console.line("Nothing was found.")
    for sentence in (*_trust(found), *found.notes):
        console.line(sentence)


def _counts(found: Check) -> str:
    classes = f" of {len(found.classes):,} classes" if found.classes else ", none with a label"
    parts = ", ".join(f"{part} {n:,}" for part, n in found.parts.items())
    failed = f"; {found.failed:,} could not be used" if found.failed else ""
    return f"{found.n:,} images{classes}{f' ({parts})' if parts else ''}{failed}"


def _show_kind(console: Console, some: list[Finding], *, brief: bool) -> None:
    from dinoprobe.audit import KINDS

    kind = KINDS[some[0].kind]
    console.line(f"  {len(some):,} {kind.one if len(some) == 1 else kind.many}. {kind.action}")
    shown = some[: 1 if brief else _EXAMPLES]
    for finding in shown:
        what = finding.key or finding.label or f"part {finding.split}"
        if finding.kind == "overlap":
            what = f"{finding.label} and {finding.related}"
        console.line(f"    {what}: {finding.reason}")
    if len(some) > len(shown) and not brief:
        console.line(f"    and {len(some) - len(shown):,} more")


def _trust(found: Check) -> list[str]:
    """How far the lists can be trusted, and what chance alone gives."""
    said = []
    labels, outliers = found.figures.get("labels"), found.figures.get("outliers")
    if labels:
        low, high = (100 * bound for bound in labels["interval"])
        said.append(
            f"Labels were judged by heads that are right on {100 * labels['accuracy']:.1f} % "
            f"(95 % interval {low:.1f} to {high:.1f}) of images they had not seen; "
            "where they are wrong, so are their doubts."
        )
        if trial := labels["trial"]:
            said.append(
                f"Trial: of {trial['planted']:,} labels changed on purpose, {trial['found']:,} "
                f"came among the first {trial['looked_at']:,} of such a list."
            )
    if outliers:
        said.append(
            f"Outliers: {outliers['expected_by_chance']:.1g} would be listed by chance if "
            "distances were log-normal."
        )
    return said
