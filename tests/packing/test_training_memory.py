"""Text of which nearly every piece is distinct, as in Chinese, trains a tokenizer in bounded memory, and says so."""

import random
import tracemalloc
from types import SimpleNamespace

import pyarrow as pa
import pytest

from pipeline_lib.config.pack import PackSettings
from pipeline_lib.packing import build_tokenizer, probe
from pipeline_lib.packing.bpe_training import train_merges
from pipeline_lib.packing.pretoken_counts import DocumentBatch, PretokenCounter, PretokenCounts, count_pieces
from pipeline_lib.packing.probe import expected_distinct_bytes, probe_packing
from pipeline_lib.packing.shards import plan_runs
from pipeline_lib.packing.text_encoder import text_buffers
from pipeline_lib.packing.trained_tokenizer import train_tokenizer
from pipeline_lib.stage import Ledger

LIMIT = 60_000


def clauses(seed: int, documents: int) -> list[str]:
    """Return documents of 50 clauses of 3 to 20 Han characters, some 2 KB each, every tenth clause a set phrase."""
    draw = random.Random(seed)
    characters = [chr(0x4E00 + number) for number in range(300)]
    phrases = ["".join(draw.choices(characters, k=5)) for _ in range(8)]
    texts = []
    for _ in range(documents):
        parts = ["".join(draw.choices(characters, k=draw.randint(3, 20))) for _ in range(50)]
        parts[::10] = draw.choices(phrases, k=5)
        texts.append("，".join(parts))
    return texts


def batch(texts: list[str]) -> DocumentBatch:
    return text_buffers(pa.array(texts, pa.large_string()))


def pieces(counted: PretokenCounts) -> dict[bytes, int]:
    spans = zip(counted.starts, counted.starts[1:], counted.counts.tolist(), strict=False)
    return {counted.arena[start:stop].tobytes(): count for start, stop, count in spans}


def test_distinct_pieces_stay_below_the_limit_however_much_text_there_is():
    for documents in (100, 400):
        counted = count_pieces([batch(clauses(1, documents))], LIMIT)
        assert LIMIT / 3 < len(counted.arena) <= LIMIT
        assert counted.share < 1


