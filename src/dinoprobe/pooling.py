"""What a pooling is made of: parts in one order, each as wide as a token.

    cls            cls
    mean           mean
    cls+mean       cls, mean
    blocks4        cls_4, cls_3, cls_2, cls
    blocks4+mean   cls_4, cls_3, cls_2, cls, mean

`cls` is the last block's CLS and `mean` the mean of its patch tokens, both after the final norm;
`cls_k` is the CLS of the k-th block from the end after that same norm, as
`get_intermediate_layers(n, norm=True)` of facebookresearch/dinov2 and dinov3 gives it: dinov2's
linear evaluation tries blocks {1, 4} with and without the mean. The parts of a smaller pooling
stand side by side in a larger one, so one pass gives the features of all of them, as columns.
"""

from __future__ import annotations

import hashlib
import re

from dinoprobe.errors import ConfigurationError

CLS, MEAN = "cls", "mean"
_PARTS = {"cls": (CLS,), "mean": (MEAN,), "cls+mean": (CLS, MEAN)}
_BLOCKS = re.compile(r"blocks(\d{1,3})(\+mean)?")
POOLINGS = f"{', '.join(_PARTS)}, blocksN or blocksN+mean (CLS of the last N blocks, such as 4)"


def parts_of(pooling: str) -> tuple[str, ...]:
    """The parts, in the order of the columns. Raises ConfigurationError for an unknown name."""
    if pooling in _PARTS:
        return _PARTS[pooling]
    found = _BLOCKS.fullmatch(pooling)
    if found is None:
        raise ConfigurationError(f"pooling '{pooling}' is not known. Use {POOLINGS}.")
    blocks = int(found[1])
    if blocks < 2 or pooling != _name(blocks, has_mean=bool(found[2])):
        msg = f"pooling '{pooling}': expected two blocks or more. Use cls for one, or {POOLINGS}."
        raise ConfigurationError(msg)
    earlier = tuple(f"{CLS}_{number}" for number in range(blocks, 1, -1))
    return (*earlier, CLS, MEAN) if found[2] else (*earlier, CLS)


def blocks_of(pooling: str) -> int:
    """How many blocks, counted from the last, give their CLS; 0 for the mean alone."""
    return len([part for part in parts_of(pooling) if part != MEAN])


def sub_poolings(pooling: str) -> tuple[str, ...]:
    """All poolings whose parts are in this one, itself included, the fewest parts first.

    Of as many parts, `mean` follows `cls`, and more blocks follow fewer.
    """
    blocks, has_mean = blocks_of(pooling), MEAN in parts_of(pooling)
    names = [_name(count, has_mean=False) for count in range(1, blocks + 1)]
    if has_mean:
        names += [_name(count, has_mean=True) for count in range(blocks + 1)]
    return tuple(sorted(names, key=lambda name: (len(parts_of(name)), name == MEAN)))


def columns_of(whole: str, pooling: str, dimension: int) -> slice:
    """Where the features of `pooling` stand among the `dimension` columns of `whole`.

    Raises ConfigurationError where `whole` has not all of its parts.
    """
    there, wanted = parts_of(whole), parts_of(pooling)
    if not set(wanted) <= set(there):
        names = ", ".join(sub_poolings(whole))
        msg = f"pooling '{pooling}' is not within '{whole}', which has {names}. Use one of these."
        raise ConfigurationError(msg)
    width, first = dimension // len(there), there.index(wanted[0])
    return slice(first * width, (first + len(wanted)) * width)


def pooled_fingerprint(base: str, pooling: str) -> str:
    """32 hex digits for features of this pooling, from the fingerprint of all but the pooling."""
    return hashlib.sha256(f"{base} {pooling}".encode()).hexdigest()[:32]


def _name(blocks: int, *, has_mean: bool) -> str:
    name = {0: "", 1: CLS}.get(blocks, f"blocks{blocks}")
    return "+".join(filter(None, (name, MEAN if has_mean else "")))
