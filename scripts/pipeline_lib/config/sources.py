"""One entry of `download.sources`: where a data set comes from, what it is for and how its records are shaped.

Four types of source share one section because a reader of a YAML thinks of "a source", not of four classes:
`python_docs` (the corpus every machine has), `hub` (a Hugging Face data set), `http` (files behind a URL) and
`local` (files on this disk). A key that does not belong to the chosen type is an error, never ignored.
"""

from typing import Literal, get_args

from pydantic import Field, model_validator

from .base import Section
from .patterns import HTTP_ADDRESS, HUB_REPOSITORY, SHA256, SOURCE_NAME

SourceKind = Literal["text", "sft", "reasoning", "preference", "domain", "eval"]
SourceType = Literal["python_docs", "hub", "http", "local"]
ChatFormat = Literal[
    "messages", "alpaca", "sharegpt", "dolly", "oasst", "openorca", "cot-collection",
    "gsm8k", "orca-math", "metamath", "mathinstruct", "math", "aqua", "arc", "logiqa",
    "glaive", "hermes", "xlam", "gorilla", "toolbench",
]  # fmt: skip
PairFormat = Literal[
    "preference", "sharegpt-preference", "hh-rlhf", "orca-dpo", "openai-preference", "ultrafeedback", "stack-exchange",
]  # fmt: skip
RecordFormat = Literal["text", "eval", ChatFormat, PairFormat]

CHAT_FORMATS: tuple[str, ...] = get_args(ChatFormat)
FORMATS_OF_KIND: dict[str, tuple[str, ...]] = {
    "text": ("text",),
    "sft": CHAT_FORMATS,
    "reasoning": CHAT_FORMATS,
    "preference": get_args(PairFormat),
    "domain": CHAT_FORMATS,
    "eval": ("eval",),
}

FORMATS_WITH_LISTS = ("messages",)
"""Formats in which a record may also be a list of objects, without an object around it."""

FILE_TYPES = ("hub", "http", "local")
TYPES_OF_FIELD: dict[str, tuple[str, ...]] = {
    "paths": ("local",),
    "urls": ("http",),
    "repo": ("hub",),
    "config_name": ("hub",),
    "split": ("hub",),
    "revision": ("hub",),
    "files": ("hub",),
    "document_separator": FILE_TYPES,
    "text_field": FILE_TYPES,
    "id_field": FILE_TYPES,
    "url_field": FILE_TYPES,
    "license_field": FILE_TYPES,
    "attempts": ("hub", "http"),
    "timeout_seconds": ("hub", "http"),
    "longest_wait_seconds": ("hub", "http"),
}
"""Which types of source read a field that not all of them read."""

FIELDS_OF_TEXT = ("document_separator", "text_field", "id_field", "url_field", "license_field")
"""What is read of a source of kind text only: records of the other kinds are handed on as they are."""

REQUIRED_OF_TYPE = {"local": "paths", "http": "urls", "hub": "repo"}


class HttpFile(Section):
    """One file to download and the digest that proves it is the right one."""

    url: str = Field(pattern=HTTP_ADDRESS)
    """Address of the file; the suffix of its path (.jsonl, .parquet, .warc.gz ...) tells how it is read."""
    sha256: str = Field(pattern=SHA256)
    """SHA-256 of the whole file, 64 hexadecimal digits; a download with another digest is refused."""


