"""Documents that share a packed sequence do not see each other."""

import numpy as np
import pytest
import torch

from pipeline_lib.config.model import ModelSettings
from pipeline_lib.models.initialise import build_model
from pipeline_lib.models.shapes import resolve_shape
from pipeline_lib.pretraining.attention import document_mask, use_attention
from pipeline_lib.pretraining.batches import Batch, as_batch
from pipeline_lib.pretraining.choices import Choices
from pipeline_lib.pretraining.forward import TokenLoss, summed_loss
from pipeline_lib.pretraining.run_state import TrainingRun

SPECIAL = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1}
LENGTHS = (7, 12, 9)  # and 4 places of padding


def make_run(
    architecture: str, kv_heads: int = 2, attention: str = "documents", dtype: torch.dtype = torch.float32
) -> TrainingRun:
    settings = ModelSettings(
        architecture=architecture, shape={"layers": 2, "width": 32, "heads": 4, "kv_heads": kv_heads}, init_std=0.2
    )
    model = build_model(resolve_shape(settings, 50, 32), settings, SPECIAL, seed=0)
    use_attention(model, attention)
    return TrainingRun(model, TokenLoss(model, attention, "none", dtype), {}, None, Choices())


def plain_model(architecture: str) -> torch.nn.Module:
    """The same weights as transformers runs them."""
    model = make_run(architecture).model
    model.set_attn_implementation("eager")
    return model


def packed_rows(seed: int = 0) -> dict[str, np.ndarray]:
    """One sequence of three documents and padding, as the packed cache hands it out."""
    chance = np.random.default_rng(seed)
    tokens = chance.integers(2, 50, (1, 32))
    segments = np.repeat([1, 2, 3, 0], [*LENGTHS, 4])[None]
    positions = np.concatenate([np.arange(length) for length in (*LENGTHS, 4)])[None]
    labels = np.where((segments > 0) & (positions > 0), tokens, -100)
    return {"input_ids": tokens, "labels": labels, "position_ids": positions, "segment_ids": segments}


def hidden(run: TrainingRun, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        return run.network.hidden(batch.inputs, batch.positions, batch.documents)[0]


def test_the_mask_is_causal_within_documents_and_closed_across():
    documents = torch.tensor([[1, 1, 2, 2, 2, 0], [3, 1, 1, 1, 2, 2]])
    mask = document_mask(documents)
    assert mask.shape == (2, 1, 6, 6) and mask.dtype is torch.bool
    for row in range(2):
        for query in range(6):
            for key in range(6):
                visible = key <= query and documents[row, query] == documents[row, key]
                assert bool(mask[row, 0, query, key]) == visible


@pytest.mark.parametrize("attention", ["documents", "flex", "dense"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("changed", [0, 6, 7, 12, 18, 19, 27])
def test_a_changed_token_moves_its_own_document_from_there_on_and_nothing_else(
    attention, architecture, kv_heads, changed
):
    run, rows = make_run(architecture, kv_heads, attention), packed_rows()
    before = hidden(run, as_batch(rows))
    rows["input_ids"] = rows["input_ids"].copy()
    rows["input_ids"][0, changed] = 2 + (rows["input_ids"][0, changed] - 1) % 48
    after = hidden(run, as_batch(rows))
    segments = rows["segment_ids"][0]
    moved = (before != after).any(1).numpy()
    expected = (segments == segments[changed]) & (np.arange(32) >= changed)
    assert np.array_equal(moved, expected)


@pytest.mark.parametrize("attention", ["documents", "flex", "dense"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_a_packed_document_is_computed_as_if_it_stood_alone(attention, architecture):
    run, rows = make_run(architecture, attention=attention), packed_rows()
    together = hidden(run, as_batch(rows))
    start = 0
    for length in LENGTHS:
        tokens = torch.from_numpy(rows["input_ids"][:, start : start + length])
        with torch.no_grad():
            alone = plain_model(architecture).base_model(input_ids=tokens).last_hidden_state[0]
        torch.testing.assert_close(together[start : start + length], alone, rtol=1e-4, atol=1e-5)
        start += length


def test_the_loss_is_that_of_the_documents_one_by_one():
    run, rows = make_run("llama"), packed_rows()
    with torch.no_grad():
        packed = float(summed_loss(run, as_batch(rows), chunk=5))
    expected, start = 0.0, 0
    for length in LENGTHS:
        tokens = torch.from_numpy(rows["input_ids"][:, start : start + length])
        with torch.no_grad():
            expected += float(plain_model("llama")(input_ids=tokens, labels=tokens).loss) * (length - 1)
        start += length
    assert packed == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("attention", ["documents", "flex", "dense"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_in_bfloat16_documents_stay_apart_and_gradients_flow(architecture, attention):
    run, rows = make_run(architecture, attention=attention, dtype=torch.bfloat16), packed_rows()
    before = hidden(run, as_batch(rows))
    exact = hidden(make_run(architecture, attention=attention), as_batch(rows))
    assert float((before.float() - exact)[:28].norm()) < 0.03 * float(exact[:28].norm())
    rows["input_ids"] = rows["input_ids"].copy()
    rows["input_ids"][0, 9] = 2 + (rows["input_ids"][0, 9] - 1) % 48
    moved = (before != hidden(run, as_batch(rows))).any(1).numpy()
    assert moved[9:19].all() and not moved[:9].any() and not moved[19:28].any()
    if attention != "flex":  # whose backward pass on a CPU knows float32 only
        summed_loss(run, as_batch(rows), chunk=5).backward()
        assert all(parameter.grad.isfinite().all() for parameter in run.model.parameters())
