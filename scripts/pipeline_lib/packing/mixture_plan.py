"""How much of each source an epoch holds: from shares of the tokens to copies of a document, with a cap on repeats.

Two ways to say it. `pack.weights` gives the copies outright (2.5 epochs of one source while the others are read once).
`pack.token_shares` gives what part of an epoch's tokens each source should be; the copies follow from how many tokens
the source has. A source that would have to be repeated more often than `pack.max_repeats` gives what it has, that many
times, and the others keep their amounts, so its share comes out smaller than asked: the plan says so before anything
is packed.
Muennighoff et al. 2023: up to four repetitions are nearly as good as new text, more soon are worth nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline_lib.stage import UserError

from .packing_plan import Mixture

if TYPE_CHECKING:
    from pipeline_lib.config.pack import PackSettings

BYTES_PER_TOKEN = 4.0
"""Bytes of text that a token is taken to stand for before there is a tokenizer: English prose has 4 to 5, code 3 to 4,
and only where `pack.max_repeats` begins to cut a source depends on it."""


@dataclass(frozen=True)
class SourcePlan:
    """One source of a mixture: tokens it has, share asked for (None: copies were), copies per epoch, cut by the cap?"""

    source: str
    tokens: int
    wanted: float | None
    copies: float
    capped: bool

    @property
    def tokens_per_epoch(self) -> float:
        """Tokens of an epoch that are of this source, as expected over the hashes that settle fractions of a copy."""
        return self.tokens * self.copies


def plan_mixture(tokens: Mapping[str, int], settings: "PackSettings", bytes_per_token: float = 1.0) -> list[SourcePlan]:
    """Return the plan of every source that has tokens, in order of name.

    tokens: of each source, or its bytes, given together with `bytes_per_token`, by which `epoch_tokens` becomes bytes
    too; the plan counts the same unit. Raises UserError when `token_shares` leaves out a source or none of its sources
    has text.
    """
    shares = settings.token_shares
    if not shares:
        return [
            SourcePlan(
                source,
                tokens[source],
                None,
                min(settings.weights.get(source, 1.0), settings.max_repeats),
                settings.weights.get(source, 1.0) > settings.max_repeats,
            )
            for source in sorted(tokens)
        ]
    if forgotten := sorted(set(tokens) - set(shares)):
        raise UserError(
            f"pack.token_shares does not name the source {forgotten[0]}; give it a share, 0 to leave it out"
            f" (the sources are {', '.join(sorted(tokens))})"
        )
    named = {source: shares[source] for source in sorted(tokens)}
    whole = sum(named.values())
    if whole <= 0:
        raise UserError("pack.token_shares leaves nothing: no source with a share above 0 has text")
    asked = settings.epoch_tokens and settings.epoch_tokens * bytes_per_token
    size = asked or sum(tokens[source] for source, share in named.items() if share)
    plans = []
    for source, share in named.items():
        copies = share / whole * size / tokens[source] if tokens[source] else 0.0
        capped = copies > settings.max_repeats
        plans.append(SourcePlan(source, tokens[source], share / whole, min(copies, settings.max_repeats), capped))
    return plans


def copies_of(tokens: Mapping[str, int], settings: "PackSettings", bytes_per_token: float = 1.0) -> dict[str, float]:
    """Return the copies of a document of each source, nothing when the settings ask for no mixture.

    tokens and bytes_per_token: as for `plan_mixture`.
    """
    if not (settings.token_shares or settings.weights):
        return {}
    return {plan.source: plan.copies for plan in plan_mixture(tokens, settings, bytes_per_token)}


def mixture_of(chunks: Iterable[Mapping[str, Any]], settings: "PackSettings", seed: int) -> Mixture:
    """Return the mixture for these chunks (their entries in the index): what the plans of the cache are made with."""
    return Mixture(copies_of(training_tokens(chunks), settings), settings.rehydration, seed)


def training_tokens(chunks: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Return the tokens of each source in the training chunks; validation is never repeated."""
    tokens: dict[str, int] = {}
    for chunk in chunks:
        if chunk["split"] == "train":
            for source, amounts in chunk["sources"].items():
                tokens[source] = tokens.get(source, 0) + amounts["tokens"]
    return tokens


def describe_mixture(plans: list[SourcePlan], unit: str = "tokens") -> list[str]:
    """Return the plan as lines of a table; `unit` is what was counted (bytes, before the text is encoded)."""
    epoch = sum(plan.tokens_per_epoch for plan in plans) or 1.0
    width = max([len(plan.source) for plan in plans], default=6)
    lines = [f"  {'source':{width}}  {unit:>15}  {'asked':>6}  {'epochs':>7}  {'in an epoch':>15}  share"]
    for plan in plans:
        asked = "" if plan.wanted is None else f"{plan.wanted:.1%}"
        remark = "  capped by pack.max_repeats" if plan.capped else ""
        lines.append(
            f"  {plan.source:{width}}  {plan.tokens:15,}  {asked:>6}  {plan.copies:7.3f}"
            f"  {plan.tokens_per_epoch:15,.0f}  {plan.tokens_per_epoch / epoch:.1%}{remark}"
        )
    return lines
