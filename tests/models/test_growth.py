"""Growth against the model it grows from: the same logits where that is promised, exactly the declared copies else."""

import math

import pytest
import torch
from pydantic import ValidationError

from pipeline_lib.config.model import GrowSettings, ModelSettings
from pipeline_lib.models.grown_model import TOLERANCE, compare
from pipeline_lib.models.growth import grow_weights, plan_growth
from pipeline_lib.models.initialise import build_in_float32, build_model
from pipeline_lib.models.shapes import resolve_shape
from pipeline_lib.stage import StageFailure, UserError

SPECIAL = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1}
SMALL = {"layers": 3, "width": 32, "heads": 4, "kv_heads": 2, "ffn": 48}
WRITERS = ("self_attn.o_proj.weight", "mlp.down_proj.weight")


def settings_of(numbers, architecture="llama", tied=False, **grow):
    return ModelSettings(
        architecture=architecture, tie_embeddings=tied, shape={**SMALL, **numbers}, grow={"source": "small", **grow}
    )


def trained(settings, vocabulary=60):
    """Return a model whose norms are no ones and whose matrices are large, as after training."""
    shape = resolve_shape(settings, vocabulary, 64)
    model = build_model(shape, settings, SPECIAL, seed=5)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter *= 4 if parameter.ndim == 2 else 1
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator) * ("norm" in name)
    return model.eval(), shape


def grow(large, vocabulary=60, seed=1, architecture="llama", tied=False, known=60, **choices):
    """Return (source, grown model, plan, how many numbers were copied)."""
    settings = settings_of(large, architecture, tied, **choices)
    small, small_shape = trained(settings_of({}, architecture, tied))
    shape = resolve_shape(settings, vocabulary, 64)
    plan = plan_growth(settings.grow, small_shape.to_json(), shape, known)
    model = build_in_float32(shape, settings, SPECIAL, seed).eval()
    weights = {name: parameter.detach() for name, parameter in small.named_parameters()}
    copied = grow_weights(model, weights, plan, settings.grow, settings.init_std)
    return small, model, plan, copied


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids).logits


IDS = torch.randint(0, 60, (2, 40), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("large", "choices"),
    [
        ({"layers": 7}, {}),
        ({"layers": 5}, {"layer_map": [0, 0, 0, 1, 2]}),
        ({"ffn": 96}, {}),
        ({"ffn": 150}, {"ffn": "copy"}),
        ({"layers": 6, "ffn": 150}, {"ffn": "copy"}),
        ({"layers": 6, "ffn": 64}, {"vocabulary_noise": 0.5, "token_map": {60: 3}}),
    ],
)
def test_a_growth_that_promises_it_has_the_logits_of_the_source(architecture, tied, large, choices):
    vocabulary = 70 if "token_map" in choices else 60
    small, model, plan, _ = grow(large, vocabulary, architecture=architecture, tied=tied, **choices)
    expected = logits(small, IDS)
    assert plan.exact and float(expected.abs().max()) > 1
    # What float64 leaves of a difference in float32 is its rounding.
    doubled = logits(model.double(), IDS)[..., :60] - logits(small.double(), IDS)
    assert float(doubled.abs().max()) < 1e-12
    assert float((logits(model.float(), IDS)[..., :60] - expected).abs().max()) < 1e-5


def test_inserted_blocks_change_no_bit_and_learn_from_the_first_step_on():
    small, model, plan, _ = grow({"layers": 6})
    assert torch.equal(logits(model, IDS), logits(small, IDS))
    assert plan.layer_of == (0, 0, 1, 1, 2, 2) and plan.inserted == (False, True) * 3
    model(input_ids=IDS, labels=IDS).loss.backward()
    for name in WRITERS:
        writer = model.get_parameter(f"model.layers.1.{name}")
        assert not writer.any() and float(writer.grad.abs().max()) > 0


def test_random_units_behind_zeros_learn_and_are_those_of_a_fresh_model():
    small, model, _, _ = grow({"ffn": 96}, seed=4)
    fresh = build_in_float32(resolve_shape(settings_of({"ffn": 96}), 60, 64), settings_of({"ffn": 96}), SPECIAL, 4)
    name = "model.layers.1.mlp.gate_proj.weight"
    assert torch.equal(model.get_parameter(name)[48:], fresh.get_parameter(name)[48:])
    assert torch.equal(model.get_parameter(name)[:48], small.get_parameter(name))
    model(input_ids=IDS, labels=IDS).loss.backward()
    gradient = model.get_parameter("model.layers.1.mlp.down_proj.weight").grad[:, 48:]
    assert int((gradient.abs().amax(0) > 0).sum()) == 48
    assert len(torch.unique(gradient, dim=1).T) == 48  # no two units are told the same


