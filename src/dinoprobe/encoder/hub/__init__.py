"""Weights from the Hugging Face hub: asked for once, fetched so that a kill costs nothing, pinned.

Only configuration and safetensors are fetched. A refusal becomes one message that says which step
is missing; no licence is accepted, no token shown, no other encoder taken instead. huggingface_hub
gives the session, the token and the places; the requests are made here, because its own retry for
half a minute without a word and start again from zero after a kill.
"""

from dinoprobe.encoder.hub.cache import cached
from dinoprobe.encoder.hub.diagnosis import Diagnosis, diagnose
from dinoprobe.encoder.hub.listing import CHECKPOINT_FILES, RemoteFile
from dinoprobe.encoder.hub.pull import Preflight, download, preflight, pull
from dinoprobe.encoder.hub.transfer import Transfer

__all__ = [
    "CHECKPOINT_FILES",
    "Diagnosis",
    "Preflight",
    "RemoteFile",
    "Transfer",
    "cached",
    "diagnose",
    "download",
    "preflight",
    "pull",
]
