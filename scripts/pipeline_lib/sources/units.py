"""Resumable units of a list of files: a share of a large file, or several small files together.

A unit should take seconds, so that a kill costs seconds, and not milliseconds, so that the journal stays small. The
plan depends only on names and sizes, in the order given, and on the borders at which a unit ends whether full or not
(growth.py): the same files and borders always give the same units.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from .file_rows import SHARE_BYTES, shares_of
from .rows import Share

FILES_PER_UNIT = 256
"""Most files in one unit: each HTML page among them costs tens of milliseconds however small it is."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A share of the file with number `file` in the source's list."""

    file: int
    share: Share


def plan_units(names: Sequence[str], sizes: Sequence[int], borders: Collection[int] = ()) -> list[list[Piece]]:
    """The pieces of each unit, in reading order; every byte of every file is in exactly one piece.

    borders: numbers of files that begin a unit; what comes behind one has no part in the units in front of it.
    """
    ends = frozenset(borders)
    units: list[list[Piece]] = []
    room_bytes = room_files = 0
    for file, (name, size) in enumerate(zip(names, sizes, strict=True)):
        count = shares_of(name, size)
        if count > 1:
            units.extend([Piece(file, Share(index, count))] for index in range(count))
            room_files = 0
            continue
        if room_files == 0 or size > room_bytes or file in ends:
            units.append([])
            room_bytes, room_files = SHARE_BYTES, FILES_PER_UNIT
        units[-1].append(Piece(file, Share()))
        room_bytes, room_files = room_bytes - size, room_files - 1
    return units


def unit_names(units: Sequence[Sequence[Piece]]) -> list[str]:
    """One name per unit, in order: files are counted from 1, and a share is named with its file."""
    names = []
    for number, pieces in enumerate(units):
        first, last = pieces[0], pieces[-1]
        span = f"file-{first.file + 1}" if first.file == last.file else f"files-{first.file + 1}-{last.file + 1}"
        part = f"-part-{first.share.index + 1}-of-{first.share.count}" if first.share.count > 1 else ""
        names.append(f"{number:05d}-{span}{part}")
    return names