def test_copies_without_noise_have_equal_gradients_and_with_noise_other_ones():
    for noise, equal in ((0.0, True), (0.2, False)):
        _, model, plan, _ = grow({"ffn": 96}, ffn="copy", ffn_noise=noise)
        assert plan.exact == equal
        model(input_ids=IDS, labels=IDS).loss.backward()
        gradient = model.get_parameter("model.layers.0.mlp.gate_proj.weight").grad
        assert torch.allclose(gradient[:48], gradient[48:], rtol=1e-4, atol=1e-7) == equal


def test_the_shares_of_a_column_add_up_to_it_in_bfloat16_too():
    small, model, _, _ = grow({"ffn": 48 * 3 + 7}, ffn="copy")
    whole = small.get_parameter("model.layers.0.mlp.down_proj.weight").bfloat16().float()
    shared = model.get_parameter("model.layers.0.mlp.down_proj.weight").bfloat16().float()
    summed = torch.zeros_like(whole)
    for unit in range(shared.shape[1]):
        summed[:, unit % 48] += shared[:, unit]
    assert torch.equal(summed, whole)


def test_a_stack_is_the_source_read_again_and_says_that_the_function_changes():
    small, model, plan, copied = grow({"layers": 6}, depth="stack")
    assert plan.layer_of == (0, 1, 2, 0, 1, 2) and not plan.exact and not any(plan.inserted)
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        if parts[1] == "layers":
            parts[2] = str(int(parts[2]) % 3)
        assert torch.equal(parameter, small.get_parameter(".".join(parts))), name
    assert copied == sum(parameter.numel() for parameter in model.parameters())
    # An oracle: the source's own blocks run twice in a row, the caches aside.
    twice = small
    twice.model.layers.extend(list(small.model.layers))
    twice.config.num_hidden_layers = 6
    with torch.no_grad():
        expected = twice(input_ids=IDS, use_cache=False).logits
        assert torch.equal(model(input_ids=IDS, use_cache=False).logits, expected)


def test_a_declared_map_is_followed():
    small, model, plan, _ = grow({"layers": 5}, depth="stack", layer_map=[0, 1, 1, 0, 2])
    for new, old in enumerate([0, 1, 1, 0, 2]):
        name = "self_attn.q_proj.weight"
        assert torch.equal(
            model.get_parameter(f"model.layers.{new}.{name}"), small.get_parameter(f"model.layers.{old}.{name}")
        )
    assert not plan.exact


def test_new_ids_get_the_mean_row_or_that_of_a_given_id_plus_noise():
    for noise in (0.0, 0.25):
        small, model, _, _ = grow({}, 1060, vocabulary_noise=noise, token_map={60: 7})
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            old, table = (each.get_parameter(name).detach().double() for each in (small, model))
            assert torch.equal(table[:60], old)
            spread = noise * float(old.square().mean().sqrt())
            assert float((table[60] - old[7]).abs().max()) <= 5 * spread
            apart = table[61:] - old.mean(0)
            assert float(apart.square().mean().sqrt()) == pytest.approx(spread, rel=0.05, abs=1e-7)


@pytest.mark.parametrize("tied", [True, False])
def test_rows_behind_the_last_token_of_the_source_are_padding_and_left_out(tied):
    small, model, plan, copied = grow({"layers": 5}, 58, tied=tied, known=50, vocabulary_noise=0, token_map={52: 7})
    for name in ("model.embed_tokens.weight", *(() if tied else ("lm_head.weight",))):
        old, table = (each.get_parameter(name).detach() for each in (small, model))
        assert torch.equal(table[:50], old[:50]) and torch.equal(table[52], old[7])
        mean = old[:50].double().mean(0)
        assert all(float((table[new] - mean).abs().max()) < 1e-6 for new in (50, 51, *range(53, 58)))
    told = "3 -> 5 blocks (identity), 50 -> 58 ids, without 10 rows that belong to no token of it"
    assert plan.exact and plan.describe(settings_of({}).grow) == told
    assert compare(small, model, (IDS % 50).tolist(), 50, exact=True)["largest_difference"] < 1e-5
    assert grow({}, 50, tied=tied, known=50)[1].get_input_embeddings().weight.shape[0] == 50
    with pytest.raises(UserError, match=r"token_map 52: 55 is not from an id of the source \(0 to 49\)"):
        grow({}, 58, known=50, token_map={52: 55})


def test_mean_rows_take_no_more_probability_than_their_share_of_the_ids():
    small, model, _, _ = grow({}, 90, vocabulary_noise=0)
    losses = [-logits(each, IDS).double().log_softmax(-1)[..., :60] for each in (small, model)]
    apart = losses[1] - losses[0]
    assert float(apart.min()) > 0 and float(apart.max()) <= math.log(1 + 30 / 60)


