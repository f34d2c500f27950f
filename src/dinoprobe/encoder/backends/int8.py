"""Quantising OpenVINO's graph by NNCF: eight-bit products, their ranges taken from images.

Smooth quantisation and bias correction for transformers, as NNCF does them; nothing is trained.
"""

from __future__ import annotations

import hashlib
import io
import logging
from contextlib import redirect_stdout
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from dinoprobe.encoder.backends.choice import Choice
from dinoprobe.encoder.backends.graphs import key, made_by, stored
from dinoprobe.encoder.backends.openvino import FILE, core, load, without_telemetry, write
from dinoprobe.errors import MissingExtraError
from dinoprobe.files import sha256_file, user_cache

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt
    import torch

    from dinoprobe.encoder.backends.graphs import Plan


def int8_folder(plan: Plan, purpose: str) -> Path:
    """Where the quantised graph of this plan for this purpose (a dataset) is kept."""
    from importlib import metadata

    require_nncf()
    maker = f"nncf {metadata.version('nncf')} {made_by(Choice('openvino', 'int8'))} {purpose}"
    return user_cache() / "graphs" / f"int8-{key(plan, maker)}"


def require_nncf() -> None:
    """Raise MissingExtraError without NNCF and OpenVINO."""
    if find_spec("nncf") is None or find_spec("openvino") is None:
        raise MissingExtraError("calibrating int8", "int8")


def quantize(plan: Plan, images: torch.Tensor, folder: Path) -> None:
    """Write the quantised graph into `folder`, its ranges taken from `images`
    `(n, 3, height, width)` as `prepare` gives them.
    """
    source = stored(plan, made_by(Choice("openvino", "float32")), write)
    graph = core().read_model(source / FILE)
    samples = images.contiguous().numpy()
    quantised = quantized(graph, samples, is_convnext=plan.model_type == "dinov3_convnext")
    load().save_model(quantised, folder / FILE, compress_to_fp16=False)


def quantized(
    graph: Any,
    images: npt.NDArray[Any],
    *,
    is_convnext: bool,
    left: Sequence[str] = (),
) -> Any:
    """OpenVINO's graph in int8, its ranges taken from `images` `(n, 3, height, width)`; operations
    whose names match a pattern of `left` stay as they are.
    """
    load()
    with without_telemetry():
        import nncf
    nncf.set_log_level(logging.ERROR)
    options: dict[str, Any] = {}
    if not is_convnext:
        options["model_type"] = nncf.ModelType.TRANSFORMER
    if left:
        options["ignored_scope"] = nncf.IgnoredScope(patterns=list(left), validate=False)
    with redirect_stdout(io.StringIO()):  # its progress bars
        return nncf.quantize(
            graph,
            nncf.Dataset([images[row : row + 1] for row in range(len(images))]),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(images),
            **options,
        )


def graph_digest(folder: Path) -> str:
    """SHA-256 in hex over those of the graph and of its weights."""
    files = (folder / FILE, (folder / FILE).with_suffix(".bin"))
    return hashlib.sha256("".join(map(sha256_file, files)).encode()).hexdigest()
