"""Nothing that is asked in an evaluation stands in anything that is trained on.

The oracle is the plain one: every evaluation answer is searched, word by word, in every training text. It is asked on
the real standard library and on made-up packages that are full of repeated and quoted descriptions.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from installed_packages import install

from pipeline_lib.config.download import BUILT_IN_SOURCES, PythonDocsSettings
from pipeline_lib.sources.base import Dropped
from pipeline_lib.sources.python_docs import discovery, splits
from pipeline_lib.sources.python_docs.extraction import extract
from pipeline_lib.sources.python_docs.source import PythonDocs
from pipeline_lib.sources.python_docs.summaries import words

TRAINING = ("sft", "preference", "domain")


@dataclass
class Sets:
    """All records of one run of the python_docs sources, by kind and name."""

    records: dict[str, list[dict[str, Any]]]
    dropped: dict[str, Counter[str]]
    names_of_docstring: dict[str, set[str]]
    """Every documented name of every file, by the words of its docstring."""

    def descriptions(self, kind: str) -> set[str]:
        """Every description that a training set holds, as words."""
        found: set[str] = set()
        for name, records in self.records.items():
            if not name.startswith(f"{kind}/"):
                continue
            for record in records:
                if kind == "preference":
                    found |= {record[side][0]["content"] for side in ("chosen", "rejected")}
                elif kind == "domain" or record["id"].endswith("#what"):
                    found.add(record["output"])
        return {plain(text) for text in found}


def plain(text: str) -> str:
    return " ".join(words(text))


def make_sets(patterns: list[str], scratch: Path, **sizes: int) -> Sets:
    everything = {
        name: 10**6 for name in PythonDocsSettings.model_fields if name not in ("distributions", "heldout_characters")
    }
    everything |= {"arithmetic_problems": 50, "arithmetic_questions": 50, **sizes}
    maker = PythonDocs(PythonDocsSettings(distributions=patterns, **everything), scratch, workers=1)
    records: dict[str, list[dict[str, Any]]] = {}
    dropped: dict[str, Counter[str]] = {}
    for entry in BUILT_IN_SOURCES:
        for source in maker.sources(entry):
            name = f"{source.kind}/{source.name}"
            records[name], dropped[name] = [], Counter()
            for unit in source.units():
                for record in source.read(unit):
                    if isinstance(record, Dropped):
                        dropped[name][record.reason] += record.documents
                    else:
                        records[name].append(record)
    names: dict[str, set[str]] = defaultdict(set)
    for file in discovery.source_files(tuple(patterns)):
        for item in extract(Path(file.path).read_bytes(), file.module).items:
            names[plain(item.docstring)].add(item.name)
    return Sets(records, dropped, names)


SUBJECTS = (
    "the file",
    "a row of the table",
    "every open socket",
    "the head of the queue",
    "each leaf of a tree",
    "the log",
)
VERBS = ("Return", "Count", "Delete", "Write", "Compare", "Visit")
MANNERS = ("and its parents", "without waiting for it", "in sorted order", "or raise an error", "as a list of bytes")


def made_up_packages(seed: int) -> dict[str, str]:
    """Modules whose docstrings repeat, quote and extend one another: 180 sentences for about 1,200 docstrings."""
    draw = random.Random(seed)

    def sentence() -> str:
        return f"{draw.choice(VERBS)} {draw.choice(SUBJECTS)} {draw.choice(MANNERS)}."

    def docstring() -> str:
        first = sentence()
        if draw.random() < 0.1:  # told with markup, line breaks and capitals: still the same words
            first = first.replace(" ", "\n    ", 2).replace("the ", "``the`` ").upper()
        rest = f"\n\n    See also: {sentence()}" if draw.random() < 0.05 else ""
        return f'"""{first}{rest}"""'

    files = {}
    for number in range(60):
        lines = [docstring() if draw.random() < 0.3 else f'"""Module {number}."""']
        for item in range(20):
            own = f'"""Do number {draw.randrange(10**9)} of {draw.choice(SUBJECTS)} {draw.choice(MANNERS)}."""'
            lines.append(f"def function_{item}(x, y=1):\n    {own if draw.random() < 0.5 else docstring()}")
        files[f"made_up/module_{number}.py"] = "\n".join(lines)
    return files


@pytest.fixture(scope="module", params=["standard library", 1, 2, 3])
def sets(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sets]:
    """All sets made of the standard library, or of made-up packages with the seed 1, 2 or 3."""
    if request.param == "standard library":
        yield make_sets(["python"], tmp_path_factory.mktemp("harvest"))
        return
    site = tmp_path_factory.mktemp("site")
    install(site, "made-up", made_up_packages(request.param))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        discovery._distributions.cache_clear()
        yield make_sets(["made-up"], tmp_path_factory.mktemp("harvest"))
    discovery._distributions.cache_clear()


def asked_names_and_answers(sets: Sets) -> dict[str, str]:
    """Name and right description of everything that is asked about."""
    asked: dict[str, str] = {}
    for record in sets.records["eval/python_choice"]:
        asked[record["id"]] = record["choices"][record["answer"]]
    for record in sets.records["eval/domain"]:
        asked[record["id"]] = record["output"]
    for record in sets.records["eval/preference"]:
        asked[record["id"]] = record["chosen"]
    return asked


def test_every_set_has_records(sets: Sets):
    empty = {name for name, records in sets.records.items() if not records}
    assert len(sets.records) == 10
    assert empty <= {"eval/heldout_docs"}  # of 60 made-up modules none may be left to hold out


def test_no_answer_stands_in_any_training_text(sets: Sets):
    answers = {plain(answer) for answer in asked_names_and_answers(sets).values()}
    answers |= {plain(choice) for record in sets.records["eval/python_choice"] for choice in record["choices"]}
    answers |= {plain(record["rejected"]) for record in sets.records["eval/preference"]}
    texts = [f" {plain(record['text'])} " for record in sets.records["text/python_docs"]]
    texts += [f" {description} " for kind in TRAINING for description in sets.descriptions(kind)]
    everything = "\n".join(texts)
    assert [answer for answer in answers if f" {answer} " in everything] == []


def test_no_name_is_in_two_splits(sets: Sets):
    seen: dict[str, str] = {}
    for name, records in sets.records.items():
        kind = name.partition("/")[0]
        if kind in ("text", "reasoning") or name in ("eval/arithmetic", "eval/heldout_docs"):
            continue
        for record in records:
            item = record["id"].partition("#")[0]
            assert seen.setdefault(item, kind) == kind, item


def test_no_description_is_in_two_splits(sets: Sets):
    groups = {kind: sets.descriptions(kind) for kind in TRAINING}
    groups["eval"] = {plain(answer) for answer in asked_names_and_answers(sets).values()}
    names = sorted(groups)
    for index, one in enumerate(names):
        for other in names[index + 1 :]:
            assert groups[one] & groups[other] == set(), (one, other)


def test_held_out_modules_are_in_no_document_and_no_training_set(sets: Sets):
    held_out = {record["id"] for record in sets.records["eval/heldout_docs"]}
    assert all(splits.is_held_out(module) for module in held_out)
    assert held_out.isdisjoint(record["key"] for record in sets.records["text/python_docs"])
    assert not [record["key"] for record in sets.records["text/python_docs"] if splits.is_held_out(record["key"])]
    for kind in TRAINING:
        for name, records in sets.records.items():
            if name.startswith(f"{kind}/"):
                owners = {record["id"].partition("#")[0].rpartition(".")[0] for record in records}
                assert held_out.isdisjoint(owners)


def test_items_asked_about_are_shown_in_no_document(sets: Sets):
    """Neither header nor docstring of an evaluation item is in the text, although their module is."""
    texts = {record["key"]: record["text"] for record in sets.records["text/python_docs"]}
    for item in asked_names_and_answers(sets):
        assert splits.split_of(item) == "eval"
        module = item.rpartition(".")[0]
        if module in texts:
            assert f"def {item}(" not in texts[module] and f"class {item}\n" not in texts[module]


def test_a_docstring_with_two_names_is_never_asked_about(sets: Sets):
    asked = asked_names_and_answers(sets)
    shared = {name for names in sets.names_of_docstring.values() if len(names) > 1 for name in names}
    assert shared and shared.isdisjoint(asked)


def test_repeated_and_quoted_descriptions_are_not_asked(sets: Sets):
    dropped = sets.dropped["eval/python_choice"]
    assert dropped["its description or docstring occurs under another name"] > 4
    assert dropped["its description stands in a training document"] > 0
