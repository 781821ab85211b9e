"""Presets, the dial and explicit numbers give the shape they promise, and the counts are transformers' own."""

import pytest
from pydantic import ValidationError

from pipeline_lib.config.model import ModelSettings
from pipeline_lib.models.initialise import transformers_config
from pipeline_lib.models.shapes import dial, gated_ffn, resolve_shape
from pipeline_lib.stage import UserError

SPECIAL = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1}


def shape_of(vocabulary=1000, packed_context=512, **settings):
    return resolve_shape(ModelSettings(**settings), vocabulary, packed_context)


@pytest.mark.parametrize(
    ("preset", "numbers"),
    {
        "125m": (768, 2048, 12, 12, 12, 2048),
        "350m": (1024, 2816, 24, 16, 16, 2048),
        "1b": (2048, 5504, 24, 16, 4, 4096),
        "3b": (3072, 8192, 26, 24, 8, 4096),
        "7b": (4096, 11008, 32, 32, 8, 4096),
    }.items(),
)
def test_presets_have_their_published_shapes(preset, numbers):
    shape = shape_of(preset=preset)
    assert (shape.width, shape.ffn, shape.layers, shape.heads, shape.kv_heads, shape.context) == numbers


@pytest.mark.parametrize("preset", ["125m", "350m", "1b", "3b", "7b"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_parameter_counts_are_those_of_the_real_model(preset, architecture, tied):
    import torch
    from transformers import AutoModelForCausalLM

    settings = ModelSettings(preset=preset, architecture=architecture, tie_embeddings=tied)
    shape = resolve_shape(settings, 32_000, 512)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(transformers_config(shape, settings, SPECIAL))
    named = dict(model.named_parameters())
    embedding = sum(p.numel() for name, p in named.items() if "embed_tokens" in name or "lm_head" in name)
    matrices = sum(p.numel() for name, p in named.items() if ".layers." in name and p.ndim == 2)
    counts = shape.parameter_counts()
    assert counts["total"] == sum(p.numel() for p in named.values())
    assert counts["embedding"] == embedding
    assert counts["without_embedding"] == counts["total"] - embedding
    assert counts["matmul"] == matrices + 32_000 * shape.width


@pytest.mark.parametrize("depth", range(1, 65))
def test_the_dial_follows_its_rules(depth):
    numbers = dial(depth)
    assert numbers["layers"] == depth
    assert numbers["heads"] * numbers["head_width"] == numbers["width"]
    assert numbers["head_width"] == (64 if 64 * depth < 1024 else 128)
    assert 64 * depth <= numbers["width"] < 64 * depth + numbers["head_width"]
    assert numbers["ffn"] % 64 == 0 and 0 <= numbers["ffn"] - 8 / 3 * numbers["width"] < 64


def test_the_dial_at_twelve_is_the_smallest_preset():
    by_dial, by_preset = shape_of(depth=12), shape_of(preset="125m")
    assert (by_dial.width, by_dial.ffn, by_dial.heads) == (by_preset.width, by_preset.ffn, by_preset.heads)


def test_explicit_numbers_win_over_preset_and_dial():
    shape = shape_of(preset="125m", shape={"layers": 3, "ffn": 1000})
    assert (shape.layers, shape.ffn, shape.width) == (3, 1000, 768)
    shape = shape_of(depth=6, shape={"width": 256})
    assert (shape.layers, shape.width, shape.heads, shape.ffn) == (6, 256, 4, gated_ffn(256))
    shape = shape_of(depth=4, shape={"kv_heads": 2, "head_width": 32})
    assert (shape.heads, shape.kv_heads, shape.head_width) == (8, 2, 32)
    shape = shape_of(shape={"layers": 2, "width": 96, "heads": 3}, context=700)
    assert (shape.layers, shape.width, shape.heads, shape.kv_heads, shape.head_width) == (2, 96, 3, 3, 32)
    assert shape.context == 700


@pytest.mark.parametrize(
    ("preset", "given", "heads"),
    [
        ("1b", {"heads": 32}, (32, 8, 64)),
        ("1b", {"heads": 8}, (8, 2, 256)),
        ("3b", {"heads": 12}, (12, 4, 256)),
        ("125m", {"heads": 6}, (6, 6, 128)),
        ("1b", {"heads": 8, "kv_heads": 4}, (8, 4, 256)),
        ("1b", {"heads": 2, "kv_heads": 2}, (2, 2, 1024)),
        ("1b", {"width": 1024, "heads": 8}, (8, 2, 128)),
    ],
)
def test_other_heads_in_a_preset_share_key_value_heads_as_its_own_do(preset, given, heads):
    shape = shape_of(preset=preset, shape=given)
    assert (shape.heads, shape.kv_heads, shape.head_width) == heads


def test_a_preset_covers_the_packed_context():
    assert shape_of(preset="125m", packed_context=8192).context == 8192


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "no shape"),
        ({"shape": {"layers": 2}}, "no shape"),
        ({"depth": 4, "shape": {"heads": 5}}, "multiple of 5 heads"),
        ({"depth": 4, "shape": {"kv_heads": 3}}, "share 3 key/value heads"),
        ({"depth": 4, "context": 100}, "shorter than the packed"),
        ({"depth": 4, "shape": {"head_width": 7}}, "odd"),
        ({"preset": "125m", "shape": {"width": 512}}, "heads as well"),
        ({"preset": "1b", "shape": {"heads": 2}}, "2 is not a multiple of 4, .* preset 1b: give model.shape.kv_heads"),
    ],
)
def test_an_impossible_shape_is_one_clear_line(settings, words):
    with pytest.raises(UserError, match=words):
        shape_of(**settings)


@pytest.mark.parametrize(
    "settings", [{"preset": "125m", "depth": 12}, {"depth": 4, "shape": {"layers": 5}}, {"preset": "2b"}, {"depth": 0}]
)
def test_contradicting_settings_are_refused(settings):
    with pytest.raises(ValidationError):
        ModelSettings(**settings)


def test_an_odd_width_is_refused_with_one_that_has_heads():
    settings = ModelSettings(shape={"layers": 4, "width": 65})
    with pytest.raises(UserError, match=r"model\.shape\.width 65 is odd.*take 66"):
        resolve_shape(settings, 400, 64)
