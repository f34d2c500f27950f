"""Which backend and which class of precision, from what was asked for and what is here.

A class is a promise about features against plain float32: `exact` 1 - cosine <= 1e-5 with the
resize in it, `bf16` <= 1e-4 in the mean, `int8` by the head's agreement. Small models (the built-in
one, those of tests) stay with torch in float32: the others would save milliseconds and cost
seconds.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from dinoprobe.errors import ConfigurationError, MissingExtraError
from dinoprobe.processor import has_fast_bfloat16

if TYPE_CHECKING:
    import torch

BACKENDS = ("auto", "torch", "openvino", "onnxruntime")
PRECISIONS = ("auto", "exact", "bf16", "int8")
DTYPE_OF_CLASS = {"exact": "float32", "bf16": "bfloat16", "int8": "int8"}
SMALL_PARAMETERS = 10_000_000
_EXTRA = {"openvino": ("the OpenVINO backend", "cpu"), "onnxruntime": ("ONNX Runtime", "onnx")}


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to run the model. `precision` is float32, bfloat16, float16 or int8; `compiled` has
    torch compile each layer.
    """

    backend: str
    precision: str
    compiled: bool = False


def check_options(backend: str, precision: str, dtype: str) -> None:
    """Raise ConfigurationError for names that are not known or contradict each other."""
    if backend not in BACKENDS:
        msg = f"backend '{backend}' is not known. Use one of {', '.join(BACKENDS)}."
        raise ConfigurationError(msg)
    if precision not in PRECISIONS:
        msg = f"precision '{precision}' is not known. Use one of {', '.join(PRECISIONS)}."
        raise ConfigurationError(msg)
    if precision != "auto" and dtype not in {"auto", DTYPE_OF_CLASS[precision]}:
        msg = (
            f"--precision {precision} and --dtype {dtype} contradict each other. Leave --dtype out."
        )
        raise ConfigurationError(msg)


def candidates(
    backend: str,
    precision: str,
    dtype: str,
    *,
    parameters: int,
    is_convnext: bool = False,
    on_cpu: bool = True,
    has_int8: bool = False,
) -> list[Choice]:
    """What to try for a folded model on this CPU, or on a GPU, the best first.

    A ConvNeXt is faster in torch: its depthwise convolutions read channels last, OpenVINO's do not.

    With `dtype` the precision is that, and nothing else. Raises ConfigurationError for what no
    backend can do, MissingExtraError for a backend that is not installed.
    """
    check_options(backend, precision, dtype)
    if not on_cpu:
        return _on_gpu(backend, precision, dtype)
    precisions = _precisions(precision, dtype, parameters)
    only = "openvino" if precisions == ["int8"] and backend == "auto" else backend
    backends = _backends(only, parameters)
    if is_convnext and backend == "auto":
        backends = sorted(backends, key="torch".__ne__)
    if precisions == ["int8"] and not has_int8:
        msg = (
            "int8 is calibrated on images of yours, and none were given here. Use it with "
            "dinoprobe train or embed, or a classifier that was trained so."
        )
        raise ConfigurationError(msg)
    found = [Choice(where, what) for what in precisions for where in backends if _can(where, what)]
    if found:
        return found
    what = precision if precision != "auto" else dtype
    msg = f"backend '{backend}' has no precision '{what}' here. Leave --backend out."
    raise ConfigurationError(msg)


def refuse_unfolded(backend: str, precision: str, device: torch.device) -> None:
    """Raise ConfigurationError where transformers' own forward runs and something else was asked
    for.
    """
    if backend in {"auto", "torch"} and precision != "int8":
        return
    asked = f"backend {backend}" if backend not in {"auto", "torch"} else "precision int8"
    msg = (
        f"{asked} runs DINOv3 models of up to a billion parameters on a CPU, and not this one on "
        f"{device}. Leave it out."
    )
    raise ConfigurationError(msg)


def _on_gpu(backend: str, precision: str, dtype: str) -> list[Choice]:
    import torch

    if backend not in {"auto", "torch"} or precision == "int8":
        msg = "other backends than torch, and int8, run on a CPU. Add --device cpu, or leave them."
        raise ConfigurationError(msg)
    if precision != "auto" or dtype != "auto":
        return [Choice("torch", DTYPE_OF_CLASS.get(precision, dtype))]
    half = ["bfloat16"] if torch.cuda.is_bf16_supported() else []
    return [Choice("torch", name) for name in (*half, "float32")]


def _backends(backend: str, parameters: int) -> list[str]:
    if backend in _EXTRA and find_spec(backend) is None:
        raise MissingExtraError(*_EXTRA[backend])
    if backend != "auto":
        return [backend]
    is_x86 = platform.machine().lower() in {"x86_64", "amd64"}
    if is_x86 and parameters >= SMALL_PARAMETERS and find_spec("openvino") is not None:
        return ["openvino", "torch"]
    return ["torch"]


def _precisions(precision: str, dtype: str, parameters: int) -> list[str]:
    if precision != "auto":
        return [DTYPE_OF_CLASS[precision]]
    if dtype != "auto":
        return [dtype]
    fast = parameters >= SMALL_PARAMETERS and has_fast_bfloat16()
    return ["bfloat16", "float32"] if fast else ["float32"]


def _can(backend: str, precision: str) -> bool:
    """ONNX Runtime has no bfloat16 on a CPU, and OpenVINO none where the CPU lacks it."""
    if backend == "onnxruntime":
        return precision == "float32"
    if backend == "openvino":
        fits = {"float32": True, "bfloat16": has_fast_bfloat16(), "int8": True}
        return fits.get(precision, False)
    return precision in {"float32", "bfloat16"}
