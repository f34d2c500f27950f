"""Features kept between runs: rows on Lance, found again by what is in an image, not by its name.

    <uri>/<fingerprint>/features.lance                  content_hash; cls, cls_check; mean, ...
    <uri>/<fingerprint>/manifest-<dataset digest>.lance one row a file: stamp, hash, label, failure

A row belongs to the SHA-256 of an image's bytes under the fingerprint of an encoder, so renamed,
relabelled and copied images are never encoded again. An encoder with a pooling takes the
fingerprint of all but that, and the parts of the pooling are columns: a row serves every request
whose parts it has, and one for more encodes the image again, for features of two passes are never
joined. Both tables only grow; of two rows for one hash the first with all parts sound counts, of
two rows for one file the last. Lance commits each append as a
whole, for several writers at once, on disks and object stores. On two busy cores it appends 100,000
rows of 384 values in 2 s and finds them again in 1.1 s (benchmarks/store.py), ten times slower than
a raw dump; at the 15 to 5,000 images a second of an encoder that is no cost, and it buys the
commits. Lance does not see a flipped bit inside a data page, so each part of a row carries a CRC-32
(4 bytes); a part that fails it counts as absent, and its image is encoded again.
"""

from __future__ import annotations

from dinoprobe.store.feature_store import FeatureStore, default_uri
from dinoprobe.store.memory import MemoryStore
from dinoprobe.store.values import WHOLE, Entry, KnownHashes, Rows, RowStore, Verification

__all__ = [
    "WHOLE",
    "Entry",
    "FeatureStore",
    "KnownHashes",
    "MemoryStore",
    "RowStore",
    "Rows",
    "Verification",
    "default_uri",
]