class SourceSettings(Section):
    """One data set: its name, its purpose, and where its records are read from."""

    name: str = Field(pattern=SOURCE_NAME, max_length=64)
    """Name of the source in file names, ledgers and cards; lower case, unique among the sources of one kind."""
    kind: SourceKind
    """What the records are for: pretraining text, chat, reasoning, preference pairs, a LoRA domain, or evaluation."""
    type: SourceType
    """Where the records come from: python_docs (this installation), hub, http or local."""
    format: RecordFormat | None = None
    """Shape of the records; may be left out for kinds with one shape (text, eval)."""
    license: str = ""
    """Licence of the data as its owner states it, for example an SPDX name; recorded with every document."""

    max_documents: int | None = Field(default=None, gt=0)
    """Keep at most this many records of the source, in their fixed order, and stop reading; none means all of them."""

    paths: list[str] = []
    """local: files, folders or globs (`**` descends), relative to the project root; each is read sorted by name."""
    urls: list[HttpFile] = []
    """http: the files to download, each with its SHA-256."""
    repo: str | None = Field(default=None, pattern=HUB_REPOSITORY)
    """hub: the data set's repository, for example HuggingFaceFW/fineweb-edu."""
    config_name: str | None = None
    """hub: the configuration (subset) of the data set; none means its default."""
    split: str = "train"
    """hub: the split of the configuration to read."""
    revision: str = "main"
    """hub: branch, tag or commit to read; whatever it names is pinned to a commit when the run first reads it."""
    files: list[str] = []
    """hub: globs of data files to read instead of a configuration's split, for example sample/10BT/000_*.parquet."""

    document_separator: str | None = Field(default=None, min_length=1)
    """txt and md: the line that stands between two documents of one file; none means one document per file."""
    text_field: str = "text"
    """text: the field or column that holds the document; a dot descends into a nested record."""
    id_field: str | None = None
    """text: the field that identifies a record within the source; none means file name and row number."""
    url_field: str = "url"
    """text: the field that holds the address a document was found at; records without it have none."""
    license_field: str | None = None
    """text: the field that holds a document's own licence; none means the licence of the source."""

    MEANS = ("attempts", "timeout_seconds", "longest_wait_seconds")

    attempts: int = Field(default=6, ge=1, le=100)
    """hub and http: how often a request is tried before the stage fails, counted anew after every byte of progress."""
    timeout_seconds: float = Field(default=60.0, gt=0)
    """hub and http: seconds of silence on a connection after which it is given up and tried again."""
    longest_wait_seconds: float = Field(default=120.0, gt=0)
    """hub and http: the longest pause in seconds before a retry; a server that asks for more fails the stage."""

    @property
    def record_format(self) -> str:
        """The shape of the records, with the default of the kind filled in."""
        return self.format or FORMATS_OF_KIND[self.kind][0]

    @model_validator(mode="after")
    def _fields_fit_the_type(self) -> "SourceSettings":
        for field in sorted(self.model_fields_set & TYPES_OF_FIELD.keys()):
            allowed = TYPES_OF_FIELD[field]
            if self.type not in allowed:
                raise ValueError(
                    f"source '{self.name}': `{field}` has no meaning for type {self.type} "
                    f"(only for {', '.join(allowed)}); remove it or change `type`"
                )
        required = REQUIRED_OF_TYPE.get(self.type)
        if required and not getattr(self, required):
            raise ValueError(f"source '{self.name}': type {self.type} needs `{required}`")
        if self.files and {"config_name", "split"} & self.model_fields_set:
            raise ValueError(f"source '{self.name}': give either `files` or `config_name`/`split`, not both")
        return self

    @model_validator(mode="after")
    def _fields_fit_the_kind(self) -> "SourceSettings":
        if self.kind != "text" and (given := sorted(self.model_fields_set & set(FIELDS_OF_TEXT))):
            raise ValueError(
                f"source '{self.name}': `{given[0]}` has no meaning for kind {self.kind}, whose records are kept as"
                " they are (only for text); remove it"
            )
        return self

    @model_validator(mode="after")
    def _format_fits_the_kind(self) -> "SourceSettings":
        allowed = FORMATS_OF_KIND[self.kind]
        if self.format is None and len(allowed) > 1 and self.type != "python_docs":
            raise ValueError(
                f"source '{self.name}': kind {self.kind} needs a `format`: one of {', '.join(allowed)};"
                " `PYTHONPATH=scripts python -m dataset_formatters FILE` tells which one a file is in"
            )
        if self.format is not None and self.format not in allowed:
            raise ValueError(
                f"source '{self.name}': format {self.format} does not fit kind {self.kind}; use {', '.join(allowed)}"
            )
        return self
