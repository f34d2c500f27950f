"""The call that a notebook starts with: any source of images to features, in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dinoprobe.datasets import open_dataset
from dinoprobe.engine import embed as embed_dataset
from dinoprobe.store import FeatureStore

if TYPE_CHECKING:
    from dinoprobe.engine import EncoderLike
    from dinoprobe.types import Features, Progress


def embed(
    source: object,
    encoder: EncoderLike,
    *,
    store: FeatureStore | str | None = None,
    progress: Progress | None = None,
) -> Features:
    """`Features` of whatever `open_dataset` takes; what is known is not computed again.

    `store` is a place for features, None for the user's cache. Images that could not be used are in
    `Features.failures`. Raises DatasetError, EncoderError and StoreError.
    """
    place = store if isinstance(store, FeatureStore) else FeatureStore(store)
    return embed_dataset(open_dataset(source), encoder, store=place, progress=progress).features
