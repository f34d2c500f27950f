"""The resize of `preprocess/` in ONNX, before the traced graph: it takes RGB pixels of any size.

ONNX's antialiased `Resize` (opset 18) renormalises the weights at an edge only with
`exclude_outside`; without it, results are up to 19 grey levels off there. With it ONNX Runtime is
within 1 level of the package's own 8-bit resize where an image is made smaller, and within 2 where
it is enlarged (docs/log.md). An image that has the final size already passes unchanged, so one file
serves programs that resize by themselves too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dinoprobe.preprocess.resize import MAX_COVER, mean_colour

if TYPE_CHECKING:
    from dinoprobe.preprocess import Preprocessing

OPSET = 18
IR_VERSION = 9
"""Lower than what onnx writes today, so that an older ONNX Runtime does not refuse the file."""

_FLOAT, _UINT8, _INT64, _BOOL, _DOUBLE = 1, 2, 7, 9, 11  # onnx.TensorProto
_RESIZE = {"bilinear": 'mode = "linear"', "bicubic": 'mode = "cubic", cubic_coeff_a = -0.5'}
_HALF = 'coordinate_transformation_mode = "half_pixel", antialias = 1, exclude_outside = 1'
_SHAPE = "sides = Shape <start = 2, end = 4> (images)"


def prepare_model(preprocessing: Preprocessing) -> Any:
    """A model from `images` uint8 `(n, 3, any, any)` to `prepared` `(n, 3, height, width)`: uint8,
    or float32 in the exact mode.
    """
    import onnx

    height, width = preprocessing.size
    steps = {"squash": _squash, "crop": _crop, "pad": _pad}[preprocessing.resize](preprocessing)
    kind = "float" if preprocessing.arithmetic == "exact" else "uint8"
    text = f"""<ir_version: {IR_VERSION}, opset_import: ["": {OPSET}]>
    prepare (uint8[n, 3, height, width] images) => ({kind}[n, 3, {height}, {width}] prepared)
    {{ {" ".join(steps)} }}"""
    return onnx.parser.parse_model(text)


def _ints(name: str, *values: int) -> str:
    return f"{name} = Constant <value_ints = [{', '.join(map(str, values))}]> ()"


def _resize(source: str, sizes: str, target: str, preprocessing: Preprocessing) -> list[str]:
    """The steps from `source` to `target`, in the preprocessing's arithmetic."""
    how = f"<{_RESIZE[preprocessing.interpolation]}, {_HALF}, axes = [2, 3]>"
    if preprocessing.arithmetic == "uint8":
        return [f"{target} = Resize {how} ({source}, , , {sizes})"]
    return [
        f"factor = Constant <value_float = {preprocessing.rescale!r}> ()",
        f"whole = Cast <to = {_FLOAT}> ({source})",
        "scaled = Mul (whole, factor)",
        f"{target} = Resize {how} (scaled, , , {sizes})",
    ]


def _squash(preprocessing: Preprocessing) -> list[str]:
    return [
        _ints("size", *preprocessing.size),
        *_resize("images", "size", "prepared", preprocessing),
    ]


def _covering(sides: str, name: str) -> list[str]:
    """The sides after the shortest edge was resized: `resized` of `preprocess.resize`."""
    return [
        f"{name}_swapped = Gather ({sides}, swap)",
        f"{name}_product = Mul (wanted_swapped, {sides})",
        f"{name}_scaled = Div ({name}_product, {name}_swapped)",
        f"{name} = Max (wanted, {name}_scaled)",
    ]


def _centre(whole: str, kept: str, source: str, target: str) -> list[str]:
    """The middle of `source`: `kept` of its sides `whole`."""
    return [
        f"{target}_left = Sub ({whole}, {kept})",
        f"{target}_start = Div ({target}_left, two)",
        f"{target}_end = Add ({target}_start, {kept})",
        f"{target} = Slice ({source}, {target}_start, {target}_end, axes)",
    ]


def _crop(preprocessing: Preprocessing) -> list[str]:
    """Shortest edge, then the centre; what a long image has beyond is cut away before.

    Of the final size already, an image is taken for prepared, whatever the shortest edge.
    """
    edge = preprocessing.shortest_edge
    wanted = (edge, edge) if edge is not None else preprocessing.size
    limit = MAX_COVER * max(*preprocessing.size, edge or 0)
    return [
        _SHAPE,
        _ints("usual", *wanted),
        _ints("size", *preprocessing.size),
        _ints("swap", 1, 0),
        "same_sides = Equal (sides, size)",
        f"same_numbers = Cast <to = {_INT64}> (same_sides)",
        "same_number = ReduceMin <keepdims = 1> (same_numbers)",
        f"is_prepared = Cast <to = {_BOOL}> (same_number)",
        "wanted = Where (is_prepared, size, usual)",
        "wanted_swapped = Gather (wanted, swap)",
        _ints("axes", 2, 3),
        _ints("limit", limit),
        _ints("one", 1),
        _ints("two", 2),
        *_covering("sides", "all"),
        "limited = Mul (sides, limit)",
        "share = Div (limited, all)",
        "least = Max (one, share)",
        "is_long = Greater (all, limit)",
        "kept = Where (is_long, least, sides)",
        *_centre("sides", "kept", "images", "cut"),
        *_covering("kept", "covering"),
        *_resize("cut", "covering", "covered", preprocessing),
        *_centre("covering", "size", "covered", "prepared"),
    ]


def _pad(preprocessing: Preprocessing) -> list[str]:
    """Longest edge, then the mean colour around it."""
    colour = mean_colour(preprocessing)
    is_exact = preprocessing.arithmetic == "exact"
    kind, number = (_FLOAT, "float") if is_exact else (_UINT8, "uint8")
    values = ", ".join(repr(float(value)) if is_exact else str(int(value)) for value in colour)
    return [
        _SHAPE,
        _ints("size", *preprocessing.size),
        _ints("one", 1),
        _ints("two", 2),
        _ints("axes", 2, 3),
        f"double_size = Cast <to = {_DOUBLE}> (size)",
        f"double_sides = Cast <to = {_DOUBLE}> (sides)",
        "ratios = Div (double_size, double_sides)",
        "scale = ReduceMin <keepdims = 1> (ratios)",
        "exact_sides = Mul (double_sides, scale)",
        "rounded = Round (exact_sides)",
        f"whole_sides = Cast <to = {_INT64}> (rounded)",
        "least = Max (one, whole_sides)",
        "fitted = Min (size, least)",
        *_resize("images", "fitted", "small", preprocessing),
        "room = Sub (size, fitted)",
        "before = Div (room, two)",
        "after = Sub (room, before)",
        "around = Concat <axis = 0> (before, after)",
        f"nothing = Constant <value = {number}[1] {{0}}> ()",
        "nothing_scalar = Squeeze (nothing)",
        "framed = Pad (small, around, nothing_scalar, axes)",
        f"ones = ConstantOfShape <value = {number}[1] {{1}}> (fitted)",
        _ints("first", 0, 1),
        "ones_whole = Unsqueeze (ones, first)",
        "inside_number = Pad (ones_whole, around, nothing_scalar, axes)",
        f"inside = Cast <to = {_BOOL}> (inside_number)",
        f"colour_flat = Constant <value = {number}[3] {{{values}}}> ()",
        _ints("colour_shape", 1, 3, 1, 1),
        "colour = Reshape (colour_flat, colour_shape)",
        f"colour_typed = Cast <to = {kind}> (colour)",
        "prepared = Where (inside, framed, colour_typed)",
    ]
