"""Many places in one text: braces `{000..012}`, `{train,val}`, and globs, here or in a store."""

from __future__ import annotations

import glob
import os
import re

from dinoprobe.datasets.location import filesystem_of, is_remote, local_path
from dinoprobe.datasets.names import utf8
from dinoprobe.errors import DatasetError, DatasetNotFoundError

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_LIMIT = 1_000_000


def expand(place: str) -> list[str]:
    """The places that a pattern names, sorted within a glob; `place` alone when it is no pattern.

    A file or folder whose own name has these characters is taken as it is. Raises
    DatasetNotFoundError when a glob matches nothing.
    """
    if not any(sign in place for sign in "{*?["):
        return [place]
    if not is_remote(place) and os.path.lexists(local_path(place)):
        return [place]
    return [found for one in _braces(place) for found in _matches(one)]


def _braces(text: str) -> list[str]:
    """The texts with the first braces replaced by each choice, and so on for the rest.

    >>> _braces("{a,b}-{08..10}.tar")[:3]
    ['a-08.tar', 'a-09.tar', 'a-10.tar']
    """
    done, pending = [], [text]
    while pending:
        one = pending.pop()
        found = next((m for m in _BRACES.finditer(one) if _choices(m.group(1))), None)
        if found is None:
            done.append(one)
            continue
        start, end = found.span()
        choices = [one[:start] + choice + one[end:] for choice in _choices(found.group(1))]
        pending += reversed(choices)
        if len(done) + len(pending) > _LIMIT:
            raise DatasetError(f"{utf8(text)}: names more than {_LIMIT:,} places. Use fewer.")
    return done


def _choices(inside: str) -> list[str]:
    numbers = _RANGE.fullmatch(inside)
    if numbers is None:
        return inside.split(",") if "," in inside else []
    first, last = numbers.groups()
    if abs(int(last) - int(first)) >= _LIMIT:
        raise DatasetError(f"{{{inside}}}: names more than {_LIMIT:,} places. Use fewer.")
    step = 1 if int(first) <= int(last) else -1
    width = max(len(first), len(last)) if first.startswith("0") or last.startswith("0") else 0
    return [f"{number:0{width}d}" for number in range(int(first), int(last) + step, step)]


def _matches(place: str) -> list[str]:
    if not any(sign in place for sign in "*?["):
        return [place]
    if is_remote(place):
        filesystem, path = filesystem_of(place)
        found = [filesystem.unstrip_protocol(name) for name in filesystem.glob(path)]
    else:
        found = glob.glob(local_path(place), recursive=True)  # noqa: PTH207
    if not found:
        raise DatasetNotFoundError(
            f"{utf8(place)}: nothing matches. Expected a pattern such as 'shards/*.tar'; "
            "check the folder and the suffix."
        )
    return sorted(found)
