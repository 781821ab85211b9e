"""The compact head computes the same losses and gradients as TRL's own, and projects fewer positions."""

import pytest


@pytest.fixture
def scored(tiny_run, monkeypatch):
    """Return (log-probabilities, gradients, positions projected) of one batch, with or without the compact head."""
    import torch
    from transformers import AutoModelForCausalLM
    from trl.kernels.chunked_logprob import _use_triton as original
    from trl.trainer import utils

    from pipeline_lib.post_training.compact_head import score_supervised_positions_only

    ids = torch.arange(4, 64).reshape(3, 20)
    labels = ids.clone()
    labels[:, :13] = -100

    def score(compact: bool):
        monkeypatch.setattr(utils, "_use_triton", original)
        if compact:
            score_supervised_positions_only()
        model = AutoModelForCausalLM.from_pretrained(tiny_run / "05_pretrain" / "final", dtype=torch.float32)
        utils.add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
        projected = []
        whole = utils._ChunkedLogProbFunction.apply
        monkeypatch.setattr(
            utils._ChunkedLogProbFunction, "apply", lambda hidden, *rest: (projected.append(len(hidden.view(-1, 32))),
                                                                           whole(hidden, *rest))[1]
        )  # fmt: skip
        outputs = model(input_ids=ids, labels=labels, fused_lm_head=True)
        outputs.loss.backward()
        monkeypatch.undo()
        gradients = {name: weight.grad for name, weight in model.named_parameters()}
        return outputs.log_probs.detach(), gradients, projected[0]

    return score


def test_compact_and_whole_heads_agree(scored):
    import torch

    whole_logps, whole_gradients, whole_positions = scored(compact=False)
    logps, gradients, positions = scored(compact=True)
    assert (whole_positions, positions) == (3 * 19, 3 * 7)
    assert torch.allclose(logps, whole_logps, atol=1e-6)
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, whole_gradients[name], atol=1e-6), name
