"""A chunk file: what goes in comes out, and no byte of it can change unnoticed."""

import json
import os
from pathlib import Path

import lz4.frame
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline_lib.packing.chunk_format import ChunkContent, ChunkDamaged, ChunkFile, encode_chunk, read_at
from pipeline_lib.packing.token_code import SHORT_CODE_COST, SLACK, best_code
from pipeline_lib.stage import UserError

in_one_folder = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


MOST = {np.uint16: 1 << 16, np.uint32: 300_000}


def description(content: ChunkContent) -> dict:
    return {"split": "train", "vocab_size": MOST[content.tokens.dtype.type]}


@st.composite
def contents(draw) -> ChunkContent:
    kind = draw(st.sampled_from([np.uint16, np.uint32]))
    documents = draw(st.lists(st.lists(st.integers(0, MOST[kind] - 1), max_size=30), max_size=10))
    sources = ["library", "çâé"]
    of = [draw(st.integers(0, 1)) for _ in documents]
    return ChunkContent(
        np.array([token for document in documents for token in document], kind),
        np.concatenate([[0], np.cumsum([len(document) for document in documents])]).astype(np.int64),
        draw(st.sampled_from([[f"{sources[code]}-{n:032x}" for n, code in enumerate(of)], None]))
        or [draw(st.text(max_size=12)) for _ in documents],
        np.array(of, np.uint16),
        sources,
        *(np.array([draw(st.integers(0, 2**32 - 1)) for _ in documents], np.uint32) for _ in range(3)),
    )


def example() -> ChunkContent:
    tokens = np.arange(20_000, dtype=np.uint16) % 977
    source = np.array([0, 1, 0], np.uint16)
    return ChunkContent(tokens, np.array([0, 1500, 1501, 20_000]), ["a", "b", "ç"], source, ["x", "y"])


@pytest.mark.slow
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


@in_one_folder
@given(contents())
def test_the_documented_format_is_enough_to_read_a_chunk(content: ChunkContent):
    """A reader of its own, written from docs/packed_cache.md with nothing but JSON and an LZ4 frame decoder."""
    data = encode_chunk(content, description(content))
    length = int.from_bytes(data[8:12], "little")
    header, body = json.loads(data[28 : 28 + length]), data[28 + length :]
    sections = {}
    for name, section in header["sections"].items():
        frame = body[section["position"] : section["position"] + section["bytes"]]
        sections[name] = lz4.frame.decompress(frame)
    widths = list(sections["widths"])
    by_width = {width: [identity for identity, own in enumerate(widths) if own == width] for width in (1, 2, 3)}
    narrow = len(by_width[1])
    wide = narrow + -(-len(by_width[2]) // 256)
    code, place, tokens = sections["tokens"], 0, []
    while len(tokens) < header["tokens"]:
        first = code[place]
        if first < narrow:
            tokens.append(by_width[1][first])
            place += 1
        elif first < wide:
            tokens.append(by_width[2][(first - narrow) * 256 + code[place + 1]])
            place += 2
        else:
            tokens.append(by_width[3][(first - wide) * 65536 + code[place + 1] * 256 + code[place + 2]])
            place += 3
    assert tokens == content.tokens.tolist() and code[place:] == bytes(2)
    lengths = np.frombuffer(sections["lengths"], "<u4")
    assert lengths.tolist() == np.diff(content.offsets).tolist()


def test_what_a_system_reads_in_pieces_is_whole(tmp_path: Path, monkeypatch):
    """Linux reads at most 2 GiB at once."""
    path = tmp_path / "file"
    path.write_bytes(bytes(range(100)))
    read = os.pread
    monkeypatch.setattr(os, "pread", lambda descriptor, count, position: read(descriptor, min(count, 7), position))
    with open(path, "rb") as file:
        assert read_at(file.fileno(), 60, 20) == bytes(range(20, 80))
        assert read_at(file.fileno(), 60, 90) == bytes(range(90, 100))
        assert read_at(file.fileno(), 0, 3) == b""


@pytest.mark.parametrize("vocabulary", [1, 2, 255, 256, 257, 32_768, 50_304, 65_536, 65_537, 151_936, 300_000])
def test_every_id_of_every_vocabulary_has_a_code(vocabulary: int):
    ids = np.arange(vocabulary, dtype=np.uint16 if vocabulary <= 1 << 16 else np.uint32)
    tokens = np.concatenate([ids, np.repeat(ids[:300], 50), ids[::-1]])
    code = best_code(tokens, vocabulary)
    code.check()
    coded, lanes = code.encode(tokens)
    decoded = np.empty_like(tokens)
    code.decoder(tokens.dtype).decode(np.concatenate([coded, np.zeros(SLACK, np.uint8)]), lanes, decoded)
    np.testing.assert_array_equal(decoded, tokens)


def test_codes_of_three_bytes_are_left_out_where_that_costs_little():
    generator = np.random.default_rng(5)
    tokens = (32_768 * generator.random(300_000) ** 9).astype(np.uint16)
    short = best_code(tokens, 32_768)
    free = best_code(tokens, 60_000)  # the same tokens among more ids, all of which need a code
    assert not (short.width == 3).any() and (free.width == 3).any()
    fewest = min(_size(tokens, narrow, 256 * (255 - narrow)) for narrow in range(255))  # one first byte of three
    assert fewest < len(short.encode(tokens)[0]) <= SHORT_CODE_COST * fewest


def _size(tokens: np.ndarray, narrow: int, middle: int) -> int:
    """Return the bytes of the tokens if the `narrow` most frequent ids took one byte, the next `middle` two."""
    counts = np.sort(np.bincount(tokens, minlength=32_768))[::-1]
    return int(counts.sum() * 3 - counts[:narrow].sum() - counts[: narrow + middle].sum())


@pytest.mark.slow
@in_one_folder
@given(st.integers(0, 60_000), st.integers(0, 60_000), st.integers(1, 3))
def test_any_range_is_read_alone(tmp_path: Path, start: int, size: int, threads: int):
    tokens = (np.arange(50_001, dtype=np.uint32) ** 2 % 3001).astype(np.uint16)
    content = ChunkContent(tokens, np.array([0, len(tokens)]), ["a"], np.zeros(1, np.uint16), ["x"])
    path = tmp_path / "chunk.lz4"
    whole = encode_chunk(content, {"vocab_size": 3001}, threads=threads)
    assert whole == encode_chunk(content, {"vocab_size": 3001})
    path.write_bytes(whole)
    start = min(start, len(tokens))
    stop = min(start + size, len(tokens))
    np.testing.assert_array_equal(ChunkFile(path).read(start, stop), tokens[start:stop])


@pytest.mark.parametrize("vocabulary", [3000, 65_536])
@pytest.mark.parametrize("tail", [0, 1, 2047, 2048, 2049, 4095, 4096, 4097, 6143, 6144, 6145, 8191, 8192, 8193, 12_287])
def test_lanes_that_are_left_at_the_end_are_decoded(tail: int, vocabulary: int):
    generator = np.random.default_rng(tail)
    tokens = (vocabulary * generator.random(12_288 + tail) ** 8).astype(np.uint16)  # small ids are frequent
    code = best_code(tokens, vocabulary)
    assert (code.width == 3).any() == (vocabulary == 65_536)  # each has a kernel of its own
    coded, lanes = code.encode(tokens)
    decoded = np.empty_like(tokens)
    code.decoder(tokens.dtype).decode(np.concatenate([coded, np.zeros(SLACK, np.uint8)]), lanes, decoded)
    np.testing.assert_array_equal(decoded, tokens)
