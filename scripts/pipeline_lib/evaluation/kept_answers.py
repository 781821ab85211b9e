"""The answers to the batches of one (model, task) on disk: a kill loses seconds of them, and none is asked twice.

    answers/sft.gsm8k.jsonl    a journal (stage/journal.py): a line holds the answers to some batches, in their order

A line is written when WRITE_SECONDS are over, and when the asking ends, also by a signal or an error. Where lines are
cut depends on the machine and enters no number: the batches are a function of the requests (batching.py), so every
start makes the same ones, and JSON spells a float64 exactly. A line names its requests and their batches by a digest:
answers to other ones, such as another machine's that cannot share prompts (scoring.py), are not taken for these. It
also holds the number of its first batch, and is read only right after the batches before that: whatever a write that
failed left on the disk, an answer never moves to another batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from pipeline_lib.oom_handler import PiecesThatFit
from pipeline_lib.stage import StageFailure, json_digest
from pipeline_lib.stage.journal import Journal

if TYPE_CHECKING:
    from pipeline_lib.stage import Stage

WRITE_SECONDS = 10.0
"""Time from one line to the next: what a kill can lose, besides the batch in hand."""

Batch = Sequence[int]
"""Places of requests that go through the model together."""


class Asking(Protocol):
    """How the batches of a list of requests are asked."""

    def __call__(
        self, requests: Any, lengths: Sequence[int], batches: Sequence[Batch], ask: Callable[[Batch], list]
    ) -> list[list]:
        """Return what `ask` returns for each batch, in their order.

        requests: JSON that tells these requests from any others; lengths: tokens that the model holds for what is at
        each place; ask: gives a list of JSON values for a batch, for its parts the parts of that list.
        """


def ask_all(
    requests: Any, lengths: Sequence[int], batches: Sequence[Batch], ask: Callable[[Batch], list]
) -> list[list]:
    """Ask every batch, and keep nothing."""
    return [ask(batch) for batch in batches]


class KeptAnswers:
    """An `Asking` that keeps its answers. Use as a context manager: leaving it writes what is waiting."""

    def __init__(self, stage: Stage, key: str):
        """key: of the unit whose requests these are. Reads what earlier starts kept."""
        self._stage = stage
        self._key = key
        self._path = stage.work / "answers" / f"{key}.jsonl"
        self._journal = Journal(self._path) if self._path.exists() else None
        self._known: dict[str, list[list]] = {}
        for record in self._journal.records if self._journal else []:
            answers = self._known.setdefault(record["requests"], [])
            # Otherwise it repeats batches, or one before it was never written: then they are asked again.
            if record["first"] == len(answers):
                answers.extend(record["answers"])
        self._written = {digest: len(answers) for digest, answers in self._known.items()}
        self._written_at = time.monotonic()
        self._pieces = PiecesThatFit(
            tell=lambda: stage.note(
                f"{key}: memory ran out, so batches were done in pieces; only the rounding differs (a smaller"
                " evaluate.batch_tokens avoids it)"
            ),
            alone=f"out of memory: {key}: not even one request fits; set evaluate.dtype to bfloat16, or"
            " evaluate.device to cpu",
        )

    def __call__(
        self, requests: Any, lengths: Sequence[int], batches: Sequence[Batch], ask: Callable[[Batch], list]
    ) -> list[list]:
        """See `Asking`; batches that were answered before are not asked, one that does not fit is asked in pieces.

        Raises StageInterrupted between batches, and StageFailure when not even a single request fits into memory, or
        when the journal holds more answers than there are batches.
        """
        digest = json_digest([requests, batches])
        answers = self._known.setdefault(digest, [])
        if 0 < len(answers) < len(batches):
            known = f"{len(answers):,} of {len(batches):,} batches"
            self._stage.say(f"  {self._key}: {known} were finished before, continuing")
        with self._stage.progress(len(batches), self._key, "batches") as bar:
            bar.skip(len(answers))
            for batch in batches[len(answers) :]:
                parts = self._pieces.run(ask, batch, [lengths[place] for place in batch])
                answers.append([answer for part in parts for answer in part])
                if time.monotonic() - self._written_at >= WRITE_SECONDS:
                    self._write()
                bar.advance(1)
                self._stage.stop_if_interrupted()
        if len(answers) != len(batches):
            raise StageFailure(
                f"{self._path}: {len(answers):,} answers to {len(batches):,} batches of requests; remove the file and"
                " start again"
            )
        return list(answers)

    def _write(self) -> None:
        for digest, answers in self._known.items():
            first = self._written.get(digest, 0)
            if first == len(answers):
                continue
            if self._journal is None:
                self._path.parent.mkdir(exist_ok=True)
                self._journal = Journal(self._path)
            # Counted before it is written: nobody knows what a write that fails left on the disk, so none is repeated.
            self._written[digest] = len(answers)
            self._journal.append({"requests": digest, "first": first, "answers": answers[first:]})
        self._written_at = time.monotonic()

    def __enter__(self) -> KeptAnswers:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._write()
        finally:
            if self._journal is not None:
                self._journal.close()
