"""The call that a notebook starts with: any source of images to features, in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dinoprobe.datasets import open_dataset
from dinoprobe.engine import embed as embed_dataset
from dinoprobe.engine import embed_tokens as embed_tokens_of
from dinoprobe.store import FeatureStore

if TYPE_CHECKING:
    from pathlib import Path

    from dinoprobe.encoder import Encoder
    from dinoprobe.engine import EncoderLike, TokenSet
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


def embed_tokens(source: object, encoder: Encoder, *, file: str | Path | None = None) -> TokenSet:
    """Patch tokens of whatever `open_dataset` takes, in memory or in `file`, a .npy.

    Raises DatasetError, EncoderError, and ConfigurationError for more than fit into memory.
    """
    return embed_tokens_of(open_dataset(source), encoder, file=file)
