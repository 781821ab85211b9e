"""What stage 01 asks of a place that data comes from.

A source says what it is, which resumable units it falls into, and yields the records of one unit. It writes
nothing: `writer.py` turns records into files, so that a new source is one class with three methods
(docs/add_a_source.md).

Records, by kind
    text          {"key": str, "text": str, "url": str, "origin": str (optional), "license": str (optional),
                  "unstated_license": UnstatedLicense (optional)}; `key` names the record within its source and stays
                  the same between runs (a path and byte offset, a module name, an id of the data set); `origin` says
                  for people where it was read (file:line, file and row).
    other kinds   the data set's original record, unchanged: the formatters of stages 06 and 08 read it. An object, or a
                  list of objects where its format has that (a chat as its bare turns).

A record that the source itself had to give up (a file that does not parse, a row without the named column) is
yielded as `Dropped(reason, bytes)` in its place, so that the ledger can account for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

Record = dict[str, Any] | list[dict[str, Any]]

CATALOG = "sources.json"
"""What the stage says of its sources, in its folder."""

KINDS = ("text", "sft", "reasoning", "preference", "domain", "eval")


@dataclass(frozen=True)
class Dropped:
    """A record that came in and is not handed on, with the reason that the ledger shows.

    `documents=0` says that only a part of a document, `bytes` long, was taken out of it. `where` (file:line or
    row) is for the first few examples shown to the user; it is empty when there is nothing to point at.
    """

    reason: str
    bytes: int = 0
    documents: int = 1
    where: str = ""


@dataclass(frozen=True)
class UnstatedLicense:
    """Says of a text record that the field its source reads licences from states none; that of the source holds then.

    where: file:line or row; field: the one that was asked; fields: those that the record has.
    """

    where: str
    field: str
    fields: tuple[str, ...]


@dataclass(frozen=True)
class Workbench:
    """What the stage lends to sources that download: a scratch folder, a voice, and the moment to stop.

    The scratch folder outlives a kill (it lies in the stage's work folder) and is not part of the output. `pause`
    raises when SIGINT or SIGTERM asked the stage to stop: long transfers and waits call it often. `while_waiting` lets
    the signal raise at once in its block, for a call that returns only when a server answers. `reader` names one of
    several processes that read a source at once; each keeps downloads of its own. `note` takes a line for the card;
    only the process that prints the card has one. `published` is what the last publication says of each source (its
    `provenance`), by kind/name; see growth.py.
    """

    scratch: Path
    say: Callable[[str], None] = print
    pause: Callable[[], None] = lambda: None
    while_waiting: Callable[[], AbstractContextManager[None]] = nullcontext
    reader: str = ""
    note: Callable[[str], None] = lambda line: None
    published: Mapping[str, dict[str, Any]] = field(default_factory=dict)


@runtime_checkable
class Source(Protocol):
    """One data set: see the module's head for the records that `read` yields."""

    name: str
    kind: str
    format: str
    license: str

    def fingerprint(self) -> dict[str, Any]:
        """JSON that changes when the data to be read changes: paths and digests, a hub revision, versions."""
        ...

    def units(self) -> list[str]:
        """Names of the resumable units, in the order in which their records are written. Cheap; no download."""
        ...

    def read(self, unit: str) -> Iterator[Record | Dropped]:
        """The records of one unit, in the same order every time."""
        ...

    def provenance(self) -> dict[str, Any]:
        """JSON for sources.json, asked after reading: the pinned commit, the files and digests that were read."""
        ...


@runtime_checkable
class ReadsAhead(Protocol):
    """A source whose records cost processor time: it prepares several units at once."""

    def read_all(self, units: Sequence[str]) -> Iterator[Iterable[Record | Dropped]]:
        """What `read` yields for each of the units, in their order."""
        ...
