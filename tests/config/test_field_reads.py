"""A switch that nobody reads is a lie: every field of every section is read by code that is known to hold it."""

import re
import types
from collections.abc import Iterable

import pytest
from field_reads import Key, Program, Read
from pydantic import create_model

from pipeline_lib.config.base import PROJECT_ROOT, Section
from pipeline_lib.config.dpo_data import DpoDataSettings
from pipeline_lib.config.fine_tuning import FineTuningSettings
from pipeline_lib.config.load import _sections_in
from pipeline_lib.config.run import RunConfig
from pipeline_lib.config.sft_data import ChatDataSettings
from pipeline_lib.config.task_files import TaskFile
from pipeline_lib.stage.catalog import STAGES

SCRIPTS = PROJECT_ROOT / "scripts"


def key_of(section: type[Section]) -> Key:
    return section.__module__, section.__name__


def section_of(name: str) -> type[Section]:
    return RunConfig.model_fields[name].annotation


OWNERS: dict[str, tuple[type[Section], ...]] = {
    **{spec.script.removesuffix(".py"): (section_of(spec.section),) for spec in STAGES},
    "pipeline_lib.sources": (section_of("download"),),
    "pipeline_lib.text_cleaning": (section_of("clean"),),
    "pipeline_lib.packing": (section_of("pack"),),
    "pipeline_lib.models": (section_of("model"),),
    "pipeline_lib.pretraining": (section_of("pretrain"),),
    "pipeline_lib.post_training": (FineTuningSettings,),  # what all three of its stages have
    "pipeline_lib.post_training.data_kinds": (ChatDataSettings, DpoDataSettings),
    "pipeline_lib.post_training.prepared_data": (ChatDataSettings, DpoDataSettings),
    "pipeline_lib.post_training.supervised": (section_of("sft"),),
    "pipeline_lib.post_training.preference": (section_of("dpo"),),
    "pipeline_lib.post_training.adapters": (section_of("lora"),),
    "pipeline_lib.evaluation": (section_of("evaluate"),),
    "pipeline_lib.gates": (section_of("gates"),),
}
"""Whose settings `stage.settings` are in a module, or in the modules of a package."""


def owners(module: str) -> set[Key]:
    held = [name for name in OWNERS if module == name or module.startswith(f"{name}.")]
    return {key_of(section) for section in OWNERS[max(held, key=len)]} if held else set()


def every_section() -> list[type[Section]]:
    found: list[type[Section]] = [RunConfig, TaskFile]
    for section in found:
        for field in section.model_fields.values():
            found += [below for below in _sections_in(field.annotation) if below not in found]
    return found


def declaring(section: type[Section], name: str) -> type[Section]:
    """Return the section that a field comes from: a subclass that changes its default has no field of its own."""
    return next(base for base in reversed(section.__mro__) if issubclass(base, Section) and name in base.model_fields)


def unread_fields(sections: Iterable[type[Section]], reads: Iterable[Read]) -> set[str]:
    """Return `Section.field` of every field that is read from no section that has it."""
    sections = list(sections)
    family = {key_of(base): base for each in sections for base in reversed(each.__mro__) if issubclass(base, Section)}
    read = {
        (declaring(family[key], name), name)
        for key, pattern in reads
        if key in family
        for name in family[key].model_fields
        if re.fullmatch(pattern, name)
    }
    declared = {(declaring(section, name), name) for section in sections for name in section.model_fields}
    return {f"{section.__name__}.{name}" for section, name in declared - read}


@pytest.fixture(scope="module")
def program() -> Program:
    """All modules below scripts/."""
    files = {path: path.relative_to(SCRIPTS).with_suffix("") for path in sorted(SCRIPTS.rglob("*.py"))}
    names = {path: ".".join(place.parts).removesuffix(".__init__") for path, place in files.items()}
    stage, context = ("pipeline_lib.stage.stage", "Stage"), ("pipeline_lib.stage.runner", "ActionContext")
    special = {(each, "settings"): owners for each in (stage, context)}
    special |= {(each, "config"): lambda module: {key_of(RunConfig)} for each in (stage, context)}
    packages = [names[path] for path in files if path.name == "__init__.py"]
    return Program({names[path]: path.read_text("utf-8") for path in files}, packages, special)


PLANTED = ("path", "append")
"""Names that no section has and that are read all over the code."""


@pytest.fixture(scope="module")
def reads(program: Program) -> set[Read]:
    names = {name for section in every_section() for name in section.model_fields}
    # The contract itself reads a stage's section, as getattr(config, spec.section).
    contract = {(key_of(RunConfig), spec.section) for spec in STAGES}
    return program.reads({*names, *PLANTED}) | contract


