"""`--explore` and the effect lines of `--plan`: what other thresholds would do, from scores.parquet, without any text.

A document is "decided" by a rule when it breaks that rule and no other: only those come back when the threshold moves.
Whether they would then be duplicates of something is not known before a run.
What other rules say of a document beyond `max_document_bytes` is not known either: it was not read and has no scores.
It is "near" a threshold when its score is within a tenth of it, or one away where scores are counts. A threshold of 0
means "none at all": there only documents that have something of it are near, with a score of at most 1.
Scores are read in parts and added up; the beginning of a text is read for the few documents that are shown.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline_lib.stage import UserError
from pipeline_lib.stage.catalog import BY_NAME
from pipeline_lib.stage.manifest import MANIFEST, Manifest

from .receipts import EXACT, NEAR
from .rules import KEPT, Rule, active_rules, first_broken
from .score_table import RULE, SCORES, ScoreFile, open_scores

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline_lib.config.clean import CleanSettings

BORDERLINE = 20
STEPS = (0.5, 0.8, 0.9, 1.1, 1.25, 2.0)  # times the threshold
NEAR_SHARE = 0.1
_PREVIEW = 70


class Judgement:
    """Some documents of a finished run before some rules: bool[rules, documents]."""

    def __init__(self, table: "pa.Table", rules: Sequence[Rule], settings: "CleanSettings"):
        """table: source and the score columns; rules that it has no column for are left out."""
        import pyarrow as pa
        import pyarrow.compute as pc

        exempt = pc.is_in(table["source"], pa.array(settings.exempt_sources, pa.string())).to_numpy()
        self.rules = [rule for rule in rules if rule.column in table.column_names]
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


class RuleCounts:
    """What one rule does, added up over parts of the documents; of those near its threshold the nearest of each side.

    Whether scores are counts, on which depends what is near, is known at the end: until then both readings are kept.
    """

    def __init__(self, rule: Rule):
        self._rule = rule
        self._broken = self._alone = self._unscored = 0
        self._steps = np.zeros(len(STEPS), np.int64)
        self._whole = float(rule.threshold).is_integer()
        self._near = dict.fromkeys((self._reach(False), self._reach(True)), 0)
        self._nearest = {goes: np.empty((3, 0)) for goes in (True, False)}  # distances, places, scores

    def _reach(self, are_counts: bool) -> float:
        share = NEAR_SHARE * abs(self._rule.threshold)
        return max(share, 1.0) if are_counts else share

    def add(self, found: Judgement, row: int, first: int) -> None:
        """Count the documents whose place in the file begins at `first`; row: of this rule in the judgement."""
        rule, scores = self._rule, found.scores[self._rule.column]
        decided, broken = found.decided_by(row), found.broken[row]
        self._broken += int(broken.sum())
        self._alone += int((broken & decided).sum())
        self._unscored += int((broken & found.unscored).sum())
        values = scores[decided]
        for step, times in enumerate(STEPS):
            other = Rule(rule.name, rule.column, rule.removes, rule.threshold * times)
            self._steps[step] += int(other.broken_by(values).sum())
        known = scores[~np.isnan(scores)]
        self._whole = self._whole and bool((known == np.floor(known)).all())
        distance = np.abs(scores - rule.threshold)
        near = decided & ((scores != 0) | (rule.threshold != 0))
        for reach in self._near:
            self._near[reach] += int((near & _within(distance, reach)).sum())
        near &= _within(distance, self._reach(True))
        for goes in self._nearest:
            places = np.flatnonzero(near & (broken == goes))
            more = np.stack([distance[places], places + first, scores[places]])
            both = np.concatenate([self._nearest[goes], more], axis=1)
            self._nearest[goes] = both[:, np.lexsort((both[1], both[0]))[:BORDERLINE]]

    def borderline(self) -> list[tuple[int, float, bool]]:
        """Return (place, score, whether it goes) of the near documents that are shown, by score.

        They are the nearest, half of them on each side where there are as many.
        """
        reach = self._reach(self._whole)
        removed, kept = (self._nearest[goes][:, _within(self._nearest[goes][0], reach)] for goes in (True, False))
        of_removed = min(removed.shape[1], max(BORDERLINE // 2, BORDERLINE - kept.shape[1]))
        sides = ((removed[:, :of_removed], True), (kept[:, : BORDERLINE - of_removed], False))
        shown = [(int(place), score, goes) for side, goes in sides for _, place, score in side.T.tolist()]
        return sorted(shown, key=lambda document: (document[1], document[0]))

    def lines(self, documents: dict[int, dict[str, Any]]) -> list[str]:
        """Return the lines about the rule; documents: id and preview of those on the borderline, by place."""
        rule, alone = self._rule, self._alone
        lines = [
            "",
            f"{rule.name}  {rule.column} {'<' if rule.removes == 'below' else '>'} {rule.threshold:g}:"
            f" {self._broken} documents break it, {alone} of them no other rule{_spell_unscored(self._unscored)}",
        ]
        if rule.threshold:
            for times, gone in zip(STEPS, self._steps.tolist(), strict=True):
                lines.append(f"  {rule.threshold * times:>10g}: {alone - gone:+d} documents")
        lines.append(f"  {'off':>10}: {alone:+d} documents")
        reach = self._reach(self._whole)
        span = f"{max(rule.threshold - reach, 0):g} to {rule.threshold + reach:g}"
        shown = self.borderline()
        if not shown:
            return [*lines, f"  none near the threshold ({span})"]
        lines.append(f"  near the threshold ({span}): {len(shown)} of {self._near[reach]} documents")
        return lines + [
            f"  {score:>10.4g} {'goes ' if goes else 'stays'} {documents[place]['id']}"
            f"  {documents[place]['preview'][:_PREVIEW]!r}"
            for place, score, goes in shown
        ]


def _within(distance: np.ndarray, reach: float) -> np.ndarray:
    return distance <= reach * (1 + 1e-9)


def about_rules(
    scores: ScoreFile, rules: Sequence[Rule], settings: "CleanSettings", wanted: str
) -> tuple[int, int, list[str]]:
    """Return (documents that pass all rules, those that only the unread rest could remove, lines about the rules)."""
    passing = undecided = first = 0
    counts = {rule.name: RuleCounts(rule) for rule in rules if wanted in ("all", rule.name)}
    for table in scores.chunks(["source", *(rule.column for rule in rules)]):
        found = Judgement(table, rules, settings)
        passing += int(found.passes.sum())
        undecided += int(found.undecided.sum())
        for row, rule in enumerate(found.rules):
            if rule.name in counts:
                counts[rule.name].add(found, row, first)
        first += table.num_rows
    scored = [rule for rule in rules if rule.name in counts and rule.column in scores.columns]
    shown = {place for rule in scored for place, _, _ in counts[rule.name].borderline()}
    documents = scores.documents(shown, ["id", "preview"])
    lines = [line for rule in scored for line in counts[rule.name].lines(documents)]
    unknown = [rule.name for rule in rules if rule.name in counts and rule not in scored]
    return passing, undecided, lines + [f"{name}: not scored in this run" for name in unknown]


def texts_that_are_there(run_folder: Path, starts_packed: bool) -> dict[str, str]:
    """Return the input of stage 02 as in a manifest, {stage: digest}, as far as it lies in the run.

    starts_packed: the run begins with a packed cache, so whatever its stage 01 reads, stage 02 does not clean it.
    """
    read = [] if starts_packed else BY_NAME["02_clean"].needs
    found = {name: Manifest.read(run_folder / name / MANIFEST) for name in read}
    return {name: manifest.outputs_digest for name, manifest in found.items() if manifest is not None}


def explore_thresholds(stage_folder: Path, settings: "CleanSettings", now: dict[str, Any], wanted: str) -> list[str]:
    """Return the lines for one rule or "all" of them; now: what a run would be made from, as in the manifest.

    Without "inputs" in it nothing tells whether the texts have changed since; that they are not compared is a line.
    Raises UserError for an unknown rule, without scores, and for scores of other settings, texts or data.
    """
    path = stage_folder / SCORES
    if not path.is_file():
        raise UserError(f"{path} does not exist; run this script without --explore first")
    rules = active_rules(settings)
    known = [rule.name for rule in rules]
    if wanted != "all" and wanted not in known:
        nearest = difflib.get_close_matches(wanted, known, n=1)
        there_are = f"there are {', '.join(known)}; duplicates are not foreseen"
        hint = f"did you mean {nearest[0]!r}?" if nearest else there_are
        raise UserError(f"there is no active rule {wanted!r}; {hint}")
    scores = _scores_of_today(stage_folder, settings, now)
    if scores is None:
        raise UserError(
            f"{path} was made from other texts, or with other settings or data for texts or scores than there are now"
            " (not thresholds); run this script again first"
        )
    passing, undecided, lines = about_rules(scores, rules, settings, wanted)
    passing_all = f"{passing} pass all rules before deduplication{_spell_unscored(undecided)}"
    unproved = [] if now["inputs"] else ["the texts of stage 01 that these scores are of are not here to be compared"]
    return [f"{scores.rows} documents; {passing_all}", *unproved, *lines]


def _scores_of_today(stage_folder: Path, settings: "CleanSettings", now: dict[str, Any]) -> ScoreFile | None:
    """Return the scores of the finished run, None when what decides texts or scores has changed.

    That is what stage 01 made, the seed of stand-ins and examples, and, under "data", the user's lists and examples and
    what the tasks ask: the manifest says what those were. Settings are compared by what the file says itself. Inputs
    that `now` leaves out are not there, which proves no change.
    """
    manifest = Manifest.read(stage_folder / MANIFEST)
    if manifest is None or any(manifest.fingerprint[part] != now[part] for part in ("seed", "data")):
        return None
    if any(manifest.fingerprint["inputs"].get(name) != digest for name, digest in now["inputs"].items()):
        return None
    return open_scores(stage_folder / SCORES, settings)


def _spell_unscored(documents: int) -> str:
    """Return the end of a line about documents of which nothing is known; empty without any."""
    return f", {documents} too long to have been scored" if documents else ""


def effect_of_thresholds(stage_folder: Path, settings: "CleanSettings", now: dict[str, Any]) -> list[str]:
    """Return what `--plan` says about the thresholds, compared with the finished run; nothing without one.

    now: as in `explore_thresholds`.
    """
    path = stage_folder / SCORES
    if not path.is_file():
        return []
    rules = active_rules(settings)
    scores = _scores_of_today(stage_folder, settings, now)
    if scores is None:
        return ["  effect  unknown: texts, or settings or data that decide scores, have changed since the last run"]
    if unknown := [rule.name for rule in rules if rule.column not in scores.columns]:
        return [f"  effect  unknown: {unknown[0]} was not scored in the last run"]
    passing = passed = come_back = go = undecided = 0
    for table in scores.chunks(["source", RULE, *(rule.column for rule in rules)]):
        found = Judgement(table, rules, settings)
        before = _removed_by_a_rule(table[RULE])
        passing += int(found.passes.sum())
        passed += int((~before).sum())
        come_back += int((before & found.passes).sum())
        go += int((~before & (found.verdicts != KEPT)).sum())
        undecided += int(found.undecided.sum())
    return [
        f"  effect  {passing} of {scores.rows} documents pass the rules, {passed} did in the last run: {come_back} come"
        f" back, {go} go{_spell_unscored(undecided)} (from the scores, before deduplication)"
    ]


def _removed_by_a_rule(names: "pa.ChunkedArray") -> np.ndarray:
    """Return bool[documents]: removed, and not as a duplicate."""
    import pyarrow as pa
    import pyarrow.compute as pc

    duplicate = pc.is_in(names, pa.array([EXACT, NEAR], names.type))
    return pc.and_(pc.is_valid(names), pc.invert(duplicate)).to_numpy()
