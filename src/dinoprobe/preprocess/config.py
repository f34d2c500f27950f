"""Reads preprocessor_config.json as transformers writes it.

Strict: a key that would change the numbers and that this package does not reproduce is refused,
since a preprocessing that is a little wrong costs accuracy without a word.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from dinoprobe.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Mapping

_RESAMPLE = {2: "bilinear", 3: "bicubic", "bilinear": "bilinear", "bicubic": "bicubic"}
_RESAMPLE_NAMES = {0: "nearest", 1: "lanczos", 4: "box", 5: "hamming"}  # PIL.Image.Resampling

# They say which class reads the file or how it returns tensors, never what the numbers are.
_WITHOUT_EFFECT = {
    "image_processor_type", "feature_extractor_type", "processor_class", "data_format",
    "input_data_format", "default_to_square", "device", "disable_grouping", "do_convert_rgb",
    "return_tensors", "image_seq_length", "valid_kwargs", "_processor_class", "auto_map",
}  # fmt: skip
_READ = {
    "size", "crop_size", "do_resize", "do_center_crop", "do_rescale", "do_normalize", "resample",
    "rescale_factor", "image_mean", "image_std",
}  # fmt: skip


def read_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `Preprocessing`. Raises FormatError."""
    _check_keys(config)
    values: dict[str, Any] = {**_geometry(config), "interpolation": _interpolation(config)}
    if config.get("do_rescale", True) is False:
        values["rescale"] = 1.0
    elif config.get("rescale_factor") is not None:
        values["rescale"] = config["rescale_factor"]
    if config.get("do_normalize", True) is False:
        values |= {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    else:
        values |= _statistics(config)
    return values


def _refuse(found: str, expected: str) -> NoReturn:
    raise FormatError(
        f"preprocessor_config.json: {found}; expected {expected}. Correct the file, or take the "
        "checkpoint's own from its repository."
    )


def _check_keys(config: Mapping[str, Any]) -> None:
    if not hasattr(config, "keys"):
        _refuse(f"a {type(config).__name__}", "a JSON object")
    unknown = sorted(
        f"{key}={value!r}"
        for key, value in config.items()
        if key not in _READ | _WITHOUT_EFFECT and value not in (None, False)
    )
    if unknown:
        _refuse(f"{', '.join(unknown)} can not be reproduced", f"only {', '.join(sorted(_READ))}")


def _geometry(config: Mapping[str, Any]) -> dict[str, Any]:
    if config.get("do_resize", True) is False:
        _refuse("do_resize=False", "true, because a batch holds images of one size")
    size = config.get("size")
    size = {"height": 224, "width": 224} if size is None else size
    crop = _pair("crop_size", config.get("crop_size")) if config.get("do_center_crop") else None
    if isinstance(size, dict) and set(_present(size)) == {"shortest_edge"}:
        return _cropped(size["shortest_edge"], crop)
    squashed = _pair("size", size)
    if crop not in (None, squashed):
        _refuse(
            f"do_center_crop to {crop} after a resize to {squashed}",
            "a centre crop only after a shortest_edge resize",
        )
    return {"size": squashed}


def _cropped(edge: Any, crop: tuple[int, int] | None) -> dict[str, Any]:
    if crop is None:
        _refuse(
            f"size shortest_edge={edge!r} without do_center_crop",
            "do_center_crop with a crop_size, because a batch holds images of one size",
        )
    same = edge == crop[0] == crop[1]
    return {"size": crop, "resize": "crop", "shortest_edge": None if same else edge}


def _pair(name: str, value: Any) -> tuple[int, int]:
    if isinstance(value, int) and not isinstance(value, bool):
        return (value, value)
    if isinstance(value, dict) and set(_present(value)) == {"height", "width"}:
        return (value["height"], value["width"])
    return _refuse(f"{name}={value!r}", "a number, height and width, or shortest_edge with a crop")


def _present(size: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in size.items() if value is not None}


def _interpolation(config: Mapping[str, Any]) -> str:
    code = config.get("resample")
    code = 2 if code is None else code
    if isinstance(code, bool) or not isinstance(code, int | str) or code not in _RESAMPLE:
        name = f" ({_RESAMPLE_NAMES[code]})" if code in list(_RESAMPLE_NAMES) else ""
        _refuse(f"resample={code!r}{name}", "2 (bilinear) or 3 (bicubic)")
    return _RESAMPLE[code]


def _statistics(config: Mapping[str, Any]) -> dict[str, tuple[float, ...]]:
    found = {"mean": config.get("image_mean"), "std": config.get("image_std")}
    return {
        name: _numbers(f"image_{name}", value) for name, value in found.items() if value is not None
    }


def _numbers(name: str, value: Any) -> tuple[float, ...]:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return (float(value),) * 3
    if isinstance(value, list | tuple) and len(value) == 3:
        return tuple(value)
    return _refuse(f"{name}={value!r}", "three numbers")
