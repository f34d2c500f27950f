"""The whole examination: each question answered once, in the order in which a user meets them.

Nothing is downloaded, but for the picture of the published vectors when that is asked for; the hub
is asked for access. What could not be verified is said to be so.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinoprobe.catalog import GOLDEN
from dinoprobe.doctor.checks import (
    Check,
    check_checksums,
    check_device,
    check_disk,
    check_versions,
)
from dinoprobe.doctor.golden import check_picture, compare, golden_picture
from dinoprobe.doctor.selfcheck import check_forward, check_precision
from dinoprobe.drift import Drift, measure_drift
from dinoprobe.encoder import Encoder, EncoderReference, EncoderSettings
from dinoprobe.encoder.defaults import default_preprocessing
from dinoprobe.encoder.forward import bytes_in_memory
from dinoprobe.encoder.hub import cached, diagnose
from dinoprobe.encoder.load import Source, open_source
from dinoprobe.encoder.placement import free_bytes, gigabytes
from dinoprobe.encoder.reference import Address, locate, resolve
from dinoprobe.errors import ConfigurationError, DatasetError, DinoprobeError, EncoderError
from dinoprobe.files import user_cache
from dinoprobe.store import FeatureStore

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from dinoprobe.types import Dataset, Progress

SCHEMA = "dinoprobe.doctor/1"


@dataclass(frozen=True, slots=True)
class Wishes:
    """What to look at beyond the checks that cost nothing: published vectors, drift on images."""

    golden: bool = False
    golden_image: str | None = None
    images: Dataset | None = None


@dataclass(slots=True)
class Examination:
    """What was found. `error` is the one to end with: the first that stands in the way, or None."""

    encoder: str | None
    checks: list[Check] = field(default_factory=list)
    drift: Drift | None = None
    error: DinoprobeError | None = None

    def to_dict(self) -> dict[str, Any]:
        """The document of `--json`."""
        return {
            "schema": SCHEMA,
            "encoder": self.encoder,
            "usable": self.error is None,
            "checks": [{"name": c.name, "state": c.state, "text": c.text} for c in self.checks],
            "drift": self.drift.to_dict() if self.drift else None,
        }


def examine(
    settings: EncoderSettings | None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    wishes: Wishes = Wishes(),
    on_check: Callable[[Check], None] = lambda _: None,
    progress: Callable[[], Progress] | None = None,
) -> Examination:
    """Look at everything, `on_check` hearing of each thing as it is found.

    Without settings only what surrounds an encoder is looked at. Raises EncoderNotFoundError for a
    name that means nothing, ConfigurationError for options that can not work.
    """
    address = resolve(settings.name) if settings else None
    found = Examination(settings.name if settings else None)

    def add(check: Check) -> None:
        found.checks.append(check)
        on_check(check)

    versions = check_versions()
    add(versions)
    if versions.state == "failed":
        found.error = EncoderError(versions.text)
    check, chosen, precision = check_device(device, dtype)
    add(check)
    for check in check_disk(_hub_cache(), FeatureStore(None).uri):
        add(check)
    if settings is None or address is None:
        return found
    try:
        reference = _find(address, found, add)
        if reference is None:
            _say_what_waits(wishes, add)
            return found
        asked = dtype if chosen.type == "cpu" else precision
        has_run = _examine_weights(
            reference, settings, chosen, precision, asked, wishes, found, add
        )
        if wishes.images is not None and not has_run:
            text = "float32 does not fit on this device, and it is what is compared with"
            add(Check("drift", "unverified", text))
        elif wishes.images is not None and found.error is None:
            _examine_drift(settings, precision, wishes.images, progress, found, add)
    except DinoprobeError as error:
        kinds = {DatasetError: "drift", ConfigurationError: "options"}
        add(Check(kinds.get(type(error), "weights"), "failed", str(error)))
        found.error = found.error or error
    return found


def _say_what_waits(wishes: Wishes, add: Callable[[Check], None]) -> None:
    """What was asked for and needs the weights, which are not here."""
    asked = {"golden vectors": wishes.golden or wishes.golden_image, "drift": wishes.images}
    for name, wish in asked.items():
        if wish:
            add(Check(name, "unverified", "the weights are not here yet"))


def _hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _find(
    address: Address, found: Examination, add: Callable[[Check], None]
) -> EncoderReference | None:
    """Where the weights are now; for a repository of the hub, first whether they may be read."""
    if address.kind != "hub" or address.hub_id is None:
        reference = locate(address.name)
        add(Check("weights", "ok", f"{reference.file or reference.folder}"))
        return reference
    here = cached(address.hub_id, address.revision)
    diagnosis = diagnose(address.hub_id, address.revision)
    token = "found" if diagnosis.token_found else "not found"
    account = f", account {diagnosis.user}" if diagnosis.user else ""
    add(Check("token", "ok" if diagnosis.token_found else "note", f"{token}{account}"))
    blocked = diagnosis.error is not None
    state: Any = ("note" if here else "failed") if blocked else "ok"
    add(Check("access", state, diagnosis.sentence))
    if here is not None:
        folder, commit = here
        add(Check("weights", "ok", f"in the cache, commit {commit[:12]}: {folder}"))
        checksum = check_checksums(folder)
        add(checksum)
        if checksum.state == "failed":
            found.error = EncoderError(f"{address.name}: {checksum.text}")
            return None
        return EncoderReference(address.hub_id, commit, folder)
    if blocked:
        found.error = diagnosis.error
        return None
    text = f"not in the cache. Fetch them: dinoprobe pull {found.encoder}"
    add(Check("weights", "unverified", text))
    return None


def _examine_weights(
    reference: EncoderReference,
    settings: EncoderSettings,
    device: torch.device,
    precision: str,
    asked: str,
    wishes: Wishes,
    found: Examination,
    add: Callable[[Check], None],
) -> bool:
    """Whether float32 fits on the device, and so whatever is compared with it could be run.

    `precision` is what memory is counted for; `asked` is that or `auto`.
    """
    source = open_source(reference)
    preprocessing, notes = default_preprocessing(reference, source, normalize=settings.normalize)
    for note in notes:
        add(Check("preprocessing", "note", note))
    add(_count(reference, source))
    memory = _memory(source, device, precision)
    add(memory)
    if not _fits_in_float32(source, device):
        text = "float32 does not fit on this device, and the published vectors are in float32"
        add(Check("forward", "unverified", text))
        add(Check("golden vectors", "unverified", text))
        if memory.state == "failed":
            found.error = EncoderError(f"{reference.name}: {memory.text}")
        return False
    encoder = Encoder.from_source(
        source, reference, preprocessing, device=str(device), dtype="float32"
    )
    checks = [check_forward(encoder), _golden(encoder, wishes)]
    other = Encoder.from_source(source, reference, preprocessing, device=str(device), dtype=asked)
    checks += [Check("backend", "note", note) for note in other.notes]
    checks.append(Check("backend", "ok", f"{other.backend} in {other.precision}"))
    if other.precision != "float32":
        checks.append(check_precision(encoder, other))
    for check in checks:
        add(check)
        if check.state == "failed" and found.error is None:
            found.error = EncoderError(f"{reference.name}: {check.name}: {check.text}")
    return True


def _count(reference: EncoderReference, source: Source) -> Check:
    """Parameters against the catalogue; a masked or a missing bias may differ, shapes may not."""
    text = f"{source.parameters / 1e6:,.1f} million parameters, {source.family.model_type}"
    known = reference.checkpoint
    if known is None:
        return Check("parameters", "ok", f"{text}; not one of the published checkpoints by name")
    if source.parameters != known.parameters:
        expected = f"{known.name} as published has {known.parameters:,}, this {source.parameters:,}"
        return Check("parameters", "note", f"{text}; {expected}")
    return Check("parameters", "ok", f"{text}, as {known.name} was published")


def _memory(source: Source, device: torch.device, precision: str) -> Check:
    needed, free = _needed(source, device, precision), free_bytes(device)
    text = f"needs {gigabytes(needed)} in {precision}"
    if free is None:
        return Check("memory", "unverified", f"{text}; what {device} has free can not be told")
    if needed > free:
        way = "--dtype bfloat16 halves it; " if precision == "float32" else ""
        text += f"; {device} has {gigabytes(free)}: {way}--device-map auto spreads it"
        return Check("memory", "failed", text)
    return Check("memory", "ok", f"{text}; {device} has {gigabytes(free)} free")


def _fits_in_float32(source: Source, device: torch.device) -> bool:
    free = free_bytes(device)
    return free is None or _needed(source, device, "float32") <= free


def _needed(source: Source, device: torch.device, precision: str) -> int:
    """Bytes of the weights as the encoder will hold them: twice where it is folded."""
    return bytes_in_memory(source.parameters, source.family, device, precision)[0]


def _golden(encoder: Encoder, wishes: Wishes) -> Check:
    """The published vectors, where the checkpoint has them and the picture is at hand."""
    name = "golden vectors"
    known = encoder.reference.checkpoint
    try:
        content = _picture(wishes)
    except ConfigurationError as error:  # a file that was given must do; the network may fail
        return Check(name, "failed" if wishes.golden_image else "unverified", str(error))
    if known is None or known.name not in GOLDEN:
        return Check(name, "unverified", "none are published for these weights")
    if content is None:
        text = (
            "not compared: they are for one picture of COCO. --golden fetches it, --golden-image "
            "FILE takes it from a file"
        )
        return Check(name, "unverified", text)
    result = compare(encoder, known.name, content)
    difference = f"largest difference {result.difference:.1e} over 10 numbers, tolerance 1e-3"
    if result.agrees:
        return Check(name, "ok", f"as published for {known.name}: {difference}")
    text = f"not {known.name} as published: {difference}. Fetch the weights again"
    return Check(name, "failed", text)


def _picture(wishes: Wishes) -> bytes | None:
    if wishes.golden_image is not None:
        try:
            content = Path(wishes.golden_image).read_bytes()
        except OSError as error:
            msg = f"{wishes.golden_image}: not readable ({error.strerror}). Give the picture."
            raise ConfigurationError(msg) from error
        check_picture(content, wishes.golden_image)
        return content
    return golden_picture(user_cache()) if wishes.golden else None


def _examine_drift(
    settings: EncoderSettings,
    precision: str,
    images: Dataset,
    progress: Callable[[], Progress] | None,
    found: Examination,
    add: Callable[[Check], None],
) -> None:
    from dataclasses import replace

    if precision == "float32":
        add(Check("drift", "ok", "float32 is compared with itself: give --dtype bfloat16"))
        return
    drift = measure_drift(images, replace(settings, dtype=precision), progress=progress)
    found.drift = drift
    low, high = drift.agreement_interval
    text = (
        f"{precision} against float32 on {drift.n:,} images: cosine {drift.cosine_mean:.6f} mean, "
        f"{drift.cosine_min:.6f} least; same answer for {100 * drift.agreement:.1f} % of "
        f"{drift.agreement_n:,} ({100 * low:.1f} to {100 * high:.1f}; {drift.head})"
    )
    add(Check("drift", "ok", text))
