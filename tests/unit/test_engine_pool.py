"""Threads whose work can be given up. A piece of work that hangs waits for an event of the test."""

import threading
from collections.abc import Callable, Iterator

import pytest

from dinoprobe.engine import pool as pool_module
from dinoprobe.engine.pool import LateError, Pool

LIMIT_S = 0.3


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What hangs waits here; the test opens it at last, so that no thread outlives it."""
    before = set(threading.enumerate())
    made = threading.Event()
    yield made
    made.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive()


def hanging(gate: threading.Event) -> Callable[[int], int]:
    """Squares; a negative number hangs."""

    def work(number: int) -> int:
        if number < 0:
            gate.wait()
        return number**2

    return work


def names() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("dinoprobe-")]


def test_work_is_done_on_so_many_threads_after_a_start(gate: threading.Event) -> None:
    started: list[str] = []
    inside: set[int] = set()
    together = threading.Barrier(3, timeout=10)

    def work(number: int) -> int:
        inside.add(threading.get_ident())
        together.wait()
        return number**2

    pool = Pool("dinoprobe-test", 3, work, start=lambda: started.append("x"))
    tasks = [pool.submit(number) for number in range(9)]
    assert [pool.result(task) for task in tasks] == [number**2 for number in range(9)]
    assert (len(inside), started, names()) == (3, ["x"] * 3, ["dinoprobe-test"] * 3)
    assert all(thread.daemon for thread in threading.enumerate() if thread.name in names())
    pool.close()
    pool.close()
    assert names() == []


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(3)])
def test_what_the_work_raises_goes_to_who_waits(error: BaseException) -> None:
    def work(number: int) -> int:
        if number == 1:
            raise error
        return number

    pool = Pool("dinoprobe-test", 1, work)
    tasks = [pool.submit(number) for number in range(3)]
    assert pool.result(tasks[0]) == 0
    with pytest.raises(type(error)):
        pool.result(tasks[1])
    assert pool.result(tasks[2]) == 2
    pool.close()


def test_what_hangs_is_late_and_others_go_on(gate: threading.Event) -> None:
    """One thread, and three pieces of work that hang before the last one: it waits three limits."""
    pool = Pool("dinoprobe-test", 1, hanging(gate), limit_s=LIMIT_S)
    tasks = [pool.submit(number) for number in (2, -1, -2, -3, 4)]
    assert pool.result(tasks[0]) == 4
    for task in tasks[1:4]:
        with pytest.raises(LateError):
            pool.result(task)
    assert pool.result(tasks[4]) == 16
    assert pool.stuck == 3
    pool.close()
    assert len(names()) == 3
    gate.set()
    for thread in threading.enumerate():
        if thread.name in names():
            thread.join(10)
    assert (pool.stuck, names()) == (0, [])
    with pytest.raises(LateError):
        pool.result(tasks[1])


def test_without_a_limit_nothing_is_late(gate: threading.Event) -> None:
    pool = Pool("dinoprobe-test", 1, hanging(gate))
    task = pool.submit(-3)
    threading.Timer(LIMIT_S, gate.set).start()
    assert pool.result(task) == 9
    pool.close()


def test_what_was_given_up_is_left_to_itself(gate: threading.Event) -> None:
    """No exception is sent to it: one that never arrives keeps every thread looking for it."""

    def work(number: int) -> int:
        gate.wait()
        return number

    pool = Pool("dinoprobe-test", 1, work, limit_s=LIMIT_S)
    task = pool.submit(1)
    with pytest.raises(LateError):
        pool.result(task)
    assert pool.stuck == 1
    gate.set()
    for thread in threading.enumerate():
        if thread.name == "dinoprobe-test" and thread is not threading.current_thread():
            thread.join(1)
    assert pool.stuck == 0
    pool.close()


def test_close_drops_what_waits_and_ends_what_runs(gate: threading.Event) -> None:
    done: list[int] = []
    running = threading.Event()

    def work(number: int) -> int:
        running.set()
        while not gate.is_set():
            pass
        done.append(number)
        return number

    pool = Pool("dinoprobe-test", 1, work, stoppable=True)
    for number in range(4):
        pool.submit(number)
    assert running.wait(10)
    pool.close()
    assert (names(), done, gate.is_set()) == ([], [], False)


def test_close_leaves_what_hangs(gate: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "GRACE_S", 0.05)
    monkeypatch.setattr(pool_module, "PATIENCE_S", 0.05)
    pool = Pool("dinoprobe-test", 2, hanging(gate))
    for number in (-1, 5, 6):
        task = pool.submit(number)
    assert pool.result(task) == 36
    pool.close()
    assert names() == ["dinoprobe-test"]


def test_a_thread_without_work_holds_nothing(gate: threading.Event) -> None:
    class Large:
        pass

    freed = threading.Event()

    def work(large: Large) -> Large:
        return large

    pool = Pool("dinoprobe-test", 1, work)
    large = Large()
    import weakref

    weakref.finalize(large, freed.set)
    task = pool.submit(large)
    assert pool.result(task) is large
    del task, large
    assert freed.wait(10)
    pool.close()
