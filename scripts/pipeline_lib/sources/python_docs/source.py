"""The python_docs sources: pretraining text and every derived set, each as a `Source` over one shared harvest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline_lib.config.download import PythonDocsSettings
from pipeline_lib.config.sources import SourceSettings
from pipeline_lib.stage import UserError, json_digest

from ..base import Dropped, Record, Source
from .arithmetic import problems
from .chat import chat_examples
from .choices import choice_questions
from .domain import evaluation_signatures, training_signatures
from .harvest import Harvest
from .material import Material, Split
from .preference import evaluation_pairs, training_pairs
from .splits import draw

DOCUMENT_LICENSES = "licences of the documented packages"
BEYOND = "beyond the requested number"
ONLY_UNIT = "all"


class PythonDocsText:
    """One document per documented module; the units are read by several processes."""

    kind = "text"
    format = "text"
    license = DOCUMENT_LICENSES

    def __init__(self, name: str, harvest: Harvest):
        self.name = name
        self._harvest = harvest

    def fingerprint(self) -> dict[str, Any]:
        """The interpreter and the distributions."""
        return self._harvest.fingerprint

    def provenance(self) -> dict[str, Any]:
        """What was read, for sources.json."""
        return self.fingerprint()

    def units(self) -> list[str]:
        """Runs of files."""
        return self._harvest.units()

    def read(self, unit: str) -> Iterator[Record | Dropped]:
        """The documents of one run of files."""
        for records in self._harvest.records([unit]):
            yield from records

    def read_all(self, units: Sequence[str]) -> Iterator[Iterable[Record | Dropped]]:
        """What `read` yields for each of the units, in order, prepared in parallel."""
        return self._harvest.records(units)


@dataclass(frozen=True)
class DerivedSet:
    """A set made from the harvest: the records that one call yields."""

    name: str
    kind: str
    format: str
    license: str
    _fingerprint: Callable[[], dict[str, Any]]
    _records: Callable[[], Iterable[Record | Dropped]]

    def fingerprint(self) -> dict[str, Any]:
        """A digest of the distributions; nothing for generated problems, which only the code decides."""
        return self._fingerprint()

    def provenance(self) -> dict[str, Any]:
        """What was read, for sources.json."""
        return self.fingerprint()

    def units(self) -> list[str]:
        """One unit: the sets are small, and each is a choice among all items."""
        return [ONLY_UNIT]

    def read(self, unit: str) -> Iterator[Record | Dropped]:
        """All records of the set."""
        return iter(self._records())


class PythonDocs:
    """Makes the sources of type python_docs of one run; they share the harvest and the material."""

    def __init__(self, settings: PythonDocsSettings, scratch: Path, workers: int):
        self._settings = settings
        self._harvest = Harvest(settings.distributions, scratch / "python_docs", workers)
        self._material = Material(self._harvest)

    def sources(self, entry: SourceSettings) -> list[Source]:
        """The sources that one entry of `download.sources` stands for: one, or one per evaluation task.

        Raises UserError when the entry asks for another format than the set has.
        """
        if entry.license:
            raise UserError(
                f"download.sources '{entry.name}': python_docs takes licences from the packages; remove `license`"
            )
        if entry.kind == "text":
            found: list[Source] = [PythonDocsText(entry.name, self._harvest)]
        elif entry.kind == "eval":
            found = self._evaluation_sets()
        else:
            found = [self._training_set(entry.name, entry.kind)]
        if entry.format and entry.format != found[0].format:
            raise UserError(
                f"download.sources '{entry.name}': python_docs makes format {found[0].format} for kind {entry.kind}, "
                f"not {entry.format}; remove `format`"
            )
        return found

    def _fingerprint(self) -> dict[str, Any]:
        """A digest: the list itself stands with the text source or is the same in every set."""
        return {"environment": json_digest(self._harvest.fingerprint)}

    def _training_set(self, name: str, kind: str) -> Source:
        asked = self._settings
        match kind:
            case "sft":
                return self._derived(name, kind, "alpaca", "sft", chat_examples, asked.chat_examples)
            case "preference":
                return self._derived(name, kind, "preference", "preference", training_pairs, asked.preference_pairs)
            case "domain":
                return self._derived(name, kind, "alpaca", "domain", training_signatures, asked.domain_examples)
            case _:
                return _generated(name, "reasoning", "gsm8k", asked.arithmetic_problems, for_evaluation=False)

    def _evaluation_sets(self) -> list[Source]:
        asked = self._settings
        return [
            self._derived("python_choice", "eval", "eval", "eval", choice_questions, asked.choice_questions),
            _generated("arithmetic", "eval", "eval", asked.arithmetic_questions, for_evaluation=True),
            self._derived("preference", "eval", "eval", "eval", evaluation_pairs, asked.preference_questions),
            DerivedSet("heldout_docs", "eval", "eval", DOCUMENT_LICENSES, self._fingerprint, self._held_out_records),
            self._derived("domain", "eval", "eval", "eval", evaluation_signatures, asked.domain_questions),
        ]

    def _derived(
        self,
        name: str,
        kind: str,
        format: str,
        split: str,
        make: Callable[[Sequence], Iterable[Record | Dropped]],
        count: int,
    ) -> Source:
        def records() -> Iterator[Record | Dropped]:
            material = self._split(split, name)
            yield from limited(make(material.items), count, f"{kind}/{name}")
            for reason, number in sorted(material.dropped.items()):
                yield Dropped(reason, documents=number)

        return DerivedSet(name, kind, format, DOCUMENT_LICENSES, self._fingerprint, records)

    def _split(self, split: str, name: str) -> Split:
        material = self._material.splits[split]
        if not material.items:
            raise UserError(
                f"download.sources '{name}': the distributions {self._settings.distributions} hold no described name "
                f"for it; name more of them under download.python_docs.distributions"
            )
        return material

    def _held_out_records(self) -> Iterator[Record | Dropped]:
        documents, dropped = self._material.held_out(self._settings.heldout_characters)
        yield from limited(
            ({"text": document.text, "id": document.module} for document in documents),
            self._settings.heldout_documents,
            "eval/heldout_docs",
        )
        for reason, number in sorted(dropped.items()):
            yield Dropped(reason, documents=number)


def _generated(name: str, kind: str, format: str, count: int, for_evaluation: bool) -> Source:
    return DerivedSet(name, kind, format, "MIT", dict, lambda: problems(count, for_evaluation))


def limited(records: Iterable[Record | Dropped], count: int, key: str) -> Iterator[Record | Dropped]:
    """The first `count` records in an order decided by hashes of their ids, then what was dropped, summed up."""
    kept: list[Record] = []
    dropped: Counter[str] = Counter()
    for record in records:
        if isinstance(record, Dropped):
            dropped[record.reason] += record.documents
        elif len(kept) < count:
            kept.append(record)
        else:
            dropped[BEYOND] += 1
    yield from sorted(kept, key=lambda record: draw("shuffle", key, record["id"]))
    for reason, number in sorted(dropped.items()):
        yield Dropped(reason, documents=number)
