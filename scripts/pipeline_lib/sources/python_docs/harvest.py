"""The one pass over the source files from which text documents and every derived set come.

Each unit is a run of files with about `UNIT_SOURCE_BYTES` of source. A worker reads, parses and renders one unit,
writes what the derived sets need to a scratch folder (a *catalogue* and the *phrases*), and returns the documents.
So every file is parsed once, a killed run finds the catalogues of finished units again, and the number of workers
shows nowhere.

Scratch files per unit: `<unit>.phrases.npy` (phrases.py) and `<unit>.json`, written last: it vouches for both.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_lib.stage import atomic_path, ordered_map, write_bytes_atomic

from ..base import Dropped, Record
from .discovery import SourceFile, environment, source_files
from .documents import render, training_items
from .extraction import Module, NotParsed, extract, may_have_docstrings
from .phrases import distinct_phrases, occur_in
from .splits import draw, is_held_out
from .summaries import describes, first_sentence, words

if TYPE_CHECKING:
    import numpy as np

UNIT_SOURCE_BYTES = 8_000_000
"""Source bytes per unit: a second of work, 1.7 MB of documents."""


@dataclass(frozen=True, slots=True)
class CatalogItem:
    """A name with a description that can stand alone (summaries.describes)."""

    name: str
    module: str
    kind: str
    signature: str
    parameters: tuple[str, ...]
    summary: str
    docstring: int
    """Hash of the words of the whole docstring."""

    @property
    def short_name(self) -> str:
        """The last part of the dotted name."""
        return self.name.rpartition(".")[2]

    @property
    def owner(self) -> str:
        """The class or module that the name stands in."""
        return self.name.rpartition(".")[0]


@dataclass(frozen=True, slots=True)
class HeldOutDocument:
    """A module kept for evaluation, with the hashes of its longer docstrings."""

    module: str
    text: str
    docstrings: tuple[int, ...]


@dataclass(frozen=True)
class UnitCatalog:
    """What the derived sets need to know of one unit."""

    items: list[CatalogItem]
    held_out: list[HeldOutDocument]
    docstrings: list[int]
    """Hash of every docstring of the unit, described or not."""
    sentences: list[int]
    """Hash of the first sentence of every docstring that has one."""


_ITEM_FIELDS = tuple(field.name for field in fields(CatalogItem))
_HELD_OUT_FIELDS = tuple(field.name for field in fields(HeldOutDocument))


class Harvest:
    """The pass over the environment, shared by the text source and the derived sources of one run."""

    def __init__(self, patterns: Sequence[str], scratch: Path, workers: int):
        self._patterns = tuple(patterns)
        self._scratch = scratch
        self._workers = workers
        self._files_of_unit: dict[str, list[SourceFile]] | None = None

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """The interpreter and every distribution whose files would be read."""
        return {"environment": [list(pair) for pair in environment(self._patterns)]}

    def units(self) -> list[str]:
        """Names of the units, in order."""
        return list(self._units())

    def records(self, units: Sequence[str]) -> Iterator[list[Record | Dropped]]:
        """The text records of each unit, in order; leaves the units' catalogues in the scratch folder."""
        work = [(unit, self._units()[unit]) for unit in units]
        return ordered_map(partial(harvest_unit, scratch=self._scratch), work, min(self._workers, max(1, len(work))))

    def catalogs(self) -> Iterator[UnitCatalog]:
        """The catalogues of all units, in order; units that were not read yet are read now."""
        for _ in self.records([unit for unit in self.units() if not catalog_path(self._scratch, unit).exists()]):
            pass
        for unit in self.units():
            yield read_catalog(self._scratch, unit)

    def known_phrases(self, phrases: np.ndarray) -> np.ndarray:
        """bool [number of phrases]: which of the numbers (phrases.py) stand in a training document."""
        import numpy as np

        known = np.zeros(len(phrases), bool)
        for unit in self.units():
            known |= occur_in(phrases, np.load(phrases_path(self._scratch, unit), allow_pickle=False))
        return known

    def _units(self) -> dict[str, list[SourceFile]]:
        if self._files_of_unit is None:
            self._files_of_unit = group_files(source_files(self._patterns))
        return self._files_of_unit


def group_files(files: Sequence[SourceFile]) -> dict[str, list[SourceFile]]:
    """Cut the ordered files into runs of about UNIT_SOURCE_BYTES."""
    groups: dict[str, list[SourceFile]] = {}
    filled = UNIT_SOURCE_BYTES
    for file in files:
        if filled >= UNIT_SOURCE_BYTES:
            groups[f"modules-{len(groups):04d}"] = group = []
            filled = 0
        group.append(file)
        filled += file.size
    return groups


