"""What a person and a program read."""

from __future__ import annotations

import json

import pytest

from dinoprobe.cli.console import Console, printable
from dinoprobe.cli.options import parse_bands, parse_value, require_encoder
from dinoprobe.errors import AccessError, ConfigurationError, DatasetNotFoundError


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DatasetNotFoundError("photos: nothing there."), 2),
        (AccessError("gated"), 3),
        (KeyboardInterrupt(), 130),
        (OSError(28, "No space left on device"), 2),
    ],
)
def test_errors_become_exit_codes_and_one_document(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, Console(as_json=True).guarded():
        raise error
    assert ended.value.code == code
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["schema"] == "dinoprobe.error/1"
    assert document["exit_code"] == code
    assert document["message"] in captured.err
    assert "Traceback" not in captured.err


def test_a_bug_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError), Console().guarded():
        raise ZeroDivisionError


def test_with_json_lines_and_tables_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(as_json=True)
    console.line("accuracy 1")
    console.table([("a", "b")])
    console.document({"schema": "x/1"})
    assert json.loads(capsys.readouterr().out) == {"schema": "x/1"}


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(quiet=True)
    console.say("note")
    meter = console.progress()
    meter.start(10, 3)
    meter.advance(1, 0)
    meter.finish()
    assert capsys.readouterr().err == ""


def test_without_a_terminal_progress_is_plain_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 6.0, 6.0, 6.0, 6.0, 6.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    meter = Console().progress()
    meter.start(100, 40)
    meter.advance(30, 0)
    err = capsys.readouterr().err
    assert "40 of 100 images are in the store" in err
    assert "30 of 60 images, 5.0 images/s, 0:06 left" in err


def test_columns_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    Console().table([("a", "1", "x"), ("bbb", "22", "")], right=[1])
    assert capsys.readouterr().out == "  a     1  x\n  bbb  22\n"


def test_a_file_name_can_not_steer_the_terminal() -> None:
    assert printable("a\x1b[2Jb\nc") == "a\\x1b[2Jb\\nc"
    assert printable("schön 猫") == "schön 猫"


def test_strict_exits_with_4_only_after_failures() -> None:
    console = Console()
    console.strict(0, asked=True)
    console.strict(3, asked=False)
    with pytest.raises(SystemExit) as ended:
        console.strict(3, asked=True)
    assert ended.value.code == 4


def test_bands_are_counted_from_one() -> None:
    assert parse_bands("4,3,2") == (4, 3, 2)
    assert parse_bands(None) is None
    with pytest.raises(ConfigurationError, match="counted from 1"):
        parse_bands("0,1,2")
    with pytest.raises(ConfigurationError, match="whole numbers"):
        parse_bands("red")


def test_values_are_json_where_they_can_be() -> None:
    assert [parse_value(v) for v in ("0.1", "true", "[1, 2]", "adam")] == [
        0.1,
        True,
        [1, 2],
        "adam",
    ]


def test_an_encoder_is_never_chosen_silently() -> None:
    with pytest.raises(ConfigurationError, match="no encoder was given"):
        require_encoder(None)