def test_every_field_is_read_by_code(reads: set[Read]):
    unread = unread_fields(every_section(), reads)
    assert not unread, f"fields that no code reads: {sorted(unread)}"


def test_a_field_planted_in_any_section_is_noticed(reads: set[Read]):
    """Also under a name that other things have: `.path` and `.append` are read hundreds of times."""
    handed_on_whole = {key for key, pattern in reads if pattern == ".*"}
    planted = [
        create_model(each.__name__, __base__=each, __module__=each.__module__, **dict.fromkeys(PLANTED, (int, 0)))
        for each in every_section()
    ]
    noticed = {each for each in planted if key_of(each) not in handed_on_whole}
    assert len(noticed) > 20
    assert unread_fields(planted, reads) == {f"{each.__name__}.{name}" for each in noticed for name in PLANTED}


SETTINGS = """
from pydantic import model_validator

from pipeline_lib.config.base import Section


class Rules(Section):
    chained: int = 0
    aliased: int = 0
    looped: int = 0
    max_2gram: int = 0
    max_3gram: int = 0
    name: int = 0


class Whole(Section):
    one: int = 0
    two: int = 0


class Recorded(Section):
    written: int = 0


class Piece(Section):
    item: int = 0
    path: int = 0


class Common(Section):
    inherited: int = 0
    judged: int = 0

    @model_validator(mode="after")
    def _judge(self):
        if self.judged < 0:
            raise ValueError
        return self


class Work(Common):
    rules: Rules = Rules()
    whole: Whole = Whole()
    recorded: Recorded = Recorded()
    pieces: list[Piece] = []
    attribute: int = 0
    returned: int = 0
"""

STAGE = """
class Stage:
    def __init__(self, config, section):
        self.settings = getattr(config, section)
"""

USE = """
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .stage import Stage

if TYPE_CHECKING:
    from planted.settings import Rules, Work


@dataclass
class Job:
    settings: Work

    @property
    def rules(self) -> Rules:
        return self.settings.rules

    def again(self) -> "Work | None":
        return self.settings


class Worker:
    def __init__(self, settings: Work, path):
        self._settings, self._path = settings, path

    def work(self):
        return self._settings.attribute, self._path.name, self._path.path


def chain(stage: Stage):
    return stage.settings.rules.chained + stage.settings.inherited


def alias(job: Job):
    rules = job.rules
    return rules.aliased, (job.again() or job.settings).returned


def loop(settings: "Work"):
    names = ("looped",)
    grams = [getattr(settings.rules, f"max_{n}gram") for n in (2, 3)]
    return grams, [getattr(settings.rules, name) for name in names]


def spread(settings: Work):
    return dict(**settings.whole.model_dump()), settings.recorded.model_dump(mode="json")


def pieces(settings: Work):
    return sorted(piece.item for piece in settings.pieces or ())


def others(anything, job: Job):
    return anything.name, anything.path, anything.judged, anything.written, job.path, job.name
"""


def unread_in(use: str) -> set[str]:
    """Return the unread fields of the sections above when `use` is all the code there is."""
    settings = types.ModuleType("planted.settings")
    exec(SETTINGS, settings.__dict__)
    stage, work = ("planted.stage", "Stage"), ("planted.settings", "Work")
    sources = {"planted": "", "planted.settings": SETTINGS, "planted.stage": STAGE, "planted.use": use}
    program = Program(sources, ["planted"], {(stage, "settings"): lambda module: {work}})
    sections = [each for each in vars(settings).values() if isinstance(each, type) and issubclass(each, Section)]
    names = {name for section in sections for name in section.model_fields}
    return unread_fields(sections, program.reads(names))


NEVER_READ = {"Rules.name", "Piece.path", "Common.judged", "Recorded.written"}


def test_reads_are_told_from_reads_of_the_same_name_elsewhere():
    assert unread_in(USE) == NEVER_READ


@pytest.mark.parametrize(
    ("reading", "field"),
    [
        ("stage.settings.rules.chained", "Rules.chained"),
        ("stage.settings.inherited", "Common.inherited"),
        ("rules.aliased", "Rules.aliased"),
        ("(job.again() or job.settings).returned", "Work.returned"),
        ("self._settings.attribute", "Work.attribute"),
        ("getattr(settings.rules, name)", "Rules.looped"),
        ("getattr(settings.rules, f'max_{n}gram')", "Rules.max_3gram"),
        ("piece.item", "Piece.item"),
        ("**settings.whole.model_dump()", "Whole.two"),
    ],
)
def test_without_its_one_read_a_field_is_unread(reading: str, field: str):
    use = USE.replace("'", '"')
    shortened = use.replace(reading.replace("'", '"'), "" if reading.startswith("**") else "0")
    assert shortened != use and field in unread_in(shortened) - NEVER_READ