def harvest_unit(work: tuple[str, list[SourceFile]], scratch: Path) -> list[Record | Dropped]:
    """Read one unit: its records in file order, and its scratch files as a side effect."""
    unit, files = work
    records: list[Record | Dropped] = []
    catalog = UnitCatalog([], [], [], [])
    for file in files:
        module = _read(file)
        if isinstance(module, Dropped):
            records.append(module)
        else:
            _note_items(module, catalog)
            records += _text_records(module, file, catalog)
    phrases = distinct_phrases(record["text"] for record in records if not isinstance(record, Dropped))
    _write_scratch(scratch, unit, catalog, phrases)
    return records


def _read(file: SourceFile) -> Module | Dropped:
    try:
        source = Path(file.path).read_bytes()
    except FileNotFoundError:
        return Dropped("listed by its distribution but not on disk")
    except PermissionError:
        return Dropped("not readable by this user")
    if not may_have_docstrings(source):
        return Dropped("no docstring")
    try:
        return extract(source, file.module)
    except NotParsed as error:
        return Dropped(f"does not parse ({error})")


def _text_records(module: Module, file: SourceFile, catalog: UnitCatalog) -> list[Record | Dropped]:
    """The document, or why there is none, and what was cut out of it."""
    whole = render(module, module.items)
    size = len(whole.encode("utf-8"))
    if not whole:
        return [Dropped("no docstring")]
    if is_held_out(module.name):
        hashes = tuple(text_hash(item.docstring) for item in module.items if len(words(item.docstring)) >= 8)
        catalog.held_out.append(HeldOutDocument(module.name, whole, hashes))
        return [Dropped("held out for evaluation", size)]
    kept = training_items(module)
    text = render(module, kept)
    if not text:
        return [Dropped("all its items are evaluation items", size)]
    record = {"key": module.name, "text": text, "url": file.url, "license": file.license}
    cut = size - len(text.encode("utf-8"))
    return [record, Dropped("evaluation items cut out", cut, documents=0)] if cut else [record]


def _note_items(module: Module, catalog: UnitCatalog) -> None:
    """Enter the module's items; those of a held-out module count as occurrences and are no one's material."""
    held_out = is_held_out(module.name)
    for item in module.items:
        docstring = text_hash(item.docstring)
        catalog.docstrings.append(docstring)
        summary = first_sentence(item.docstring)
        if not summary:
            continue
        catalog.sentences.append(text_hash(summary))
        if not held_out and describes(item, module.name, summary):
            catalog.items.append(
                CatalogItem(item.name, module.name, item.kind, item.signature, item.parameters, summary, docstring)
            )


def text_hash(text: str) -> int:
    """64-bit hash of the words of a text, blind to case, punctuation and markup."""
    return draw(" ".join(words(text)))


def _write_scratch(scratch: Path, unit: str, catalog: UnitCatalog, phrases: np.ndarray) -> None:
    import numpy as np

    with atomic_path(phrases_path(scratch, unit)) as temporary, open(temporary, "wb") as stream:
        np.save(stream, phrases, allow_pickle=False)
    value = {
        "items": [[getattr(item, name) for name in _ITEM_FIELDS] for item in catalog.items],
        "held_out": [[getattr(document, name) for name in _HELD_OUT_FIELDS] for document in catalog.held_out],
        "docstrings": catalog.docstrings,
        "sentences": catalog.sentences,
    }
    write_bytes_atomic(catalog_path(scratch, unit), json.dumps(value, ensure_ascii=False).encode("utf-8"))


def read_catalog(scratch: Path, unit: str) -> UnitCatalog:
    """Read what `harvest_unit` left."""
    value = json.loads(catalog_path(scratch, unit).read_bytes())
    items = [CatalogItem(*fields[:4], tuple(fields[4]), *fields[5:]) for fields in value["items"]]
    held_out = [HeldOutDocument(module, text, tuple(hashes)) for module, text, hashes in value["held_out"]]
    return UnitCatalog(items, held_out, value["docstrings"], value["sentences"])


def catalog_path(scratch: Path, unit: str) -> Path:
    """Where a unit's catalogue lies."""
    return scratch / f"{unit}.json"


def phrases_path(scratch: Path, unit: str) -> Path:
    """Where a unit's phrases lie."""
    return scratch / f"{unit}.phrases.npy"
