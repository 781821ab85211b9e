"""From the rows of a file to the records that a source hands on.

For kind text the named fields become {"key", "text", "url", "origin", "license"}; for every other kind the row is
handed on unchanged, because the formatters read the original records.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from ..config.sources import SourceSettings
from ..stage import UserError
from .base import Dropped, Record, UnstatedLicense
from .file_rows import label_suffix_is_document
from .rows import Row

_ABSENT = object()


def records_of(rows: Iterable[Row | Dropped], label: str, settings: SourceSettings) -> Iterator[Record | Dropped]:
    """The records of one file's rows. Raises UserError when rows were read and every one lacks a named field."""
    documents = label_suffix_is_document(label)
    seen: Counter[str] = Counter()
    example: list[str] = []
    for row in rows:
        if isinstance(row, Row) and settings.kind == "text":
            record = _text_record(row, label, settings, documents)
            if isinstance(record, Dropped):
                example = example or row.fields()
        else:
            record = row.record if isinstance(row, Row) else row
        seen[record.reason if isinstance(record, Dropped) else ""] += 1
        yield record
    for field in (settings.text_field, settings.id_field):
        if field and seen.total() and seen[_no_field(field)] == seen.total():
            raise UserError(
                f"{label}: none of its {seen.total()} records has the field '{field}'; the first has "
                f"{', '.join(example)}; correct `text_field` or `id_field` of source '{settings.name}'"
            )


def field_of(record: dict[str, Any], name: str) -> Any:
    """The value of a field; a dot descends when no field has the dotted name. The marker `_ABSENT` when missing."""
    if name in record:
        return record[name]
    value: Any = record
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            return _ABSENT
        value = value[part]
    return value


def _no_field(name: str) -> str:
    return f"no field '{name}'"


def _text_record(row: Row, label: str, settings: SourceSettings, documents: bool) -> Record | Dropped:
    text_field, url_field = ("text", "url") if documents else (settings.text_field, settings.url_field)
    text = field_of(row.record, text_field)
    if text is _ABSENT:
        return Dropped(_no_field(text_field), bytes=row.bytes, where=row.where)
    if text is not None and not isinstance(text, str):
        return Dropped(f"field '{text_field}' is not text", bytes=row.bytes, where=row.where)
    if text is None or not text.strip():
        return Dropped("empty text", bytes=row.bytes, where=row.where)
    key = f"{label}{row.key}"
    if settings.id_field and not documents:
        identity = field_of(row.record, settings.id_field)
        if identity is _ABSENT or identity is None:
            return Dropped(_no_field(settings.id_field), bytes=row.bytes, where=row.where)
        key = str(identity)
    url = field_of(row.record, url_field)
    url = url if isinstance(url, str) else ""
    record: Record = {"key": key, "text": text, "url": url, "origin": row.where, "license": settings.license}
    if field := settings.license_field:
        if licence := "" if documents else _licence(field_of(row.record, field)):
            record["license"] = licence
        else:
            record["unstated_license"] = UnstatedLicense(row.where, field, tuple(row.fields()))
    return record


def _licence(value: Any) -> str:
    """The licence that a field states, several of them side by side; empty when it states none.

    What joins several is for people to find out: a list says neither AND nor OR.
    """
    names = value if isinstance(value, list) else [value]
    return ", ".join(names) if all(isinstance(name, str) and name.strip() for name in names) else ""
