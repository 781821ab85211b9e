"""Plans: mixture weights and rehydration by copies of pieces, and documents that are hard to pack."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline_lib.packing.chunk_format import ChunkContent, ChunkFile, encode_chunk
from pipeline_lib.packing.packing_plan import Mixture, write_plan
from pipeline_lib.packing.reader import PackedCache


@pytest.fixture
def chunk(tmp_path: Path) -> ChunkFile:
    """A chunk of 2,000 short documents of two sources, some of which stood for duplicates."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 90, 2000)
    content = ChunkContent(
        rng.integers(0, 500, lengths.sum()).astype(np.uint16),
        np.concatenate([[0], np.cumsum(lengths)]),
        [f"document {number}" for number in range(2000)],
        (np.arange(2000) % 2).astype(np.uint16),
        ["books", "web"],
        duplicates=(np.arange(2000) % 5).astype(np.uint32),
    )
    path = tmp_path / "chunk.lz4"
    path.write_bytes(encode_chunk(content, {"vocab_size": 500, "split": "train"}))
    return ChunkFile(path)


def appearances(chunk: ChunkFile, tmp_path: Path, mixture: Mixture) -> tuple[np.ndarray, dict]:
    """Return how often each document is whole in the plan, checking that every copy is whole."""
    path = tmp_path / "plan.parquet"
    counts = write_plan([chunk], 64, path, mixture)["splits"]["train"]
    plan = pq.read_table(path)
    document, length = plan["document"].to_numpy(), plan["length"].to_numpy()
    tokens = np.bincount(document, length, minlength=chunk.header["documents"]).astype(int)
    assert not (tokens % chunk.lengths).any()
    return tokens // chunk.lengths, counts


def test_weights_and_rehydration_multiply(chunk: ChunkFile, tmp_path: Path):
    mixture = Mixture({"books": 2.0, "web": 0.25}, {2: 2.0, 4: 3.0}, seed=3)
    copies, counts = appearances(chunk, tmp_path, mixture)
    books = chunk.source == 0
    for least, factor in ((0, 1), (2, 2), (4, 3)):
        mine = (chunk.duplicates >= least) & (chunk.duplicates < {0: 2, 2: 4, 4: 5}[least])
        assert set(copies[books & mine]) == {2 * factor}
        assert copies[~books & mine].mean() == pytest.approx(0.25 * factor, abs=0.1)
    assert counts["documents_left_out"] == (copies == 0).sum() and counts["documents_repeated"] == (copies > 1).sum()
    assert counts["tokens"] == (copies * chunk.lengths).sum()
    again, _ = appearances(chunk, tmp_path, Mixture({"web": 0.25}, seed=3))
    other, _ = appearances(chunk, tmp_path, Mixture({"web": 0.25}, seed=4))
    np.testing.assert_array_equal(again, appearances(chunk, tmp_path, Mixture({"web": 0.25}, seed=3))[0])
    assert (again != other).any()


def test_without_a_mixture_every_token_is_there_once(chunk: ChunkFile, tmp_path: Path):
    copies, counts = appearances(chunk, tmp_path, Mixture())
    assert (copies == 1).all() and counts["tokens"] == chunk.header["tokens"]
    assert counts["padding"] / counts["tokens"] < 0.01


def test_long_empty_and_monotonous_documents_are_packed_whole(packing_run, documents):
    hard = {"long": "word " * 30_000, "empty": "", "monotonous": "a" * 50_000}
    extra = [{**documents[0], "id": name, "text": text} for name, text in hard.items()]
    run = packing_run([*documents[:20], *extra], shards=1, chunk_tokens=5000, vocab_size=500, weights={"other": 2.0})
    code, out, err = run.run()
    assert code == 0, out + err
    cache = PackedCache(run.packed)
    sizes = {document.id: len(document.tokens) for s in ("train", "val") for document in cache.documents(s)}
    assert sizes["empty"] == 1 and sizes["long"] > 5000
    assert cache.index["plans"][0]["splits"]["train"]["documents_repeated"] > 0
    for context in cache.contexts:
        rows = [batch["segment_ids"] for batch in cache.batches(context, 8, arrays="numpy")]
        assert sum(int((row > 0).sum()) for row in rows) > cache.tokens("train")
