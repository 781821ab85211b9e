"""What to do about a source of which every record was dropped: most often its `format` is another than its records'."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from dataset_formatters import FORMAT_HANDLERS, PREFERENCE_HANDLERS, Handler, detect_dataset_format
from dataset_formatters.detect import records_read
from pipeline_lib.stage import Stage, StageFailure

from .originals import SourceFile, read_originals, source_files

SAMPLE = 200
"""Records of a source by which its format is told: under a second of work."""


class Refusals:
    """What was refused of each source; filled by `watch`, read by `check`."""

    def __init__(self) -> None:
        self._first: dict[str, str] = {}
        self._reasons: set[str] = set()
        self._dropped = 0
        self._kept: set[str] = set()

    def watch(self, rows: Iterator[tuple[str, dict[str, Any]]]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Pass the rows of `sorted_out` on."""
        for side, row in rows:
            if side == "dropped":
                self._dropped += 1
                self._reasons.add(row["reason"])
                self._first.setdefault(row["source"], row["detail"])
            else:
                self._kept.add(row["source"])
            yield side, row

    def check(self, stage: Stage, kind: str, handlers: Mapping[str, Handler], train: int) -> None:
        """Note on the card what to do about each source of which nothing is left.

        kind, handlers: of the sources, and the formats that read them. Raises StageFailure, which says it too, when
        `train`, the number of records left to train on, is 0.
        """
        emptied = sorted(self._first.keys() - self._kept)
        files = source_files(stage.input("01_download"), kind) if emptied else []
        remedies = {
            source: advice([file for file in files if file.source == source], handlers)
            or f"the first is {self._first[source]}"
            for source in emptied
        }
        if self._dropped and not train:
            what = "".join(f'; "{source}": {remedy}' for source, remedy in remedies.items())
            raise StageFailure(
                f"no {kind} record is left to train on: all {self._dropped} were dropped"
                f" ({', '.join(sorted(self._reasons))}){what}"
            )
        for source, remedy in remedies.items():
            stage.note(f'every record of "{source}" was dropped: {remedy}')


def advice(files: list[SourceFile], handlers: Mapping[str, Handler]) -> str | None:
    """Return which format reads the files of a source that its own format does not read, None when no other does.

    `handlers`: the formats of the source's kind, which are tried before the others.
    """
    sample = [original.value for original in islice(read_originals(files), SAMPLE)]
    given = files[0].format
    if 2 * records_read(sample, {given: handlers[given]})[given] > len(sample):
        return None
    if found := detect_dataset_format(sample, handlers):
        return f"they look like {found}: set format: {found}"
    found = detect_dataset_format(sample, FORMAT_HANDLERS)
    if found is None:
        return None
    made, kind = ("preference pairs", "preference") if found in PREFERENCE_HANDLERS else ("conversations", "sft")
    return f"they look like {found}, which makes {made}: set kind: {kind} and format: {found}"
