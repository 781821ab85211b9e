"""Prepared conversations and pairs as tokenised examples, with every left-out one in the ledger.

The columns are the ones TRL's trainers make for themselves (`input_ids` and `labels`; `prompt_ids`, `chosen_ids` and
`rejected_ids`), so their own preparation, which truncates without a word, has nothing left to do. Integers stay in
Arrow columns: four bytes per token instead of the eight and more of Python lists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow
import pyarrow.parquet as parquet

from pipeline_lib.stage import Ledger
from pipeline_lib.stage.ledger import NOT_REACHED, SET_ASIDE

from .chat_tokens import TokenizedConversation, TokenizedPair, tokenize_conversations, tokenize_pairs
from .pair_checks import judge_length
from .prepared_data import Verdict

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""The label of a token that bears no loss (torch's cross-entropy default)."""

CUT = "pairs with a cut answer"
"""What the ledger counts among the pairs that are not dropped."""

_ROWS = 5_000


@dataclass(frozen=True)
class Examples:
    """Tokenised examples: an Arrow table of the trainer's columns, and each example's length in tokens.

    origins: flow and source of each example in the ledger; none for sequences of several examples.
    """

    table: pyarrow.Table
    lengths: list[int]
    origins: list[tuple[str, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.lengths)

    def dataset(self) -> datasets.Dataset:
        """Return the table as a datasets.Dataset, without copying and without a cache file."""
        from datasets import Dataset
        from datasets.table import InMemoryTable

        # Given a fingerprint, datasets does not hash the whole table to invent one.
        return Dataset(InMemoryTable(self.table), fingerprint="examples")

    def take(self, indices: Sequence[int]) -> Examples:
        """Return the examples at `indices`, in that order."""
        table = self.table.take(pyarrow.array(indices, pyarrow.int64()))
        return Examples(table, [self.lengths[i] for i in indices], [self.origins[i] for i in indices])

    def spread(self, count: int) -> Examples:
        """Return at most `count` examples, evenly spaced, so that every source has its share."""
        count = min(count, len(self))
        return self.take([number * len(self) // count for number in range(count)])

    def __add__(self, other: Examples) -> Examples:
        table = pyarrow.concat_tables([self.table, other.table])
        return Examples(table, self.lengths + other.lengths, self.origins + other.origins)


@dataclass(frozen=True)
class Row:
    """One example: the source it counts for, its length, the reason for leaving it out, and the trainer's columns.

    cut: whether the trainer will cut it at its greatest length.
    """

    source: str
    length: int
    reason: str | None
    columns: dict[str, list[int]]
    cut: bool = False


def conversation_rows(
    records: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Iterator[Row]:
    """Tokenise rows of {"source", "messages", "tools"}; longer ones than `max_length` tokens are marked too_long."""
    tools = [record["tools"] for record in records]
    tokenized = tokenize_conversations(tokenizer, [record["messages"] for record in records], tools)
    for record, tokens in zip(records, tokenized, strict=True):
        length = len(tokens.ids)
        reason = "too_long" if length > max_length else None
        yield Row(record["source"], length, reason, {"input_ids": tokens.ids, "labels": labels_of(tokens)})


def labels_of(tokens: TokenizedConversation) -> list[int]:
    """Return the ids where the assistant speaks and IGNORED elsewhere; same length as the ids, not shifted."""
    return [token if mask else IGNORED for token, mask in zip(tokens.ids, tokens.mask, strict=True)]


def pair_rows(records: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, max_length: int) -> Iterator[Row]:
    """Tokenise rows of {"source", "prompt", "chosen", "rejected"}; what `max_length` makes useless is marked."""
    tokenized = tokenize_pairs(tokenizer, [(row["prompt"], row["chosen"], row["rejected"]) for row in records])
    for record, pair in zip(records, tokenized, strict=True):
        verdict = Verdict(0, "prompt_not_a_prefix") if pair is None else judge_length(pair, max_length)
        pair = pair or TokenizedPair([], [], [])
        columns = {"prompt_ids": pair.prompt, "chosen_ids": pair.chosen, "rejected_ids": pair.rejected}
        length = 2 * len(pair.prompt) + len(pair.chosen) + len(pair.rejected)
        yield Row(record["source"], length, verdict.reason, columns, verdict.cut)


RowMaker = Callable[[list[dict[str, Any]], "PreTrainedTokenizerBase", int], Iterator[Row]]


def read_examples(
    paths: list[Path],
    make_rows: RowMaker,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    ledger: Ledger,
    flow: str,
) -> Examples:
    """Read prepared Parquet files as examples; each enters the ledger under `flow`, see `collect`."""
    examples = Examples(empty_table(make_rows), [])
    for path in paths:
        for batch in parquet.ParquetFile(path).iter_batches(_ROWS):
            examples += collect(make_rows(batch.to_pylist(), tokenizer, max_length), make_rows, ledger, flow)
    return examples


def collect(rows: Iterator[Row], make_rows: RowMaker, ledger: Ledger, flow: str) -> Examples:
    """Put rows into a table; enter all in the ledger, drop there those that cannot be trained on, count cut ones.

    Those in the table are still to be accounted for: `account_for_training`, `set_aside`.
    """
    kept: list[Row] = []
    for row in rows:
        ledger.enter(flow, row.source, tokens=row.length)
        if row.reason is None:
            kept.append(row)
            if row.cut:
                ledger.count(flow, row.source, CUT, 1)
        else:
            ledger.drop(flow, row.source, row.reason, tokens=row.length)
    schema = empty_table(make_rows).schema
    table = pyarrow.Table.from_pylist([row.columns for row in kept], schema=schema)
    return Examples(table, [row.length for row in kept], [(flow, row.source) for row in kept])


def account_for_training(ledger: Ledger, examples: Examples, read: Iterable[int]) -> None:
    """Keep the examples that training reads at least once, by index, and drop the others as not reached."""
    reached = set(read)
    for index, ((flow, source), length) in enumerate(zip(examples.origins, examples.lengths, strict=True)):
        if index in reached:
            ledger.keep(flow, source, tokens=length)
        else:
            ledger.drop(flow, source, NOT_REACHED, tokens=length)


def set_aside(ledger: Ledger, examples: Examples) -> None:
    """Drop examples as set aside for validation."""
    for (flow, source), length in zip(examples.origins, examples.lengths, strict=True):
        ledger.drop(flow, source, SET_ASIDE, tokens=length)


def empty_table(make_rows: RowMaker) -> pyarrow.Table:
    """Return a table without rows that has the columns `make_rows` makes."""
    names = ("input_ids", "labels") if make_rows is conversation_rows else ("prompt_ids", "chosen_ids", "rejected_ids")
    return pyarrow.schema([(name, pyarrow.list_(pyarrow.int32())) for name in names]).empty_table()
