"""Settings of stage 01."""

from pydantic import Field

from .base import Section
from .sources import SourceSettings

BUILT_IN_SOURCES = (
    SourceSettings(name="python_docs", kind="text", type="python_docs"),
    SourceSettings(name="python_chat", kind="sft", type="python_docs"),
    SourceSettings(name="arithmetic", kind="reasoning", type="python_docs"),
    SourceSettings(name="python_pairs", kind="preference", type="python_docs"),
    SourceSettings(name="python_signatures", kind="domain", type="python_docs"),
    SourceSettings(name="python_tasks", kind="eval", type="python_docs"),
)
"""One source per kind from this Python installation: what a run without a `sources:` list uses."""


class PythonDocsSettings(Section):
    """What the python_docs sources read, and how many examples of each kind they make."""

    distributions: list[str] = Field(default=["python", "requirements.txt"], min_length=1)
    """What to read: `python` (standard library), `requirements.txt` (what it installs), patterns; `!name`: not."""
    chat_examples: int = Field(default=8000, gt=0)
    """Chat examples (kind sft), at most."""
    arithmetic_problems: int = Field(default=3000, gt=0, le=10000)
    """Arithmetic word problems with worked solutions (kind reasoning)."""
    preference_pairs: int = Field(default=2500, gt=0)
    """Pairs of a right and a wrong description (kind preference), at most."""
    domain_examples: int = Field(default=2000, gt=0)
    """Signatures with their one-line summaries (kind domain), at most."""
    choice_questions: int = Field(default=600, gt=0)
    """Held-out four-choice questions (kind eval, task python_choice), at most."""
    arithmetic_questions: int = Field(default=200, gt=0, le=1000)
    """Held-out arithmetic word problems (kind eval, task arithmetic)."""
    preference_questions: int = Field(default=400, gt=0)
    """Held-out preference pairs (kind eval, task preference), at most."""
    domain_questions: int = Field(default=300, gt=0)
    """Held-out signatures with their summaries (kind eval, task domain), at most."""
    heldout_documents: int = Field(default=150, gt=0)
    """Held-out module documents (kind eval, task heldout_docs), at most."""
    heldout_characters: int = Field(default=2000, ge=200)
    """Length in characters above which a held-out document is cut at a line end; shorter than 200 is not used."""


class DownloadSettings(Section):
    """Where the data comes from: pretraining text, chat, reasoning, preference and domain sets, evaluation records."""

    sources: list[SourceSettings] = Field(default=list(BUILT_IN_SOURCES), min_length=1)
    """The data sets to read, in this order; each needs a name, a kind and a type (docs/add_a_source.md)."""
    fill_kinds: bool = False
    """Whether kinds that no source of the list has are read from this Python installation, so that all stages run."""
    shard_megabytes: float = Field(default=64.0, gt=0)
    """Text per Parquet shard in MB (10^6 bytes of UTF-8, before compression); a shard also ends where a unit does."""
    python_docs: PythonDocsSettings = PythonDocsSettings()
    """What sources of type python_docs read and make."""

    def missing(self) -> list[SourceSettings]:
        """Return the built-in sources of the kinds that no source of the list has."""
        given = {entry.kind for entry in self.sources}
        return [entry for entry in BUILT_IN_SOURCES if entry.kind not in given]

    def entries(self) -> list[SourceSettings]:
        """Return the sources to read: the list, and what `fill_kinds` adds to it."""
        return [*self.sources, *(self.missing() if self.fill_kinds else ())]
