"""A chunk file: what goes in comes out, and no byte of it can change unnoticed."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline_lib.packing.chunk_format import ChunkContent, ChunkDamaged, ChunkFile, encode_chunk
from pipeline_lib.stage import UserError

in_one_folder = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


MOST = {np.uint16: 1 << 16, np.uint32: 300_000}


def description(content: ChunkContent) -> dict:
    return {"split": "train", "vocab_size": MOST[content.tokens.dtype.type]}


@st.composite
def contents(draw) -> ChunkContent:
    kind = draw(st.sampled_from([np.uint16, np.uint32]))
    documents = draw(st.lists(st.lists(st.integers(0, MOST[kind] - 1), max_size=30), max_size=10))
    sources = ["library", "çâé"]
    return ChunkContent(
        np.array([token for document in documents for token in document], kind),
        np.concatenate([[0], np.cumsum([len(document) for document in documents])]).astype(np.int64),
        draw(st.sampled_from([[f"{n:032x}" for n in range(len(documents))], None]))
        or [draw(st.text(max_size=12)) for _ in documents],
        np.array([draw(st.integers(0, 1)) for _ in documents], np.uint16),
        sources,
        *(np.array([draw(st.integers(0, 2**32 - 1)) for _ in documents], np.uint32) for _ in range(3)),
    )


def example() -> ChunkContent:
    tokens = np.arange(20_000, dtype=np.uint16) % 977
    source = np.array([0, 1, 0], np.uint16)
    return ChunkContent(tokens, np.array([0, 1500, 1501, 20_000]), ["a", "b", "ç"], source, ["x", "y"])


@in_one_folder
@given(contents(), st.sampled_from([0, 3, 9]))
def test_what_goes_in_comes_out(tmp_path: Path, content: ChunkContent, level: int):
    path = tmp_path / "chunk.lz4"
    path.write_bytes(encode_chunk(content, description(content), level))
    read = ChunkFile(path).content()
    assert read.tokens.dtype == content.tokens.dtype
    np.testing.assert_array_equal(read.tokens, content.tokens)
    np.testing.assert_array_equal(read.offsets, content.offsets)
    for name in ("source", "shard", "row", "duplicates"):
        np.testing.assert_array_equal(getattr(read, name), getattr(content, name))
    assert (read.ids, read.sources) == (content.ids, content.sources)


def test_the_same_documents_give_the_same_bytes():
    assert encode_chunk(example(), description(example())) == encode_chunk(example(), description(example()))


@in_one_folder
@given(st.data())
def test_any_altered_byte_is_noticed(tmp_path: Path, data):
    whole = encode_chunk(example(), description(example()))
    place = data.draw(st.integers(0, len(whole) - 1))
    altered = bytearray(whole)
    altered[place] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "chunk.lz4"
    path.write_bytes(altered)
    with pytest.raises(ChunkDamaged, match=r"damaged .* make it again with: .* --mode inverse"):
        ChunkFile(path).content()


@pytest.mark.parametrize("keep", [0, 5, 27, 100, -1])
def test_a_truncated_or_longer_file_is_noticed(tmp_path: Path, keep: int):
    whole = encode_chunk(example(), description(example()))
    path = tmp_path / "chunk.lz4"
    for content in (whole[:keep], whole + b"\0"):
        path.write_bytes(content)
        with pytest.raises(ChunkDamaged):
            ChunkFile(path).content()


def test_a_whole_chunk_that_is_not_the_listed_one_is_refused(tmp_path: Path):
    path = tmp_path / "chunk.lz4"
    path.write_bytes(encode_chunk(example(), description(example())))
    ChunkFile(path, ChunkFile(path).digest)
    with pytest.raises(ChunkDamaged, match="not the chunk that the index lists"):
        ChunkFile(path, "0" * 32)
    with pytest.raises(ChunkDamaged, match="missing"):
        ChunkFile(tmp_path / "other.lz4")


def test_a_later_format_is_named_not_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "chunk.lz4"
    monkeypatch.setattr("pipeline_lib.packing.chunk_format.VERSION", 3)
    path.write_bytes(encode_chunk(example(), description(example())))
    monkeypatch.undo()
    with pytest.raises(UserError, match="chunk format 3"):
        ChunkFile(path)
