"""The described names of the environment, sorted into the splits that the derived sets are made of.

Three promises are kept here and tested in tests/sources/test_python_docs_leaks.py:
- a name is in one split (splits.py decides by its hash);
- a description is the material of one name only: the first one in alphabetical order;
- the description of an evaluation item stands in no training document, and its docstring under no other name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .harvest import CatalogItem, Harvest, HeldOutDocument, UnitCatalog, text_hash
from .phrases import occur_in, phrase_numbers
from .splits import draw, split_of

REPEATED = "its description or docstring occurs under another name"
IN_TRAINING_TEXT = "its description stands in a training document"
SHARES_A_DOCSTRING = "shares a docstring with another module"
MOSTLY_KNOWN = "more than half of its phrases stand in training documents"
TOO_SHORT = "too short"


@dataclass(frozen=True)
class Split:
    """The items of one split in an order decided by hashes, and how many were left out for which reason."""

    items: list[CatalogItem]
    dropped: Counter[str]


class Material:
    """Everything that the derived sets are made of; read from the harvest on first use."""

    def __init__(self, harvest: Harvest):
        self.harvest = harvest

    @cached_property
    def _catalogs(self) -> list[UnitCatalog]:
        return list(self.harvest.catalogs())

    @cached_property
    def _occurrences(self) -> tuple[Counter[int], Counter[int]]:
        """How often each first sentence and each docstring occurs anywhere, held-out modules included."""
        sentences: Counter[int] = Counter()
        docstrings: Counter[int] = Counter()
        for catalog in self._catalogs:
            sentences.update(catalog.sentences)
            docstrings.update(catalog.docstrings)
        return sentences, docstrings

    @cached_property
    def splits(self) -> dict[str, Split]:
        """The splits text, sft, preference, domain and eval."""
        every = sorted((item for catalog in self._catalogs for item in catalog.items), key=lambda item: item.name)
        splits = {name: Split([], Counter()) for name in ("text", "sft", "preference", "domain", "eval")}
        sentences, docstrings = self._occurrences
        names: set[str] = set()
        descriptions: set[int] = set()
        for item in every:
            name = split_of(item.name)
            description = text_hash(item.summary)
            unique = sentences[description] == 1 and docstrings[item.docstring] == 1
            if item.name in names or description in descriptions or (name == "eval" and not unique):
                splits[name].dropped[REPEATED] += 1
            else:
                splits[name].items.append(item)
            names.add(item.name)
            descriptions.add(description)
        for name, split in splits.items():
            split.items.sort(key=lambda item: draw("order", name, item.name))
        splits["eval"] = self._without_leaks(splits["eval"])
        return splits

    def _without_leaks(self, split: Split) -> Split:
        leaked = self.leaked([item.summary for item in split.items])
        kept = [item for item, known in zip(split.items, leaked, strict=True) if not known]
        return Split(kept, split.dropped + Counter({IN_TRAINING_TEXT: len(split.items) - len(kept)}))

    def leaked(self, texts: Sequence[str]) -> list[bool]:
        """Whether every five-word phrase of each text stands in a training document."""
        return [share == 1.0 for share in self._known_shares(texts)]

    def _known_shares(self, texts: Sequence[str]) -> list[float]:
        """The share (0 to 1) of each text's phrases that stand in training documents; 1 for a text without phrases."""
        phrases = [phrase_numbers(text) for text in texts]
        if not phrases:
            return []
        distinct = np.unique(np.concatenate(phrases))
        known = distinct[self.harvest.known_phrases(distinct)]
        return [float(np.mean(occur_in(numbers, known))) if len(numbers) else 1.0 for numbers in phrases]

    def held_out(self, characters: int, fewest_characters: int = 200) -> tuple[list[HeldOutDocument], Counter[str]]:
        """Held-out documents cut to `characters` at a line end, in hash order, without near-copies of training text."""
        _, docstrings = self._occurrences
        every = [document for catalog in self._catalogs for document in catalog.held_out]
        every.sort(key=lambda document: draw("order", document.module))
        cut = [HeldOutDocument(d.module, _cut(d.text, characters), d.docstrings) for d in every]
        dropped: Counter[str] = Counter()
        kept = []
        for document, share in zip(cut, self._known_shares([d.text for d in cut]), strict=True):
            if len(document.text) < fewest_characters:
                dropped[TOO_SHORT] += 1
            elif any(docstrings[number] > 1 for number in document.docstrings):
                dropped[SHARES_A_DOCSTRING] += 1
            elif share > 0.5:
                dropped[MOSTLY_KNOWN] += 1
            else:
                kept.append(document)
        return kept, dropped


def _cut(text: str, characters: int) -> str:
    """At most `characters` of the text, ending at a line end where there is one."""
    if len(text) <= characters:
        return text
    end = text.rfind("\n", 0, characters)
    return text[: end + 1] if end > 0 else text[:characters]
