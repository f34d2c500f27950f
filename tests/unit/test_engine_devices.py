import pytest
import torch

from dinoprobe.cli.devices import places_of
from dinoprobe.datasets.memory import BytesSource
from dinoprobe.encoder import EncoderSettings
from dinoprobe.engine import choose_devices
from dinoprobe.engine.crew import _shares
from dinoprobe.engine.ledger import Claims
from dinoprobe.errors import ConfigurationError
from dinoprobe.processor import usable_cores
from dinoprobe.types import Sample


def settings(**values: str) -> EncoderSettings:
    return EncoderSettings(name="builtin", **values)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(
    ("asked", "device", "numbers"),
    [
        ("auto", "auto", [0, 1, 2, 3]),
        ("3", "auto", [0, 1, 2]),
        ("4", "cuda", [0, 1, 2, 3]),
        ("3, 1", "auto", [3, 1]),
    ],
)
def test_gpus_by_number(asked: str, device: str, numbers: list[int]) -> None:
    found = choose_devices(asked, settings(device=device))
    assert found == tuple(f"cuda:{number}" for number in numbers)


@pytest.mark.usefixtures("gpus")
def test_a_cpu_that_was_named_is_used_though_there_are_gpus() -> None:
    assert choose_devices("2", settings(device="cpu")) == ("cpu", "cpu")
    assert choose_devices("auto", settings(device="cpu")) == ("cpu",)


@pytest.mark.usefixtures("no_gpu")
def test_without_gpus_a_number_is_one_of_processes() -> None:
    assert choose_devices("3", settings()) == ("cpu", "cpu", "cpu")
    assert choose_devices("auto", settings()) == ("auto",)


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize("asked", ["", "0", "-1", "x", "1,1", "0,,1", "0,", "1.5", "²"])
def test_what_is_no_number_is_refused(asked: str) -> None:
    with pytest.raises(ConfigurationError, match="expected auto, a number from 1"):
        choose_devices(asked, settings())


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(
    ("asked", "options", "message"),
    [
        ("5", {}, r"4 CUDA device\(s\) can be seen here, and 4 is not"),
        ("0,9", {}, r"4 CUDA device\(s\) can be seen here, and 9 is not"),
        ("0,1", {"device": "cpu"}, r"0 CUDA device\(s\)"),
        ("2", {"device": "cuda:1"}, "names one device"),
        ("2", {"device": "mps"}, "mps is one device"),
        ("2", {"device_map": "auto"}, "Use one of the two"),
    ],
)
def test_what_can_not_be_is_refused(asked: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        choose_devices(asked, settings(**options))


@pytest.mark.usefixtures("no_gpu")
def test_gpus_that_are_not_there_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="0 CUDA"):
        choose_devices("2", settings(device="cuda"))


def test_a_cluster_is_divided_otherwise() -> None:
    assert places_of(None, settings(device="cpu"), "ray") == ("cpu",)
    with pytest.raises(ConfigurationError, match="--devices 2 with --engine ray"):
        places_of("2", settings(), "ray")


def test_a_process_can_be_given_a_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = usable_cores()
    for share, cores in (("1", 1), ("0", 1), ("9999", everything), ("", everything)):
        monkeypatch.setenv("DINOPROBE_CORES", share)
        assert usable_cores() == cores


def test_hashes_that_others_encoded_are_not_claimed() -> None:
    claims = Claims(frozenset({"stored"}))
    claims.learn(["told"])
    found = [claims.claim(name) for name in ("stored", "told", "new", "new")]
    assert found == [False, False, True, False]


@pytest.mark.parametrize(
    ("count", "devices", "sizes"),
    [
        (3, ("cpu", "cpu"), [3]),
        (40, ("cpu", "cpu"), [4] * 10),
        (6400, ("cpu", "cpu"), [256] * 25),
        (300, ("cuda:0", "cuda:1"), [128, 128, 44]),
    ],
)
def test_samples_are_cut_in_shares(count: int, devices: tuple[str, ...], sizes: list[int]) -> None:
    samples = [Sample(str(i), BytesSource(b"")) for i in range(count)]
    shares = _shares(samples, devices)
    assert [len(share) for share in shares] == sizes
    assert [sample for share in shares for sample in share] == samples
