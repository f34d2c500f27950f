"""Makes transformers find this package's classifier for DINOv3's ViT, without loading transformers.

transformers 5.23 has no such class. `import dinoprobe` leaves a hook that runs once, when
transformers' table of classes is loaded, or at once where it is there already; then
`AutoModelForImageClassification` and `pipeline("image-classification")` load what
`dinoprobe export --to transformers` wrote, and no code of a checkpoint runs. Where transformers
has a class of its own for this architecture, that one stays.
"""

from __future__ import annotations

import importlib
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

TABLE = "transformers.models.auto.modeling_auto"
MODEL_TYPE = "dinov3_vit"
CLASS_MODULE, CLASS_NAME = "dinoprobe.export.vit_classifier", "DINOv3ViTForImageClassification"


def register_when_loaded() -> None:
    """Register now where the table is loaded, else when it will be. Idempotent."""
    if (table := sys.modules.get(TABLE)) is not None:
        _register(table)
    elif not any(isinstance(finder, _Hook) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Hook())


@final
class _Hook(MetaPathFinder):
    """Finds the table as Python would, and registers when it was executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != TABLE:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            _register(module)

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def _register(table: Any) -> None:
    """The class is named here and imported when it is first asked for."""
    mapping = getattr(table, "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING", None)
    names = getattr(table, "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES", None)
    if mapping is None or names is None or MODEL_TYPE in names:
        return
    mapping._extra_content = _Extra(mapping._extra_content)  # noqa: SLF001 - it has no lazy entry


class _Extra(dict[Any, Any]):
    """Classes that were registered, with ours made when it is asked for."""

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or _is_ours(key)

    def __getitem__(self, key: Any) -> Any:
        if not super().__contains__(key) and _is_ours(key):
            self[key] = getattr(importlib.import_module(CLASS_MODULE), CLASS_NAME)
        return super().__getitem__(key)


def _is_ours(key: object) -> bool:
    is_own = str(getattr(key, "__module__", "")).startswith("transformers.")
    return is_own and getattr(key, "model_type", None) == MODEL_TYPE
