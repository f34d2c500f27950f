"""Which devices of this machine a run uses, and the same run on several of them.

One process for each: a second one costs its start (some seconds) and its copy of the weights, and
shares nothing but the store, which the first process alone writes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dinoprobe.engine.embedding import embed_by
from dinoprobe.engine.ledger import Flush
from dinoprobe.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dinoprobe.encoder import EncoderSettings
    from dinoprobe.engine.embedding import Embedding
    from dinoprobe.engine.facts import Facts
    from dinoprobe.engine.worker import Job
    from dinoprobe.store import RowStore
    from dinoprobe.types import Dataset, Progress

_FLUSH = Flush()


def embed_on_devices(
    dataset: Dataset,
    job: Job,
    devices: Sequence[str],
    *,
    store: RowStore | None = None,
    progress: Progress | None = None,
    flush: Flush = _FLUSH,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[Embedding, Facts]:
    """As `embed`, with a process for each of the `devices` (torch's names; one may stand there
    several times), and what is to be known of the encoder, which this process does not load.

    A script that calls this needs `if __name__ == "__main__":`, for each process imports it. Images
    in memory are copied to the process that encodes them. An image whose process dies twice is a
    failure of the kind `killed`. Raises what `embed` and `open_encoder` do, and EncoderError where
    processes die without a result.
    """
    from dinoprobe.engine.crew import Crew  # multiprocessing is not for every import of the engine

    with Crew(job, devices, say) as crew:
        facts = crew.open()
        done = embed_by(crew, dataset, facts, store=store, progress=progress, flush=flush)
    return done, facts


def choose_devices(asked: str, settings: EncoderSettings) -> tuple[str, ...]:
    """torch's names of the devices that `--devices` asks for: `auto` for all GPUs, else the one
    that there is; a number of them; or the numbers of GPUs, such as `0,1,3`. On a CPU a number is
    one of processes. Raises ConfigurationError.
    """
    import torch

    _refuse_other_options(asked, settings)
    kind = settings.device
    gpus = torch.cuda.device_count() if kind in {"auto", "cuda"} else 0
    if asked == "auto":
        return tuple(f"cuda:{number}" for number in range(gpus)) or (kind,)
    numbers = _numbers(asked)
    if "," in asked:
        wanted = numbers
    elif gpus or kind == "cuda":
        wanted = list(range(numbers[0]))
    elif kind == "mps" or (kind == "auto" and torch.backends.mps.is_available()):
        raise ConfigurationError(
            f"--devices {asked}: mps is one device. Use --devices 1, or --device cpu."
        )
    else:
        return ("cpu",) * numbers[0]
    absent = [number for number in wanted if number >= gpus]
    if absent:
        raise ConfigurationError(
            f"--devices {asked}: {gpus} CUDA device(s) can be seen here, and {absent[0]} is not "
            "among their numbers, which begin at 0. Use --devices auto for all that there are."
        )
    return tuple(f"cuda:{number}" for number in wanted)


def _refuse_other_options(asked: str, settings: EncoderSettings) -> None:
    if settings.device_map is not None or settings.max_memory is not None:
        msg = (
            f"--devices {asked} is a copy of the encoder on each device, --device-map one encoder "
            "over several. Use one of the two."
        )
        raise ConfigurationError(msg)
    if settings.device not in {"auto", "cpu", "cuda", "mps"}:
        msg = (
            f"--devices {asked} with --device {settings.device}, which names one device. Leave "
            "--device out, or use --devices 0,1 for the numbers of GPUs."
        )
        raise ConfigurationError(msg)


def _numbers(asked: str) -> list[int]:
    """The one number of processes, 1 or more, or the different numbers of GPUs."""
    parts = [part.strip() for part in asked.split(",")]
    numbers = [int(part) for part in parts if part.isascii() and part.isdecimal()]
    is_sound = len(numbers) == len(parts) == len(set(numbers))
    if not is_sound or ("," not in asked and numbers[0] < 1):
        raise ConfigurationError(
            f"--devices {asked}: expected auto, a number from 1, or different numbers of GPUs with "
            "commas, such as 0,1,3 (for one GPU: --device cuda:3)."
        )
    return numbers
