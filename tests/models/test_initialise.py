"""Initial weights: the promised spread, the same for the same seed, each parameter independent of the others."""

import math

import pytest
import torch

from pipeline_lib.config.model import ModelSettings
from pipeline_lib.models.initialise import build_model
from pipeline_lib.models.shapes import resolve_shape

SPECIAL = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1}


def build(seed=1, **settings):
    resolved = ModelSettings(**{"shape": {"layers": 3, "width": 64, "heads": 2}, **settings})
    return build_model(resolve_shape(resolved, 500, 128), resolved, SPECIAL, seed)


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_spread_is_init_std_and_smaller_where_the_residual_stream_is_written(architecture):
    for name, parameter in build(architecture=architecture, init_std=0.05).named_parameters():
        parameter = parameter.detach()
        if parameter.ndim == 1:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
            continue
        writes = name.endswith(("o_proj.weight", "down_proj.weight"))
        expected = 0.05 / math.sqrt(6) if writes else 0.05
        # The spread of n normal numbers is known to about 1 / sqrt(2 n).
        assert abs(float(parameter.std()) / expected - 1) < 5 / math.sqrt(2 * parameter.numel()), name
        assert abs(float(parameter.mean())) < 5 * expected / math.sqrt(parameter.numel()), name


def test_the_seed_decides_every_weight():
    first, again, other = build(seed=1), build(seed=1), build(seed=2)
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name))
        assert parameter.ndim == 1 or not torch.equal(parameter, other.get_parameter(name))


def test_a_deeper_model_keeps_the_weights_of_the_shallower_one():
    shallow, deep = build(), build(shape={"layers": 5, "width": 64, "heads": 2})
    for name, parameter in shallow.named_parameters():
        if not name.endswith(("o_proj.weight", "down_proj.weight")):  # their spread depends on the depth
            assert torch.equal(parameter, deep.get_parameter(name)), name


def test_tied_embeddings_are_one_tensor():
    model = build(tie_embeddings=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert build().lm_head.weight is not build().model.embed_tokens.weight


def test_the_untrained_model_is_as_unsure_as_the_vocabulary_is_large():
    model = build(init_std=0.02).eval()
    tokens = torch.randint(0, 500, (4, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        loss = model(input_ids=tokens, labels=tokens).loss
    assert abs(float(loss) - math.log(500)) < 0.05


def test_saved_weights_have_the_asked_format():
    assert {parameter.dtype for parameter in build(dtype="bfloat16").parameters()} == {torch.bfloat16}
