"""Corrections that several tabs and processes make: none is lost, each can be taken back."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from tests.served import ENVIRONMENT

from dinoprobe.datasets.corrections import State, header
from dinoprobe.files import WriteError
from dinoprobe.page.log import ConflictError, CorrectionLog, Wanted

if TYPE_CHECKING:
    from pathlib import Path

CAT, DOG = State("cat"), State("dog")

WRITER = """
import sys
from pathlib import Path
from dinoprobe.page.log import CorrectionLog, Wanted
from dinoprobe.datasets.corrections import State
log = CorrectionLog(Path(sys.argv[1]), lambda key: State("cat"))
for i in range(15):
    log.append([Wanted(f"{sys.argv[2]}-{i}", "h", State("cat"), State("dog"))])
"""


def log_at(path: Path) -> CorrectionLog:
    return CorrectionLog(path, lambda _: CAT)


def to_dog(key: str = "a") -> Wanted:
    return Wanted(key, "h", CAT, DOG)


def test_a_correction_stays_after_a_restart(tmp_path: Path) -> None:
    log = log_at(tmp_path / "new" / "labels.csv")
    assert log.append([to_dog(), to_dog("b")]) == 1
    again = log_at(log.path)
    assert again.version == 1
    assert again.state("a", "h") == DOG
    assert again.state("c", "h") == CAT


def test_a_correction_of_other_bytes_is_none_of_this_image(tmp_path: Path) -> None:
    log = log_at(tmp_path / "labels.csv")
    log.append([to_dog()])
    assert log.state("a", "others") == CAT


def test_undo_after_a_restart_goes_back_step_by_step(tmp_path: Path) -> None:
    log = log_at(tmp_path / "labels.csv")
    log.append([to_dog(), to_dog("b")])
    log.append([Wanted("a", "h", DOG, State("dog", dropped=True))])
    again = log_at(log.path)
    again.undo()
    assert again.state("a", "h") == DOG
    again.undo()
    assert (again.state("a", "h"), again.state("b", "h")) == (CAT, CAT)
    with pytest.raises(ConflictError, match="nothing to undo"):
        again.undo()
    assert [change.undoes for change in again.refresh()] == [None, None, None, 2, 1, 1]


def test_an_older_action_is_not_undone_over_a_later_one(tmp_path: Path) -> None:
    log = log_at(tmp_path / "labels.csv")
    log.append([to_dog()])
    log.append([Wanted("a", "h", DOG, State("cow"))])
    with pytest.raises(ConflictError, match="'cow' now"):
        log.undo(1)


def test_two_tabs_do_not_overwrite_each_other(tmp_path: Path) -> None:
    one, other = log_at(tmp_path / "labels.csv"), log_at(tmp_path / "labels.csv")
    one.append([to_dog()])
    other.append([to_dog("b")])
    with pytest.raises(ConflictError, match="a is labelled 'dog' now, and was labelled 'cat'"):
        other.append([to_dog("c"), Wanted("a", "h", CAT, State("cow"))])
    assert {change.key for change in one.refresh()} == {"a", "b"}
    assert [change.key for change in one.since(1)] == ["b"]


def test_processes_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), name], env=ENVIRONMENT)
        for name in "xyz"
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    changes = log_at(path).refresh()
    assert [change.action for change in changes] == list(range(1, 46))
    assert {change.key for change in changes} == {f"{n}-{i}" for n in "xyz" for i in range(15)}


@pytest.mark.parametrize("tail", [b"2026,2,1,b", b'2026,2,1,"b\nc', b"t,2,2,b,h,cat,dog,,\r\n"])
def test_what_a_kill_cut_off_is_written_over(tmp_path: Path, tail: bytes) -> None:
    log = log_at(tmp_path / "labels.csv")
    log.append([to_dog()])
    with open(log.path, "ab") as file:
        file.write(tail)
    again = log_at(log.path)
    assert again.version == 1
    assert again.append([to_dog("c")]) == 2
    assert [change.key for change in log_at(log.path).refresh()] == ["a", "c"]


def test_a_file_of_a_header_alone_is_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes(header())
    log_at(path).append([to_dog()])
    assert path.read_bytes().count(header()) == 1


def test_a_place_that_can_not_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match=r"labels\.csv: can not be written"):
        log_at(tmp_path / "file" / "labels.csv").append([to_dog()])