def test_every_number_of_the_model_is_counted_as_copied_or_made():
    small, model, _, copied = grow({"layers": 6, "ffn": 96}, 70, token_map={65: 1})
    blocks = {name: p for name, p in small.named_parameters() if ".layers." in name}
    inserted_away = sum(p.numel() for name, p in blocks.items() if name.endswith(WRITERS))
    once = sum(p.numel() for p in small.parameters())
    assert copied == once + sum(p.numel() for p in blocks.values()) - inserted_away + 2 * 32
    assert copied < sum(p.numel() for p in model.parameters())


def test_the_seed_decides_every_bit():
    choices = {"ffn": "copy", "ffn_noise": 0.1, "vocabulary": 70}
    first, again, other = (grow({"ffn": 96}, seed=seed, **choices)[1] for seed in (1, 1, 2))
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name))
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.layers.0.mlp.up_proj.weight"):
        assert not torch.equal(first.get_parameter(name), other.get_parameter(name))


def test_a_promise_that_is_not_kept_fails_and_a_broken_source_is_refused():
    small, model, _, _ = grow({"layers": 6})
    rows = IDS.tolist()
    told = compare(small, model, rows, 60, exact=True)
    assert told["largest_difference"] == 0 and told["compared_tokens"] == 80
    assert told["allowed_difference"] == TOLERANCE * told["largest"]
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.down_proj.weight")[3, 3] = 0.5
    with pytest.raises(StageFailure, match="not the source any more"):
        compare(small, model, rows, 60, exact=True)
    assert compare(small, model, rows, 60, exact=False)["function"] == "changed"
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.down_proj.weight")[3, 3] = torch.nan
    with pytest.raises(StageFailure, match="nan"):
        compare(small, model, rows, 60, exact=True)
    with torch.no_grad():
        small.get_parameter("model.norm.weight")[0] = torch.inf
    with pytest.raises(UserError, match="not finite"):
        compare(small, model, rows, 60, exact=True)


@pytest.mark.parametrize(
    ("large", "choices", "words"),
    [
        ({"layers": 4}, {"depth": "stack"}, "no multiple of the source's 3; set model.shape.layers to 6, or give"),
        ({"layers": 4}, {"layer_map": [0, 1, 2]}, "3 entries for 4 blocks"),
        ({"layers": 4}, {"layer_map": [0, 1, 2, 3]}, "names block 3; the source has 0 to 2"),
        ({"layers": 4}, {"layer_map": [0, 1, 1, 1]}, "leaves out block 2"),
        ({"layers": 4}, {"layer_map": [0, 2, 1, 1]}, "goes back"),
        ({}, {"token_map": {60: 1}}, "token_map 60: 1 .*there are none"),
    ],
)
def test_a_map_that_does_not_fit_is_one_clear_line(large, choices, words):
    with pytest.raises(UserError, match=words):
        grow(large, **choices)


@pytest.mark.parametrize(("vocabulary", "ids"), [(70, {70: 1}), (70, {59: 1}), (70, {60: 60}), (70, {60: -1})])
def test_a_token_map_leads_from_an_old_id_to_a_new_one(vocabulary, ids):
    with pytest.raises(UserError, match="token_map"):
        grow({}, vocabulary, token_map=ids)


@pytest.mark.parametrize(
    "grow_settings", [{"depth": "stack"}, {"source": "a", "ffn_noise": 0.1}, {"source": "a", "layer_map": [-1]}]
)
def test_settings_that_contradict_themselves_are_refused(grow_settings):
    with pytest.raises(ValidationError):
        GrowSettings(**grow_settings)


def test_numbers_that_the_settings_leave_open_are_the_sources():
    source = {**SMALL, "head_width": 8, "context": 128, "vocabulary": 60}
    shape = resolve_shape(ModelSettings(shape={"layers": 9}), 70, 64, source)
    assert (shape.layers, shape.width, shape.heads, shape.kv_heads, shape.ffn) == (9, 32, 4, 2, 48)
    assert (shape.context, shape.vocabulary, shape.head_width) == (128, 70, 8)
    assert resolve_shape(ModelSettings(depth=2), 70, 64, source).width == 128
    wide_heads = {**source, "head_width": 16}  # Qwen3's are wider than width / heads
    shape = resolve_shape(ModelSettings(architecture="qwen3", shape={"heads": 4}), 70, 64, wide_heads)
    assert (shape.heads, shape.kv_heads, shape.head_width) == (4, 2, 16)


@pytest.mark.parametrize("numbers", [{"heads": 3}, {"heads": 8}, {"kv_heads": 3}, {"width": 33}, {"head_width": 4}])
def test_a_number_that_does_not_grow_is_refused_with_that_of_the_source(numbers):
    source = {**SMALL, "head_width": 8, "context": 128, "vocabulary": 60}
    (name,) = numbers
    with pytest.raises(UserError, match=f"set model.shape.{name} to {source[name]} .only depth, ffn and vocabulary"):
        resolve_shape(ModelSettings(shape=numbers), 70, 64, source)
