"""What runs the folded forward: torch itself, OpenVINO or ONNX Runtime, in a class of precision.

`choose` names what is to be tried, in order; `build` makes one of them for a size of image;
`selftest` compares it with plain transformers in float32 before it is used.
"""

from dinoprobe.encoder.backends.choice import (
    BACKENDS,
    DTYPE_OF_CLASS,
    PRECISIONS,
    Choice,
    candidates,
    has_fast_bfloat16,
)
from dinoprobe.encoder.backends.graphs import Built, build

__all__ = [
    "BACKENDS",
    "DTYPE_OF_CLASS",
    "PRECISIONS",
    "Built",
    "Choice",
    "build",
    "candidates",
    "has_fast_bfloat16",
]
