"""What is asked of a mixture, what the cap on repeats leaves of it, and that the cache holds just that."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline_lib.config.pack import PackSettings
from pipeline_lib.packing.mixture_plan import BYTES_PER_TOKEN, copies_of, describe_mixture, plan_mixture
from pipeline_lib.stage import UserError
from pipeline_lib.stage.manifest import Manifest

SOURCES = ("library", "other")
TOKENS = {"code": 1_000, "books": 3_000, "web": 16_000}


def test_shares_of_an_epoch_become_copies_of_documents():
    plans = plan_mixture(TOKENS, PackSettings(token_shares={"code": 1, "books": 1, "web": 2}))
    assert {plan.source: plan.copies for plan in plans} == {"books": 5_000 / 3_000, "code": 4.0, "web": 10_000 / 16_000}
    assert {plan.source: plan.wanted for plan in plans} == {"books": 0.25, "code": 0.25, "web": 0.5}
    capped = {plan.source: plan for plan in plans}["code"]
    assert capped.capped and capped.tokens_per_epoch == 4_000, "5 copies were asked for"


def test_an_epoch_of_a_given_size_and_a_source_left_out():
    settings = PackSettings(token_shares={"code": 0.2, "books": 0.8, "web": 0}, epoch_tokens=2_000)
    plans = {plan.source: plan for plan in plan_mixture(TOKENS, settings)}
    assert plans["code"].copies == pytest.approx(0.4) and plans["books"].copies == pytest.approx(1_600 / 3_000)
    assert plans["web"].copies == 0 and not any(plan.capped for plan in plans.values())


def test_sizes_in_bytes_give_the_copies_of_the_tokens_they_stand_for():
    settings = PackSettings(token_shares={"code": 0.5, "books": 0.3, "web": 0.2}, epoch_tokens=9_000)
    sizes = {source: round(count * BYTES_PER_TOKEN) for source, count in TOKENS.items()}
    in_tokens, in_bytes = plan_mixture(TOKENS, settings), plan_mixture(sizes, settings, BYTES_PER_TOKEN)
    assert [plan.capped for plan in in_tokens] == [False, True, False]
    for one, other in zip(in_tokens, in_bytes, strict=True):
        assert (one.source, one.copies, one.wanted, one.capped) == (
            other.source, pytest.approx(other.copies), other.wanted, other.capped
        )  # fmt: skip
        assert other.tokens_per_epoch == pytest.approx(one.tokens_per_epoch * BYTES_PER_TOKEN)
    assert copies_of(sizes, settings, BYTES_PER_TOKEN) == pytest.approx(copies_of(TOKENS, settings))
    without = PackSettings(token_shares=settings.token_shares)
    assert copies_of(sizes, without, BYTES_PER_TOKEN) == copies_of(sizes, without), "proportions need no conversion"


def test_weights_are_epochs_of_a_source_under_the_same_cap():
    plans = plan_mixture(TOKENS, PackSettings(weights={"code": 9, "web": 0.5}, max_repeats=6))
    assert [(plan.source, plan.copies, plan.capped) for plan in plans] == [
        ("books", 1.0, False),
        ("code", 6, True),
        ("web", 0.5, False),
    ]
    lines = describe_mixture(plans)
    assert len(lines) == 4 and lines[2].endswith("capped by pack.max_repeats") and "35.3%" in lines[2]


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.tuples(st.integers(0, 10**12), st.floats(0, 1e6)), min_size=1),
    st.floats(0.1, 50),
)
def test_uncapped_sources_have_the_shares_that_were_asked_for(sources, cap):
    tokens = {name: count for name, (count, _) in sources.items()}
    shares = {name: share for name, (_, share) in sources.items()}
    settings = PackSettings.model_construct(token_shares=shares, epoch_tokens=None, max_repeats=cap, weights={})
    if sum(shares.values()) <= 0:
        return
    plans = plan_mixture(tokens, settings)
    size = sum(tokens[name] for name in tokens if shares[name])
    for plan in plans:
        assert 0 <= plan.copies <= cap
        if not plan.capped and plan.tokens:
            assert plan.tokens_per_epoch == pytest.approx(plan.wanted * size, rel=1e-9)


def test_what_cannot_be_planned_is_an_error_that_names_it():
    with pytest.raises(UserError, match="does not name the source books"):
        plan_mixture(TOKENS, PackSettings(token_shares={"code": 1, "web": 1}))
    with pytest.raises(UserError, match="leaves nothing"):
        plan_mixture({"code": 5}, PackSettings(token_shares={"code": 0, "web": 1}))
    with pytest.raises(ValidationError, match="not both"):
        PackSettings(weights={"a": 1}, token_shares={"a": 1})
    with pytest.raises(ValidationError, match="epoch_tokens"):
        PackSettings(epoch_tokens=5)
    with pytest.raises(ValidationError, match="not between 0 and 1000"):
        PackSettings(token_shares={"a": -1})


@pytest.mark.long
def test_the_packed_epoch_has_the_shares_and_the_plan_is_printed(packing_run, documents):
    shares = {"library": 1.0, "other": 1.0}
    run = packing_run(documents, vocab_size=400, contexts=[128], token_shares=shares, val_fraction=0)
    code, planned, err = run.run("--plan")
    assert code == 0 and "mixture" in planned and "50.0%" in planned, planned + err
    code, out, err = run.run()
    assert code == 0, out + err
    assert "in an epoch" in out
    licences = json.loads((run.packed / "licenses.json").read_text())["documents_by_source_and_license"]
    counts = {name: sum(row["source"] == name for row in documents) for name in shares}
    assert licences == {name: {"PSF-2.0": count} for name, count in counts.items()}
    index = json.loads((run.packed / "index.json").read_text())
    copies = index["plans"][0]["mixture"]["weights"]
    tokens = {name: sum(c["sources"].get(name, {"tokens": 0})["tokens"] for c in index["chunks"]) for name in shares}
    assert copies["library"] * tokens["library"] == pytest.approx(copies["other"] * tokens["other"])
    assert copies["library"] < 1 < copies["other"]
    total = index["plans"][0]["splits"]["train"]["tokens"]
    assert total == pytest.approx(sum(tokens.values()), rel=0.3), "fractions of a copy are settled by few documents"


@pytest.mark.slow
def test_epoch_tokens_is_planned_and_trained_on_in_tokens_not_bytes(packing_run, documents):
    """Two sources of different sizes; an epoch so large that the small one is capped, in tokens but not in bytes."""
    sizes = {name: sum(len(row["text"].encode()) for row in documents if row["source"] == name) for name in SOURCES}
    epoch = 3 * sizes["other"]  # 1.5 copies were it bytes, over 2 by the tokens of so small a vocabulary
    run = packing_run(
        documents,
        vocab_size=400,
        contexts=[128],
        val_fraction=0,
        token_shares=dict.fromkeys(SOURCES, 1.0),
        epoch_tokens=epoch,
        max_repeats=1.8,
        training_bytes=60_000,
    )
    code, planned, err = run.run("--plan")
    assert code == 0, planned + err
    code, out, err = run.run()
    assert code == 0, out + err
    assert "capped by pack.max_repeats" in planned, planned
    assert "capped by pack.max_repeats" in out
    in_plan, in_cache = epochs_of(planned), epochs_of(out)
    assert in_plan["other"] == in_cache["other"] == 1.8
    assert in_plan["library"] == pytest.approx(in_cache["library"], rel=0.2)
    fractions = Manifest.read(run.packed / "manifest.json").result["tokenizer_training"]["fractions"]
    copies = min(1.8, epoch * BYTES_PER_TOKEN / 2 / sizes["library"])
    assert fractions["other"] / fractions["library"] == pytest.approx(1.8 / copies)


def epochs_of(printed: str) -> dict[str, float]:
    """Return {source: epochs} as the table of the mixture has them."""
    rows = (line.split() for line in printed.splitlines())
    return {row[0]: float(row[3]) for row in rows if len(row) > 5 and row[0] in SOURCES}
