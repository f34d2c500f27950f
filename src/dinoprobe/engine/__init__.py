"""The one path from samples to features, shared by the command line, Python and the server.

Threads read, hash and decode ahead. On a CPU as many threads encode, a batch each; on a GPU the
calling thread does. Threads suffice because the decoders and torch release the interpreter lock
(1.9 times on two threads), and they cost no copies and no forks. Memory is bounded by the images in
flight, by the formula in `memory`, and a thread that hangs is given up.
"""

from dinoprobe.engine.devices import choose_devices, embed_on_devices
from dinoprobe.engine.embedding import (
    PASSES,
    Embedding,
    Filling,
    content_digest,
    embed,
    reader_of,
    write_failures,
)
from dinoprobe.engine.estimate import Estimate, estimate, measure
from dinoprobe.engine.facts import Facts, facts_of
from dinoprobe.engine.ledger import Flush, Ledger, lost_rows
from dinoprobe.engine.memory import memory_bound
from dinoprobe.engine.pipeline import Encoded, EncoderLike, encode
from dinoprobe.engine.tokens import PatchTokens, TokenSet, embed_tokens
from dinoprobe.engine.worker import Job

__all__ = [
    "PASSES",
    "Embedding",
    "Encoded",
    "EncoderLike",
    "Estimate",
    "Facts",
    "Filling",
    "Flush",
    "Job",
    "Ledger",
    "PatchTokens",
    "TokenSet",
    "choose_devices",
    "content_digest",
    "embed",
    "embed_on_devices",
    "embed_tokens",
    "encode",
    "estimate",
    "facts_of",
    "lost_rows",
    "measure",
    "memory_bound",
    "reader_of",
    "write_failures",
]
