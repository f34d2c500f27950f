"""The preprocessing that belongs to a checkpoint, corrected where its file is known to be wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dinoprobe.catalog import CHECKPOINTS, IMAGENET_MEAN, STATISTICS
from dinoprobe.encoder.load import Source, read_json
from dinoprobe.errors import ConfigurationError, EncoderError, FormatError

if TYPE_CHECKING:
    from dinoprobe.encoder.reference import EncoderReference
    from dinoprobe.preprocess import Preprocessing

# transformers' BitImageProcessor as facebook/dinov2-* publish it: shortest edge 256, centre 224.
_DINOV2 = {
    "size": {"shortest_edge": 256},
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "resample": 3,
}


def default_preprocessing(
    reference: EncoderReference, source: Source, *, normalize: str | None = None
) -> tuple[Preprocessing, tuple[str, ...]]:
    """The checkpoint's own preprocessing, and sentences on what was corrected or assumed.

    Satellite checkpoints get the statistics that they were trained with, whatever their file says;
    `normalize` (a name of `catalog.STATISTICS`) goes before both. Raises ConfigurationError for an
    unknown name, EncoderError where nothing says what images the model expects.
    """
    from dinoprobe.preprocess import Preprocessing

    config, notes = _config(reference, source)
    own = Preprocessing.from_config(config, patch_size=patch_size(source))
    satellite = reference.is_satellite or source.is_satellite
    if normalize is not None:
        own = _with_statistics(own, normalize)
        if satellite and normalize != "sat493m":
            notes.append(
                f"{reference.name}: normalised with {normalize}'s statistics, as asked; it was "
                "trained with those of SAT-493M."
            )
    elif satellite:
        own = _with_statistics(own, "sat493m")
        notes.append(
            f"{reference.name}: normalised with the SAT-493M statistics that it was trained with, "
            "whatever its file says (--normalize imagenet for the others)."
        )
    elif _may_be_satellite(reference, source, own):
        notes.append(
            f"{reference.name}: normalised with ImageNet's statistics; if these are satellite "
            "weights, give --normalize sat493m."
        )
    return own, (*source.notes, *notes)


def _config(reference: EncoderReference, source: Source) -> tuple[dict[str, Any], list[str]]:
    """preprocessor_config.json, or what stands in for it."""
    path = reference.folder / "preprocessor_config.json"
    if path.exists():
        return read_json(path), []
    if source.format != "transformers":
        return {}, [
            f"{reference.name}: preprocessed as DINOv3's own processor does (224, bilinear)."
        ]
    if source.family.is_dinov3:
        return {}, [f"{reference.name}: no preprocessor_config.json; DINOv3's defaults."]
    if source.family.model_type.startswith("dinov2"):
        return dict(_DINOV2), [f"{reference.name}: no preprocessor_config.json; DINOv2's defaults."]
    msg = (
        f"{reference.folder}: no preprocessor_config.json, so nothing says what images the model "
        "expects. Put the checkpoint's own beside its config.json."
    )
    raise EncoderError(msg)


def _may_be_satellite(reference: EncoderReference, source: Source, own: Preprocessing) -> bool:
    """Satellite weights have the shapes of others, and their files carry ImageNet's statistics:
    where no name tells, both are possible.
    """
    twins = {entry.width for entry in CHECKPOINTS.values() if entry.weights == "sat493m"}
    return (
        source.family.is_dinov3
        and reference.checkpoint is None
        and source.config.get("hidden_size") in twins
        and own.mean == IMAGENET_MEAN
    )


def _with_statistics(own: Preprocessing, name: str) -> Preprocessing:
    if name not in STATISTICS:
        msg = f"normalize '{name}' is not known. Use {' or '.join(STATISTICS)}."
        raise ConfigurationError(msg)
    mean, std = STATISTICS[name]
    return replace(own, mean=mean, std=std)


def patch_size(source: Source) -> int:
    """Pixels that one patch covers on a side: sizes are multiples of it. 32 for ConvNeXt."""
    size = 32 if source.family.is_convnext else source.config.get("patch_size", 16)
    size = size[0] if isinstance(size, list) and size else size
    if not isinstance(size, int) or size < 1:
        msg = f"{source.place}/config.json: patch_size is {size!r}, expected a whole number."
        raise FormatError(msg)
    return size
