"""The service in this process, closed after each test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.in_process import Served

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def served() -> Iterator[Served]:
    found = Served()
    yield found
    found.close()


@pytest.fixture
def serve() -> Iterator[Any]:
    made: list[Served] = []

    def make(*arguments: Any, **settings: Any) -> Served:
        made.append(Served(*arguments, **settings))
        return made[-1]

    yield make
    for found in made:
        found.close()
