"""`--explore` and the effect lines of `--plan`: what other thresholds would do, from scores.parquet, without any text.

A document is "decided" by a rule when it breaks that rule and no other: only those come back when the threshold moves.
Whether they would then be duplicates of something is not known before a run.
What other rules say of a document beyond `max_document_bytes` is not known either: it was not read and has no scores.
It is "near" a threshold when its score is within a tenth of it, or one away where scores are counts. A threshold of 0
means "none at all": there only documents that have something of it are near, with a score of at most 1.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline_lib.stage import UserError
from pipeline_lib.stage.manifest import MANIFEST, Manifest

from .receipts import EXACT, NEAR
from .rules import KEPT, Rule, active_rules, first_broken
from .score_table import RULE, SCORES, read_scores

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline_lib.config.clean import CleanSettings

BORDERLINE = 20
STEPS = (0.5, 0.8, 0.9, 1.1, 1.25, 2.0)  # times the threshold
NEAR_SHARE = 0.1
_PREVIEW = 70


def _columns(rules: Sequence[Rule]) -> list[str]:
    return ["id", "source", "preview", RULE, *(rule.column for rule in rules)]


class Judgement:
    """All documents of a finished run before some rules: bool[rules, documents]."""

    def __init__(self, table: "pa.Table", rules: Sequence[Rule], settings: "CleanSettings"):
        import pyarrow as pa
        import pyarrow.compute as pc

        exempt = pc.is_in(table["source"], pa.array(settings.exempt_sources, pa.string())).to_numpy()
        self.table = table
        self.rules = [rule for rule in rules if rule.column in table.column_names]
        self.unknown = [rule for rule in rules if rule.column not in table.column_names]
        self.scores = {rule.column: np.asarray(table[rule.column].to_numpy(), dtype=np.float64) for rule in self.rules}
        self.judged = {rule.name: ~exempt if not rule.for_everyone else np.ones(len(exempt), bool) for rule in rules}
        self.broken = np.zeros((len(self.rules), table.num_rows), np.bool_)
        for row, rule in enumerate(self.rules):
            self.broken[row] = rule.broken_by(self.scores[rule.column]) & self.judged[rule.name]
        self.verdicts = first_broken(self.scores, self.rules, exempt)
        self.unscored = np.zeros(table.num_rows, np.bool_)
        for scores in self.scores.values():
            self.unscored |= np.isnan(scores)
        self.passes = (self.verdicts == KEPT) & ~self.unscored
        self.undecided = (self.verdicts == KEPT) & self.unscored

    def decided_by(self, row: int) -> np.ndarray:
        """Return bool[documents]: judged by this rule, and known to break no other."""
        others = self.broken.sum(axis=0) - self.broken[row] == 0
        return others & self.judged[self.rules[row].name] & ~self.unscored


def explore_thresholds(stage_folder: Path, settings: "CleanSettings", now: dict[str, Any], wanted: str) -> list[str]:
    """Return the lines for one rule or "all" of them; now: what a run would be made from, as in the manifest.

    Raises UserError for an unknown rule, without scores, and for scores of other settings, texts or data.
    """
    path = stage_folder / SCORES
    if not path.is_file():
        raise UserError(f"{path} does not exist; run this script without --explore first")
    rules = active_rules(settings)
    known = [rule.name for rule in rules]
    if wanted != "all" and wanted not in known:
        raise UserError(f"there is no active rule {wanted!r}; there are {', '.join(known)}")
    table = _scores_of_today(stage_folder, settings, now, rules)
    if table is None:
        raise UserError(
            f"{path} was made from other texts, or with other settings or data for texts or scores than there are now"
            " (not thresholds); run this script again first"
        )
    found = Judgement(table, rules, settings)
    passing = f"{int(found.passes.sum())} pass all rules before deduplication{_spell_unscored(found.undecided)}"
    lines = [f"{table.num_rows} documents; {passing}"]
    for row, rule in enumerate(found.rules):
        if wanted in ("all", rule.name):
            lines += about_rule(found, row, rule)
    lines += [f"{rule.name}: not scored in this run" for rule in found.unknown if wanted in ("all", rule.name)]
    return lines


def _scores_of_today(
    stage_folder: Path, settings: "CleanSettings", now: dict[str, Any], rules: Sequence[Rule]
) -> "pa.Table | None":
    """Return the scores of the finished run, None when what decides texts or scores has changed.

    That is what stage 01 made, the seed of stand-ins and examples, and, under "data", the user's lists and examples and
    what the tasks ask: the manifest says what those were. Settings are compared by what the file says itself.
    """
    manifest = Manifest.read(stage_folder / MANIFEST)
    if manifest is None or any(manifest.fingerprint[part] != now[part] for part in ("inputs", "seed", "data")):
        return None
    return read_scores(stage_folder / SCORES, settings, _columns(rules))


def about_rule(found: Judgement, row: int, rule: Rule) -> list[str]:
    """Return the lines about the rule in this row of the judgement."""
    scores, decided = found.scores[rule.column], found.decided_by(row)
    gone = int(found.broken[row].sum())
    alone = int((found.broken[row] & decided).sum())
    unscored = _spell_unscored(found.broken[row] & found.unscored)
    lines = [
        "",
        f"{rule.name}  {rule.column} {'<' if rule.removes == 'below' else '>'} {rule.threshold:g}:"
        f" {gone} documents break it, {alone} of them no other rule{unscored}",
    ]
    values = scores[decided]
    if rule.threshold:
        for step in STEPS:
            other = Rule(rule.name, rule.column, rule.removes, rule.threshold * step)
            change = alone - int(other.broken_by(values).sum())
            lines.append(f"  {other.threshold:>10g}: {change:+d} documents")
    lines.append(f"  {'off':>10}: {alone:+d} documents")
    return lines + _borderline(found, row, rule, decided)


def _spell_unscored(documents: np.ndarray) -> str:
    """Return the end of a line about documents, bool[documents], of which nothing is known; empty without any."""
    return f", {int(documents.sum())} too long to have been scored" if documents.any() else ""


def _borderline(found: Judgement, row: int, rule: Rule, decided: np.ndarray) -> list[str]:
    """Return the near documents, nearest first to be chosen, half of them on each side where there are as many."""
    scores = found.scores[rule.column]
    distance = np.abs(scores - rule.threshold)
    reach = near_distance(scores, rule.threshold)
    near = (distance <= reach * (1 + 1e-9)) & ((scores != 0) | (rule.threshold != 0))
    candidates = np.flatnonzero(decided & near)
    span = f"{max(rule.threshold - reach, 0):g} to {rule.threshold + reach:g}"
    if not len(candidates):
        return [f"  none near the threshold ({span})"]
    nearest = candidates[np.lexsort((candidates, distance[candidates]))]
    removed, kept = nearest[found.broken[row][nearest]], nearest[~found.broken[row][nearest]]
    half = BORDERLINE // 2
    of_removed = min(len(removed), max(half, BORDERLINE - len(kept)))
    chosen = np.concatenate([removed[:of_removed], kept[: BORDERLINE - of_removed]])
    chosen = chosen[np.lexsort((chosen, scores[chosen]))]
    rows = found.table.select(["id", "preview"]).take(chosen).to_pylist()
    lines = [f"  near the threshold ({span}): {len(chosen)} of {len(candidates)} documents"]
    return lines + [
        f"  {scores[place]:>10.4g} {'goes ' if found.broken[row][place] else 'stays'} {document['id']}"
        f"  {document['preview'][:_PREVIEW]!r}"
        for place, document in zip(chosen.tolist(), rows, strict=True)
    ]


def near_distance(scores: np.ndarray, threshold: float) -> float:
    """Return how far from the threshold a score may be and still be near it."""
    share = NEAR_SHARE * abs(threshold)
    known = scores[~np.isnan(scores)]
    are_counts = float(threshold).is_integer() and bool((known == np.floor(known)).all())
    return max(share, 1.0) if are_counts else share


def effect_of_thresholds(stage_folder: Path, settings: "CleanSettings", now: dict[str, Any]) -> list[str]:
    """Return what `--plan` says about the thresholds, compared with the finished run; nothing without one.

    now: as in `explore_thresholds`.
    """
    path = stage_folder / SCORES
    if not path.is_file():
        return []
    rules = active_rules(settings)
    table = _scores_of_today(stage_folder, settings, now, rules)
    if table is None:
        return ["  effect  unknown: texts, or settings or data that decide scores, have changed since the last run"]
    found = Judgement(table, rules, settings)
    if found.unknown:
        return [f"  effect  unknown: {found.unknown[0].name} was not scored in the last run"]
    before = np.array([rule not in (None, EXACT, NEAR) for rule in table[RULE].to_pylist()], np.bool_)
    now, then = int(found.passes.sum()), int((~before).sum())
    come_back, go = int((before & found.passes).sum()), int((~before & (found.verdicts != KEPT)).sum())
    unscored = _spell_unscored(found.undecided)
    return [
        f"  effect  {now} of {table.num_rows} documents pass the rules, {then} did in the last run: {come_back} come"
        f" back, {go} go{unscored} (from the scores, before deduplication)"
    ]
