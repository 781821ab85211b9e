"""Text that is held gives what the files give, and never more memory than it was given."""

import threading
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dedup.corpus import Corpus
from dedup.held_text import HeldText


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    files = []
    for number in range(3):
        table = pa.table(
            {"id": [f"{number}-{row}" for row in range(50)], "text": [f"text {row} " * 9 for row in range(50)]}
        )
        files.append(tmp_path / f"part-{number}.parquet")
        pq.write_table(table, files[-1], row_group_size=20)
    return Corpus(tuple(files))


def read(corpus: Corpus, columns: list[str] | None = None) -> list[pa.Table]:
    return [pa.concat_tables(corpus.read(piece, columns)) for piece in corpus.pieces]


def test_the_second_reading_needs_no_file(corpus):
    held = replace(corpus, held=HeldText(1 << 20))
    first = read(held, ["text", "source"])
    pieces = held.pieces
    for file in corpus.files:
        file.unlink()
    assert [pa.concat_tables(held.read(piece, ["text", "source"])) for piece in pieces] == first
    assert [pa.concat_tables(held.read(piece)).column_names for piece in pieces] == [["id", "text"]] * 3


def test_what_does_not_fit_is_read_again_and_equal(corpus):
    size = sum(table.nbytes for table in read(corpus))
    for room in (0, size // 3 - 1, size // 2, 2 * size):
        held = HeldText(room)
        source = replace(corpus, held=held)
        for _ in range(2):
            assert read(source) == read(corpus)
            assert read(source, ["id"]) == read(corpus, ["id"])
        kept = [held.get(piece) for piece in corpus.pieces]
        assert sum(table.nbytes for tables in kept if tables for table in tables) <= room
    assert all(held.get(piece) for piece in corpus.pieces)


def test_a_reading_that_was_left_early_is_not_held(corpus):
    source = replace(corpus, held=HeldText(1 << 20))
    piece = source.pieces[0]
    next(iter(source.read(piece)))
    assert source.held.get(piece) is None
    assert pa.concat_tables(source.read(piece)) == read(corpus)[0]


def test_threads_share_the_room(corpus):
    room = 2 * sum(table.nbytes for table in read(corpus))
    held = HeldText(room)
    source = replace(corpus, held=held)
    threads = [threading.Thread(target=read, args=(source,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = [held.get(piece) for piece in corpus.pieces]
    assert sum(table.nbytes for tables in kept if tables for table in tables) <= room
    assert read(source) == read(corpus)
