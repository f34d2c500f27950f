"""Named, versioned recipes: which features, which heads, and how one of them is chosen.

A protocol never depends on the machine: not on the number of devices, threads or processes. What it
stands for does not change under its version; docs/protocols.md says it line by line, with what
differs from the place where it comes from.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING, Any

import numpy as np

from dinoprobe.errors import ConfigurationError
from dinoprobe.heads import HEADS, RULES
from dinoprobe.pooling import sub_poolings

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from dinoprobe.train.config import TrainConfig

HeadOptions = tuple[str, dict[str, Any]]

FEW_SHOTS = 10
"""Prototypes are a candidate where half of the classes have fewer images than this."""
DINOV3_STRENGTHS = tuple(np.logspace(-6, 5, 45).tolist())


@dataclass(frozen=True, slots=True)
class Protocol:
    """One recipe. `heads` with their options are tried on each of `poolings`.

    `poolings` None are all within the one that images are encoded with, () that one alone;
    `pooling` is what they are encoded with where the user names none. `few_shot_heads` come in
    where classes are small. `calibrated` says whether a temperature is fitted out of fold. `shots`
    and `draws` make a few-shot table by `shot_heads`. `on_the_fly` encodes images in each step,
    augmented by `augment` where the user names nothing else. Version 0 is the plan of one head that
    the user named.
    """

    name: str
    version: int
    summary: str
    heads: tuple[HeadOptions, ...]
    poolings: tuple[str, ...] | None = ()
    pooling: str | None = None
    few_shot_heads: tuple[HeadOptions, ...] = ()
    calibrated: bool = False
    shots: tuple[int, ...] = ()
    draws: int = 0
    shot_heads: tuple[HeadOptions, ...] = ()
    on_the_fly: bool = False
    augment: str | None = None

    @property
    def id(self) -> str | None:
        """`auto/1`; None for a head that the user named."""
        return f"{self.name}/{self.version}" if self.version else None

    def poolings_within(self, pooling: str) -> tuple[str, ...]:
        """The poolings that are tried where images were encoded with `pooling`."""
        if self.poolings is None:
            return sub_poolings(pooling)
        return self.poolings or (pooling,)

    def heads_for(self, y: npt.NDArray[Any]) -> tuple[HeadOptions, ...]:
        """The heads that are tried on rows with these labels."""
        counts = np.unique(y, return_counts=True)[1]
        return self.heads + (self.few_shot_heads if np.median(counts) < FEW_SHOTS else ())


_COMPARED: tuple[HeadOptions, ...] = (("lda", {}), ("ridge", {}), ("logistic", {}))
_FEW: tuple[HeadOptions, ...] = (("prototype", {}),)

PROTOCOLS: Mapping[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "auto",
            1,
            "the best of LDA, ridge and logistic heads (prototypes too below ten images a class) "
            "over the encoder's poolings, chosen on folds, then calibrated",
            heads=_COMPARED,
            poolings=None,
            few_shot_heads=_FEW,
            calibrated=True,
        ),
        Protocol(
            "tutorial",
            1,
            "one linear layer, Adam at 1e-3, 5 epochs in batches of 32",
            heads=(("linear", {}),),
        ),
        Protocol(
            "dinov3-linear",
            1,
            "a layer at each of 13 rates on CLS and the mean of the patches, SGD with a cosine, 10 "
            "epochs of images cropped and flipped at random, the best on a validation part",
            heads=(("linear-grid", {}),),
            pooling="cls+mean",
            on_the_fly=True,
            augment="imagenet",
        ),
        Protocol(
            "dinov2-linear",
            1,
            "CLS of the last block or of four, with and without the mean of the patches, at 13 "
            "rates each: SGD with a cosine, 10 epochs of cached features",
            heads=(("linear-grid", {}),),
            poolings=("cls", "cls+mean", "blocks4", "blocks4+mean"),
            pooling="blocks4+mean",
        ),
        Protocol(
            "dinov3-logreg",
            1,
            "logistic regression on CLS, 45 strengths from 1e-6 to 1e5 without standardising",
            heads=(("logistic", {"Cs": list(DINOV3_STRENGTHS), "standardize": False}),),
            pooling="cls",
        ),
        Protocol(
            "dinov3-knn",
            1,
            "k nearest neighbours by cosine on CLS, k of 10, 20, 100, 200, temperature 0.07",
            heads=(("knn", {"k": "auto"}),),
            pooling="cls",
        ),
        Protocol(
            "fewshot-ridge",
            1,
            "ridge regression at one strength; 1, 5 and 10 images a class, 3 draws each",
            heads=(("ridge", {}),),
            shots=(1, 5, 10),
            draws=3,
            shot_heads=(("ridge", {"alpha": 1024.0}),),
        ),
        Protocol(
            "fewshot-k",
            1,
            "auto on 1, 2, 5, 10 and 20 images a class, 5 draws each",
            heads=_COMPARED,
            poolings=None,
            few_shot_heads=_FEW,
            calibrated=True,
            shots=(1, 2, 5, 10, 20),
            draws=5,
            shot_heads=(*_FEW, *_COMPARED),
        ),
    )
}
DEFAULT_PROTOCOL = "auto"
CALIBRATED_HEADS = ("logistic",)


def protocol_from_name(name: str) -> Protocol:
    """A protocol by its name, with or without its version.

    Raises ConfigurationError for an unknown one, and for a version that this package has not.
    """
    plain, _, version = name.partition("/")
    if plain not in PROTOCOLS:
        near = difflib.get_close_matches(plain, list(PROTOCOLS), n=1, cutoff=0.4)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        names = ", ".join(PROTOCOLS)
        raise ConfigurationError(f"protocol '{name}' is not known; expected one of {names}.{hint}")
    found = PROTOCOLS[plain]
    if version not in {"", str(found.version)}:
        msg = (
            f"protocol '{name}': this dinoprobe has version {found.version} of it. Install the one "
            f"that wrote the configuration, or leave the version out."
        )
        raise ConfigurationError(msg)
    return found


def plan_of(config: TrainConfig) -> Protocol:
    """What a configuration asks for: its head alone, or its protocol; `auto` where it names none.

    Raises ConfigurationError for both, and for a protocol that is not known.
    """
    if config.head is None:
        return protocol_from_name(config.protocol or DEFAULT_PROTOCOL)
    if config.protocol is not None:
        msg = (
            f"head '{config.head}' and protocol '{config.protocol}' were given; a protocol names "
            f"its heads. Leave out one of them."
        )
        raise ConfigurationError(msg)
    return Protocol(
        config.head,
        0,
        "",
        heads=((config.head, {}),),
        calibrated=config.head in CALIBRATED_HEADS,
        on_the_fly=config.on_the_fly,
    )


def with_options(config: TrainConfig, name: str, options: dict[str, Any]) -> dict[str, Any]:
    """All options of a head of the plan: its own, and those of the user that it takes.

    k of `knn` is chosen on folds unless it is given.
    """
    accepted = signature(HEADS[name]).parameters if name in HEADS else {}
    found = {"k": "auto"} if name == "knn" else {}
    found |= options
    if config.select != RULES[0] and "rule" in accepted:
        found["rule"] = config.select
    given = config.head_options
    if config.head is None:
        given = {key: value for key, value in given.items() if key in accepted}
    return {**found, **given}