@pytest.mark.slow
def test_learning_takes_at_most_as_much_memory_per_byte_of_distinct_piece_as_the_plan_says():
    counted = count_pieces([batch(clauses(1, 900))])
    train_merges(counted, 300, 2)  # compiles
    tracemalloc.start()
    train_merges(counted, 2000, 2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < probe._TRAINING_BYTES_PER_DISTINCT_BYTE * len(counted.arena)


def test_text_is_counted_whole_up_to_the_limit_exactly():
    text = batch(clauses(1, 40))
    whole = count_pieces([text])
    size = len(whole.arena)
    at_the_limit, beyond = count_pieces([text], size), count_pieces([text], size - 1)
    assert (whole.share, at_the_limit.share) == (1, 1) and pieces(at_the_limit) == pieces(whole)
    assert not at_the_limit.limit_to_json()
    assert beyond.share == 0.75 and beyond.limit_to_json()["distinct_bytes"] < size


def test_beyond_the_limit_the_order_of_documents_and_batches_does_not_matter():
    texts = clauses(1, 200)
    once = count_pieces([batch(texts)], LIMIT)
    learned = train_tokenizer([batch(texts)], 600, 2, LIMIT)
    assert once.share < 1
    for seed in range(3):
        random.Random(seed).shuffle(texts)
        split = [batch(texts[:7]), batch([]), *(batch([text]) for text in texts[7:60]), batch(texts[60:])]
        assert pieces(count_pieces(split, LIMIT)) == pieces(once)
        assert train_tokenizer(split, 600, 2, LIMIT) == learned


def test_beyond_the_limit_frequent_pieces_stay_and_all_keep_their_share():
    texts = clauses(1, 400)
    whole, part = count_pieces([batch(texts)]), count_pieces([batch(texts)], 2 * LIMIT)
    frequent = {piece: count for piece, count in pieces(whole).items() if count > 150}
    assert len(frequent) == 8 and frequent.keys() <= pieces(part).keys()
    for piece, count in frequent.items():
        expected = count * part.share
        assert abs(pieces(part)[piece] - expected) < 5 * expected**0.5
    assert part.limit_to_json()["bytes"] == sum(len(piece) * count for piece, count in pieces(part).items())


def test_one_document_and_one_piece_larger_than_the_limit_are_counted_in_part():
    document = "，".join(clauses(1, 100))
    counted = count_pieces([batch([document + " " + "q" * 2 * LIMIT + " the end"])], LIMIT)
    assert LIMIT / 2 < len(counted.arena) <= LIMIT
    assert max(map(len, pieces(counted))) < 1024


def test_a_smaller_share_counts_a_subset_of_the_segments():
    text = batch(clauses(1, 50))
    larger = None
    for reductions in range(12):
        counter = PretokenCounter(reductions=reductions)
        assert counter.add(*text)
        found = pieces(counter.counts())
        assert larger is None or all(count <= larger.get(piece, 0) for piece, count in found.items())
        larger = found
    assert 0 < len(larger) < 200


def test_batches_that_can_be_read_only_once_are_refused():
    with pytest.raises(TypeError, match="more than once"):
        count_pieces(iter([batch(["text"])]))


def test_the_plan_expects_distinct_pieces_to_grow_as_they_do(documents):
    def miss(texts: list[str]) -> float:
        few = texts[: len(texts) // 4]
        expected = expected_distinct_bytes(pa.array(few), sum(len(text.encode()) for text in texts))
        return expected / len(count_pieces([batch(texts)]).arena)

    assert miss(clauses(1, 200)) == pytest.approx(1, rel=0.05)
    assert miss([document["text"] for document in documents]) == pytest.approx(1, rel=0.5)
    assert expected_distinct_bytes(pa.array(["a"]), 10**9) == 10**9  # one document says nothing: the most


def test_the_plan_counts_the_memory_of_training_up_to_the_limit(packing_run, monkeypatch):
    texts = clauses(1, 100)
    run = packing_run([{"id": str(i), "source": "zh", "text": text} for i, text in enumerate(texts)])
    runs = plan_runs(sorted((run.folder / "02_clean").glob("part-*.parquet")))
    settings = PackSettings(vocab_size=600, chunk_tokens=1000)

    def memory(limit: int) -> int:
        monkeypatch.setattr(probe, "DISTINCT_BYTES", limit)
        return probe_packing(runs, settings, 50_000)[0]["memory_bytes"]

    distinct = len(count_pieces([batch(texts)]).arena)
    base = memory(0)
    monkeypatch.setattr(probe, "_TRAINING_BYTES_PER_DISTINCT_BYTE", 4000)
    assert memory(10**9) - base == pytest.approx(4000 * distinct, rel=0.25)
    assert memory(30_000) - base < 4000 * 30_000
    assert memory(10**9) > memory(100_000) > memory(50_000)


@pytest.mark.parametrize("shards", [1, 3])
def test_a_note_and_the_manifest_tell_what_training_left_out(packing_run, monkeypatch, tmp_path, shards):
    documents = [{"id": str(i), "source": "zh", "text": text} for i, text in enumerate(clauses(1, 60))]
    total = sum(len(document["text"].encode()) for document in documents)
    paths = sorted((packing_run(documents, shards=shards).folder / "02_clean").glob("part-*.parquet"))
    monkeypatch.setattr(build_tokenizer, "count_pieces", lambda batches: count_pieces(batches, LIMIT))
    notes: list[str] = []
    ledger = Ledger()
    ledger.enter("text", "zh", documents=60, bytes=total)
    ledger.keep("text", "zh", documents=60, bytes=total)
    stage = SimpleNamespace(settings=PackSettings(vocab_size=400), seed=7, note=notes.append, published_result=dict,
                            input=lambda name: SimpleNamespace(ledger=ledger))  # fmt: skip
    layout = SimpleNamespace(kept=(), parts=[paths], shards=lambda part: paths)
    training = build_tokenizer._train(stage, layout, tmp_path / "tokenizer")
    limited = training["limited"]
    assert training["bytes"] == total and training["documents"] == 60  # each reading counts anew
    assert limited["distinct_bytes"] <= LIMIT < total and 0 < limited["bytes"] < total and limited["segments"] < 1
    whole = count_pieces([batch([document["text"] for document in documents])], LIMIT)
    assert limited == whole.limit_to_json()  # whatever the shards
    assert len(notes) == 1 and f"{limited['distinct_pieces']:,} pieces are distinct" in notes[0]
    assert f"on {limited['bytes'] / total:.2%} of the" in notes[0]
