"""What a run has read of its text, against a count token by token of every sequence that the cache handed out."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
from packed_run import CONFIG, write_text

from fork_launcher import run_script
from pipeline_lib.config.pretrain import CurriculumStage
from pipeline_lib.packing.reader import PackedCache
from pipeline_lib.pretraining.batches import PackedData
from pipeline_lib.pretraining.curriculum import plan_phases
from pipeline_lib.pretraining.meters import TokenCounts
from pipeline_lib.pretraining.text_read import LEFT_OUT
from pipeline_lib.stage import Ledger, StageFailure
from pipeline_lib.stage.ledger import NOT_REACHED, SET_ASIDE
from pipeline_lib.stage.manifest import Manifest

PACKING = "contexts: [64], chunk_tokens: 8000"
STAGES = [{"until": 0.3, "context": 32}, {"until": 0.6, "context": 64}, {"until": 1, "context": 128}]
SMALL = "contexts: [128, 64, 32], chunk_tokens: 1000"


class Listening(PackedCache):
    """A cache that remembers which sequences it handed out."""

    def __init__(self, path):
        super().__init__(path, window_chunks=2)
        self.handed_out: list[tuple[int, int]] = []

    def batches(self, context, *arguments, **options):
        for batch in super().batches(context, *arguments, prefetch=0, **options):
            self.handed_out += [(context, int(number)) for number in batch["sequences"]]
            yield batch


def pack(run, config, documents):
    write_text(run, documents, sources=("made", "other", "rare"))
    done = run_script("03_tokenize_and_pack.py", config, run)
    assert done.returncode == 0, done.stdout + done.stderr
    return run / "03_packed"


MIXED = SMALL + ", weights: {made: 1.5, rare: 0.4, other: 2}"


@pytest.fixture(scope="module", params=[SMALL, MIXED], ids=["plain", "mixed"])
def packed(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    config = folder / "config.yaml"
    config.write_text(CONFIG.replace(PACKING, request.param))
    return pack(folder / "run", config, 200)


def count_by_hand(cache: Listening) -> dict:
    """Walk over every token of every sequence that was handed out."""
    read, predicted, sources = Counter(), Counter(), {}
    for context, number in cache.handed_out:
        for piece in cache.pieces(number, context):
            places = [(piece.id, piece.offset + place) for place in range(piece.length)]
            read.update(places)
            predicted.update(places[1:])
            sources[piece.id] = piece.source
    kept = {
        source: (
            len({identity for identity, _ in read if sources[identity] == source}),
            sum(sources[identity] == source for identity, _ in read),
        )
        for source in sorted(set(sources.values()))
    }
    again = Counter()
    for (identity, _), times in read.items():
        again[sources[identity]] += times - 1
    return {
        "read": {"once": len(read), "again": read.total() - len(read)},
        "predicted": len(predicted),
        "kept": kept,
        "again": {source: count for source, count in again.items() if count},
    }


def train_on(data: PackedData, steps: int, state=None, step: int = 0):
    counts = TokenCounts()
    stream = data.training_batches(state, step)
    for _ in range(steps):
        batch, state = next(stream)
        counts.add(batch)
    return state, counts


def assert_told_truly(cache: Listening, data: PackedData, state, counts: TokenCounts) -> Ledger:
    expected = count_by_hand(cache)
    text = data.text_read(state)
    text.check(counts)
    assert text.tokens_read == expected["read"] and text.predicted_once == expected["predicted"]
    ledger = Ledger()
    text.account(ledger)
    ledger.check()
    entries = {source: entry for _, source, entry in ledger.items()}
    kept = {source: (entry.kept[0], entry.kept[2]) for source, entry in entries.items() if entry.kept[2]}
    assert kept == expected["kept"]
    assert {s: e.found["tokens read again"] for s, e in entries.items() if e.found} == expected["again"]
    ledger.check_chain(Ledger.from_json(Manifest.read(cache.path / "manifest.json").ledger), "03_packed")
    return ledger


@pytest.mark.parametrize("steps", [3, 100], ids=["a part", "several epochs"])
def test_one_context_is_counted_as_by_hand(packed, steps):
    cache = Listening(packed)
    data = PackedData(cache, 64, 8, seed=5, validation_tokens=500)
    state, counts = train_on(data, steps)
    ledger = assert_told_truly(cache, data, state, counts)
    reasons = {reason for _, _, entry in ledger.items() for reason in entry.dropped}
    mixed = bool(cache.index["plans"][0]["mixture"]["weights"])
    assert reasons == {SET_ASIDE, *([LEFT_OUT] if mixed else []), *([NOT_REACHED] if steps < 100 else [])}
    assert len(state["read"]) == 1 + state["epoch"]


@pytest.mark.parametrize("tokens", [6_000, 60_000])
def test_a_curriculum_that_reads_text_in_several_packings_is_counted_as_by_hand(packed, tokens):
    cache = Listening(packed)
    phases = plan_phases([CurriculumStage(**stage) for stage in STAGES], tokens, 512, 64, None)
    data = PackedData(cache, 128, 4, seed=5, validation_tokens=500, phases=phases)
    state, counts = train_on(data, phases[-1].last)
    assert_told_truly(cache, data, state, counts)
    assert data.text_read(state).tokens_read["again"] > 0


def validation_inputs(path) -> np.ndarray:
    """Return the tokens that validation reads, [sequences, 64]."""
    data = PackedData(PackedCache(path, window_chunks=2), 64, 8, seed=5, validation_tokens=500)
    return np.concatenate([batch.inputs.numpy() for batch in data.validation_batches(3)])


@pytest.mark.slow
def test_a_cache_that_grows_between_two_starts_is_counted_as_by_hand(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.replace(PACKING, SMALL))
    cache = Listening(pack(tmp_path / "run", config, 100))
    validated = validation_inputs(cache.path)
    data = PackedData(cache, 64, 8, seed=5, validation_tokens=500)
    state, before = train_on(data, cache.sequences(64) // 8 + 10)  # in the middle of the second epoch
    write_text(tmp_path / "run", 60, seed=1, sources=("made", "other", "rare"), shard=1)
    done = run_script("03_tokenize_and_pack.py", config, tmp_path / "run")
    assert done.returncode == 0, done.stdout + done.stderr
    grown = Listening(tmp_path / "run" / "03_packed")
    assert len(grown.index["parts"]) == 2
    np.testing.assert_array_equal(validation_inputs(grown.path), validated)
    grown.handed_out = cache.handed_out
    data = PackedData(grown, 64, 8, seed=5, validation_tokens=500)
    state, after = train_on(data, 2 * grown.sequences(64) // 8, state)
    counts = TokenCounts(**{name: count + after.to_json()[name] for name, count in before.to_json().items()})
    assert_told_truly(grown, data, state, counts)


class Losing(PackedCache):
    """A cache whose plan has lost its last sequence."""

    def table(self, context, split="train"):
        table = super().table(context, split)
        if split == "val":
            return table
        kept = slice(0, int(table.pieces[-2]))
        columns = {name: getattr(table, name)[kept] for name in ("chunk", "document", "start", "length", "position")}
        bounds = table.bounds.copy()
        bounds[-1] -= 1
        return dataclasses.replace(table, **columns, pieces=table.pieces[:-1], bounds=bounds)

    def order(self, context, seed, split="train"):
        return dataclasses.replace(super().order(context, seed, split), bounds=self.table(context, split).bounds)


def test_a_token_that_no_plan_holds_and_a_wrong_meter_stop_the_stage(packed):
    cache = PackedCache(packed)
    if cache.index["plans"][0]["mixture"]["weights"]:
        pytest.skip("a mixture may leave documents out")
    data = PackedData(cache, 64, 8, seed=5, validation_tokens=500)
    state, counts = train_on(data, 3)
    counts.masked += 1
    with pytest.raises(StageFailure, match="training counted"):
        data.text_read(state).check(counts)
    ledger = Ledger()
    PackedData(Losing(packed), 64, 8, seed=5, validation_tokens=500).text_read(state).account(ledger)
    with pytest.raises(StageFailure, match="does not balance"):
        ledger.check()
