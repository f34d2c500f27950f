"""A linear head trained with the encoder inside the loop, on images augmented anew each epoch.

Cached features are one forward pass per image; this is one per image and epoch, so 5 epochs cost
5 times the embedding. The reason to do it is the augmentation: random resized crop and flip.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from dinoprobe.engine.memory import encode_within_memory
from dinoprobe.engine.pipeline import MAX_WORKERS, single_threaded
from dinoprobe.errors import HeadError, ImageError
from dinoprobe.processor import usable_cores
from dinoprobe.types import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from dinoprobe.encoder import Encoder
    from dinoprobe.heads import LinearGridProbe, LinearProbe, LinearTraining
    from dinoprobe.preprocess import Augmentation
    from dinoprobe.types import Features, Sample


def fit_online(
    samples: Sequence[Sample],
    encoder: Encoder,
    probe: LinearProbe | LinearGridProbe,
    augmentation: Augmentation,
    *,
    on_epoch: Callable[[int, float], None],
    validation: Features | None = None,
) -> tuple[LinearProbe | LinearGridProbe, list[Failure]]:
    """The fitted probe, and the images that could not be used.

    A grid of several layers takes the one that is best on `validation`, features of images that are
    not among the samples, as they are without augmentation.

    Every sample must have a label. The order of images and each augmentation follow from the
    probe's `random_state`, the epoch and the image's position: a run can be repeated. `on_epoch`
    gets the epoch from 1 and its mean running loss. Raises HeadError when no image can be used.
    """
    import numpy as np

    labels = [str(sample.label) for sample in samples]
    training = _begun(probe, encoder.dimension, labels)
    failures: dict[str, Failure] = {}
    with ThreadPoolExecutor(
        min(MAX_WORKERS, usable_cores()), initializer=single_threaded()
    ) as pool:
        for epoch in range(probe.epochs):
            order = np.random.default_rng([probe.random_state, epoch]).permutation(len(samples))
            for start in range(0, len(order), probe.batch_size):
                rows = order[start : start + probe.batch_size].tolist()
                seeds = [[probe.random_state, epoch, row] for row in rows]
                chosen = [samples[row] for row in rows]
                images = list(pool.map(_Opener(encoder, augmentation), chosen, seeds))
                _step(training, encoder, chosen, images, failures)
            if len(failures) == len(samples):
                first = next(iter(failures.values()))
                raise HeadError(f"none of {len(samples)} images can be used; {first.reason}")
            on_epoch(epoch + 1, training.end_epoch())
    return _finished(training, validation), list(failures.values())


def _begun(
    probe: LinearProbe | LinearGridProbe, dimension: int, labels: list[str]
) -> LinearTraining:
    from dinoprobe.heads import LinearProbe

    classes = sorted(set(labels))
    if isinstance(probe, LinearProbe):
        return probe.begin(dimension, classes, labels=labels)
    steps = probe.epochs * -(-len(labels) // probe.batch_size)
    return probe.begin(dimension, classes, steps=steps)


def _finished(
    training: LinearTraining, validation: Features | None
) -> LinearProbe | LinearGridProbe:
    from dinoprobe.heads import GridTraining

    if isinstance(training, GridTraining) and validation is not None:
        return training.finish(validation.X, validation.y)
    return training.finish()


class _Opener:
    """Opens one image with an augmentation of its own; a failure comes back as a value."""

    def __init__(self, encoder: Encoder, augmentation: Augmentation) -> None:
        self.preprocessing = encoder.preprocessing
        self.augmentation = augmentation

    def __call__(self, sample: Sample, seed: list[int]) -> torch.Tensor | Failure:
        import numpy as np

        from dinoprobe.preprocess import prepare

        rng = np.random.default_rng(seed)
        try:
            image = sample.source.read()
            tensor: torch.Tensor = prepare(
                image, self.preprocessing, augment=self.augmentation, rng=rng
            )
        except ImageError as error:
            return Failure(sample.key, error.kind, str(error))
        except OSError as error:
            return Failure(sample.key, "unreadable", str(error))
        except MemoryError:
            return Failure(sample.key, "too-large", "not enough memory to decode it")
        return tensor


def _step(
    training: LinearTraining,
    encoder: Encoder,
    samples: Sequence[Sample],
    images: Sequence[torch.Tensor | Failure],
    failures: dict[str, Failure],
) -> None:
    tensors, labels = [], []
    for sample, image in zip(samples, images, strict=True):
        if isinstance(image, Failure):
            failures[sample.key] = image
        else:
            tensors.append(image)
            labels.append(str(sample.label))
    if tensors:
        rows, _ = encode_within_memory(encoder, tensors, len(tensors))
        training.step(rows, labels)
