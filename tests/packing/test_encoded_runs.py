"""Encoded runs: the same chunks from memory and from files, a damaged file is noticed, chunks of equal size."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline_lib.packing import shards
from pipeline_lib.packing.chunk_ranges import BUCKET_BITS, ChunkRange, cut_into_chunks
from pipeline_lib.packing.encoded_runs import EncodedRuns, RunStatistics, encode_run
from pipeline_lib.packing.run_files import RunFile
from pipeline_lib.packing.shards import ORDER, SPLIT, hash_ids, plan_runs
from pipeline_lib.packing.text_encoder import TextEncoder

SEED = 11


@pytest.fixture(scope="module")
def encoder(packed_run) -> TextEncoder:
    return TextEncoder(packed_run.packed / "tokenizer")


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, documents):
    """Runs of two shards, several of them, in batches of a few documents."""
    monkeypatch.setattr(shards, "RUN_BYTES", 1)
    monkeypatch.setattr(shards, "BATCH_BYTES", 1)
    paths = []
    for number in range(2):
        texts = [*documents[number::2], {**documents[number], "id": f"empty-{number}", "text": ""}]
        paths.append(tmp_path / f"part-{number}.parquet")
        pq.write_table(pa.Table.from_pylist(texts), paths[-1], row_group_size=20)
    return plan_runs(paths)


def expected(runs, encoder: TextEncoder, wanted: ChunkRange) -> list[tuple[str, list[int]]]:
    """The documents of a chunk, sorted and encoded one by one."""
    found = []
    for run in runs:
        table = pq.ParquetFile(run.shard).read_row_groups(list(run.row_groups))
        keys = (hash_ids(table["id"].combine_chunks(), SEED, purpose) for purpose in (ORDER, SPLIT))
        for identity, text, order, split in zip(table["id"].to_pylist(), table["text"].to_pylist(), *keys, strict=True):
            if wanted.wants(np.array([order]), np.array([split]))[0]:
                ids = encoder.encode(pa.array([text]))[0].tolist() if text else []
                found.append((int(order), identity, [*ids, encoder.special.separator]))
    return [(identity, ids) for _, identity, ids in sorted(found)]


def test_chunks_from_memory_and_from_files_hold_the_sorted_documents(runs, encoder, tmp_path: Path):
    assert len(runs) > 3
    in_memory = [encode_run(run, encoder, SEED) for run in runs]
    assert any(len(run.tokens) > 1 for run in in_memory)
    files = [RunFile(tmp_path, run) for run in runs]
    for file, encoded in zip(files, in_memory, strict=True):
        assert not file.is_finished()
        file.write(encoded, encoder)
        assert file.is_finished()
    cut = cut_into_chunks(EncodedRuns(files, encoder).statistics(), 20_000, 0.2)
    assert {chunk.split for chunk in cut.ranges} == {"train", "val"} and len(cut.ranges) > 3
    for source in (in_memory, files, [*in_memory[:2], *files[2:]]):
        encoded = EncodedRuns(source, encoder)
        assert cut_into_chunks(encoded.statistics(), 20_000, 0.2) == cut
        for chunk in cut.ranges:
            content, text_bytes = encoded.gather(chunk)
            starts = content.offsets.tolist()
            ids = [content.tokens[a:b].tolist() for a, b in zip(starts, starts[1:], strict=False)]
            assert list(zip(content.ids, ids, strict=True)) == expected(runs, encoder, chunk)
            assert content.tokens.dtype == encoder.dtype
            texts = [encoder.decode(np.array(own[:-1], np.uint32)) for own in ids]
            assert text_bytes.tolist() == [len(text) for text in texts]


def shard_of_groups(path: Path, documents, groups: list[int]) -> Path:
    """Write a shard whose row groups have so many documents each."""
    table, first = pa.Table.from_pylist(documents), 0
    with pq.ParquetWriter(path, table.schema) as writer:
        for rows in groups:
            writer.write_table(table.slice(first, rows))
            first += rows
    assert [pq.read_metadata(path).row_group(group).num_rows for group in range(len(groups))] == groups
    return path


@pytest.mark.parametrize("groups", [[8, 0], [8, 0, 0, 6, 0], [0, 5, 0, 4], [3, 0, 4], [0, 0], []])
@pytest.mark.parametrize("run_bytes", [1, 32 << 20])
def test_row_groups_without_rows_are_in_no_run(groups, run_bytes, encoder, documents, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(shards, "RUN_BYTES", run_bytes)
    rows = sum(groups)
    planned = plan_runs([shard_of_groups(tmp_path / "part-00000.parquet", documents, groups)])
    filled = sum(map(bool, groups))
    assert len(planned) == (filled if run_bytes == 1 else min(filled, 1)) and sum(run.rows for run in planned) == rows
    encoded = [encode_run(run, encoder, SEED).documents for run in planned]
    assert all(len(own) == run.rows > 0 for own, run in zip(encoded, planned, strict=True))
    assert sorted(row for own in encoded for row in own["row"].tolist()) == list(range(rows))
    read = [batch.select(["id", "row"]).to_pylist() for run in planned for batch in shards.read_batches(run)]
    assert [row for batch in read for row in batch] == [
        {"id": document["id"], "row": place} for place, document in enumerate(documents[:rows])
    ]
    assert len(shards.sample_texts(planned, 1)) == len(planned)


def test_only_the_wanted_documents_are_encoded(runs, encoder):
    wanted = ChunkRange("train", 1 << BUCKET_BITS - 2, 1 << BUCKET_BITS - 1, 1 << 62)
    some = [encode_run(run, encoder, SEED, wanted.wants) for run in runs]
    content, _ = EncodedRuns(some, encoder).gather(wanted)
    assert content.ids == [identity for identity, _ in expected(runs, encoder, wanted)]
    assert sum(len(run.documents) for run in some) == len(content.ids) > 0


def test_a_damaged_file_is_unfinished(runs, encoder, tmp_path: Path):
    file = RunFile(tmp_path, runs[0])
    file.write(encode_run(runs[0], encoder, SEED), encoder)
    assert file.is_finished() and not file.drop_if_damaged()
    content = bytearray(file.path.read_bytes())
    content[len(content) // 2] ^= 1
    file.path.write_bytes(content)
    assert file.drop_if_damaged() and not file.is_finished()
    assert file.drop_if_damaged()


def test_of_a_file_a_chunk_reads_its_documents_and_little_else(runs, encoder, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(shards, "RUN_BYTES", 1 << 30)
    run = plan_runs([runs[0].shard])[0]
    file = RunFile(tmp_path, run)
    file.write(encode_run(run, encoder, SEED), encoder)
    ranges = cut_into_chunks([file.statistics()], 2000, 0.0).ranges
    assert len(ranges) > 8
    sizes = []

    def read(descriptor: int, *arguments) -> int:
        sizes.append(preadv(descriptor, *arguments))
        return sizes[-1]

    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", read)
    for chunk in ranges:
        file.part(chunk)
    # The head, the names, and the keys that bisection looks at, each time.
    assert 0 < sum(sizes) - file.path.stat().st_size < 300 * len(ranges)


def test_a_file_cut_short_while_chunks_are_made_is_an_error_not_a_wrong_chunk(runs, encoder, tmp_path: Path):
    file = RunFile(tmp_path, runs[0])
    file.write(encode_run(runs[0], encoder, SEED), encoder)
    everything = ChunkRange("train", 0, 1 << BUCKET_BITS, 0)
    assert len(file.part(everything).documents) == runs[0].rows
    with open(file.path, "r+b") as opened:
        opened.truncate(file.path.stat().st_size - 1)
    with pytest.raises(OSError, match="shorter"):
        file.part(everything)
    file.path.unlink()
    with pytest.raises(FileNotFoundError):
        file.part(everything)


@pytest.mark.parametrize("seed", range(20))
def test_chunks_are_equal_shares_of_the_tokens(seed: int):
    chance = np.random.default_rng(seed)
    documents, chunk_tokens = int(chance.integers(1, 300)), int(chance.integers(1, 2000))
    order, split = (np.sort(chance.integers(0, 1 << 64, documents, np.uint64)) for _ in range(2))
    tokens = chance.integers(1, 1000, documents)
    ranges = cut_into_chunks([RunStatistics(order, split, tokens)], chunk_tokens, 0.0).ranges
    buckets = (order >> np.uint64(64 - BUCKET_BITS)).astype(np.int64)
    assert ranges[0].first == 0 and ranges[-1].stop == 1 << BUCKET_BITS
    assert all(one.stop == two.first for one, two in zip(ranges, ranges[1:], strict=False))
    sizes = [int(tokens[(buckets >= each.first) & (buckets < each.stop)].sum()) for each in ranges]
    assert min(sizes) > 0
    count = max(1, round(int(tokens.sum()) / chunk_tokens))
    share = tokens.sum() / count
    assert len(sizes) <= count and max(sizes) <= share + 2 * tokens.max()
    pieces = [RunStatistics(order[place::7], split[place::7], tokens[place::7]) for place in range(7)]
    assert cut_into_chunks(pieces, chunk_tokens, 0.0).ranges == ranges
