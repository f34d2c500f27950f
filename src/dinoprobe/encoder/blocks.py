"""The CLS of each block of a transformers ViT, before the final norm, in one forward pass.

transformers' own `output_hidden_states` leaves hooks on the model that can not be pickled, and
keeps all tokens of all blocks: 2 GB for a batch of 32 through 40 blocks that are 1,536 wide.
"""

from __future__ import annotations

from contextlib import contextmanager
from threading import Lock, local
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

_current, _lock = local(), Lock()


@contextmanager
def kept_cls(model: torch.nn.Module) -> Iterator[list[torch.Tensor]]:
    """A list that gets one `(n, width)` for each block that this thread runs, in their order."""
    _watch(model)
    _current.kept = []
    try:
        yield _current.kept
    finally:
        del _current.kept


def _watch(model: torch.nn.Module) -> None:
    """Hooks on the blocks, once; they stay, as other threads may be inside, and do nothing where
    nobody waits for them.
    """
    import torch

    config: Any = model.config
    depth = config.num_hidden_layers
    lists = (part for part in model.modules() if isinstance(part, torch.nn.ModuleList))
    blocks = next(part for part in lists if len(part) == depth)
    with _lock:
        for block in blocks:
            if _keep not in block._forward_hooks.values():  # noqa: SLF001 - torch has no other way
                block.register_forward_hook(_keep)


def _keep(_block: torch.nn.Module, _arguments: Any, output: Any) -> None:
    kept = getattr(_current, "kept", None)
    if kept is not None:
        tokens = output[0] if isinstance(output, tuple) else output
        kept.append(tokens[:, 0].clone())  # a view would keep all tokens
