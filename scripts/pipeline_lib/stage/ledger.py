"""The ledger: everything that came in is either kept or dropped for a named reason, per flow and source.

What: for each flow (text, sft, reasoning, preference, domain, eval) and source, three amounts of documents, bytes and
tokens: entered, kept, and dropped per reason. A stage whose ledger does not balance fails, and what it says has
entered must be what the stage before it kept: the ledgers chain from download to packed sequence.
Trap: cleaning changes the length of a text. Such a change is a drop of 0 documents and some bytes ("rewritten",
negative where text grew), so that `kept` is exactly what the next stage will read.
Beside the amounts stand counts of what was found inside the documents (mailboxes replaced, say). They balance nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from .errors import StageFailure

MEASURES = ("documents", "bytes", "tokens")
SET_ASIDE = "set aside for validation"
NOT_REACHED = "not reached within the budget"
"""What training does not read of what it is given: reasons that all training stages share."""
_ZERO = (0, 0, 0)

Amount = tuple[int, int, int]


def _plus(left: Amount, right: Amount) -> Amount:
    return (left[0] + right[0], left[1] + right[1], left[2] + right[2])


@dataclass
class Entry:
    """What happened to one source within one flow; amounts are (documents, bytes, tokens)."""

    entered: Amount = _ZERO
    kept: Amount = _ZERO
    dropped: dict[str, Amount] = field(default_factory=dict)
    found: dict[str, int] = field(default_factory=dict)

    def balance(self) -> Amount:
        """Return entered - kept - dropped, which must be zero in every measure."""
        total = self.kept
        for amount in self.dropped.values():
            total = _plus(total, amount)
        return (self.entered[0] - total[0], self.entered[1] - total[1], self.entered[2] - total[2])


class Ledger:
    """Counts per (flow, source); ledgers of units add up to the ledger of the stage."""

    def __init__(self) -> None:
        self._entries: dict[tuple[str, str], Entry] = {}

    def _entry(self, flow: str, source: str) -> Entry:
        return self._entries.setdefault((flow, source), Entry())

    def enter(self, flow: str, source: str, documents: int = 1, bytes: int = 0, tokens: int = 0) -> None:
        """Record what came in."""
        entry = self._entry(flow, source)
        entry.entered = _plus(entry.entered, (int(documents), int(bytes), int(tokens)))

    def keep(self, flow: str, source: str, documents: int = 1, bytes: int = 0, tokens: int = 0) -> None:
        """Record what goes on to the next stage."""
        entry = self._entry(flow, source)
        entry.kept = _plus(entry.kept, (int(documents), int(bytes), int(tokens)))

    def drop(self, flow: str, source: str, reason: str, documents: int = 1, bytes: int = 0, tokens: int = 0) -> None:
        """Record what was left out, and why."""
        entry = self._entry(flow, source)
        entry.dropped[reason] = _plus(entry.dropped.get(reason, _ZERO), (int(documents), int(bytes), int(tokens)))

    def count(self, flow: str, source: str, what: str, number: int) -> None:
        """Record how many of something were found inside the documents; this enters no balance."""
        found = self._entry(flow, source).found
        found[what] = found.get(what, 0) + int(number)

    def merge(self, other: "Ledger") -> None:
        """Add another ledger's counts to this one."""
        for (flow, source), entry in other._entries.items():
            self.enter(flow, source, *entry.entered)
            self.keep(flow, source, *entry.kept)
            for reason, amount in entry.dropped.items():
                self.drop(flow, source, reason, *amount)
            for what, number in entry.found.items():
                self.count(flow, source, what, number)

    def items(self) -> Iterator[tuple[str, str, Entry]]:
        """Yield (flow, source, entry) in a fixed order."""
        for flow, source in sorted(self._entries):
            yield flow, source, self._entries[flow, source]

    def total(self, flow: str, side: str = "kept") -> dict[str, int]:
        """Return {documents, bytes, tokens} of all sources of a flow; `side` is entered or kept."""
        total = _ZERO
        for name, _, entry in self.items():
            if name == flow:
                total = _plus(total, getattr(entry, side))
        return dict(zip(MEASURES, total, strict=True))

    def flows(self) -> list[str]:
        """Return the names of the flows, sorted."""
        return sorted({flow for flow, _ in self._entries})

    def check(self) -> None:
        """Raise StageFailure naming the first source whose counts do not balance."""
        for flow, source, entry in self.items():
            for measure, difference in zip(MEASURES, entry.balance(), strict=True):
                if difference:
                    raise StageFailure(
                        f"the ledger does not balance: {flow}/{source} {measure}: in"
                        f" {self._side(entry.entered, measure)},"
                        f" kept {self._side(entry.kept, measure)}, difference {difference}; nothing was published"
                    )

    def check_chain(self, upstream: "Ledger", upstream_name: str) -> None:
        """Raise StageFailure unless what entered here is what `upstream` kept, for every flow that both have.

        Documents are always compared; bytes and tokens where both ledgers counted them.
        """
        for flow in sorted(set(self.flows()) & set(upstream.flows())):
            ours = {source: entry.entered for name, source, entry in self.items() if name == flow}
            theirs = {source: entry.kept for name, source, entry in upstream.items() if name == flow}
            for source in sorted(ours.keys() | theirs.keys()):
                here, there = ours.get(source, _ZERO), theirs.get(source, _ZERO)
                for measure, mine, yours in zip(MEASURES, here, there, strict=True):
                    if mine != yours and (measure == "documents" or (mine and yours)):
                        raise StageFailure(
                            f"the ledgers do not chain: {flow}/{source}: {upstream_name} kept {yours} {measure},"
                            f" {mine} came in here; nothing was published"
                        )

    @staticmethod
    def _side(amount: Amount, measure: str) -> int:
        return amount[MEASURES.index(measure)]

    def to_json(self) -> dict[str, Any]:
        """Return {flow: {source: {"in": amounts, "kept": amounts, "dropped": {reason: amounts}}}} without zeros.

        An entry with counts also has "found": {what: number}.
        """

        def spell(amount: Amount) -> dict[str, int]:
            return {measure: count for measure, count in zip(MEASURES, amount, strict=True) if count}

        result: dict[str, Any] = {}
        for flow, source, entry in self.items():
            dropped = {reason: spell(entry.dropped[reason]) for reason in sorted(entry.dropped)}
            result.setdefault(flow, {})[source] = {
                "in": spell(entry.entered),
                "kept": spell(entry.kept),
                "dropped": dropped,
            }
            if entry.found:
                result[flow][source]["found"] = {what: entry.found[what] for what in sorted(entry.found)}
        return result

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Ledger":
        """Read what `to_json` wrote."""
        ledger = cls()
        for flow, sources in value.items():
            for source, entry in sources.items():
                ledger.enter(flow, source, **{"documents": 0, **entry["in"]})
                ledger.keep(flow, source, **{"documents": 0, **entry["kept"]})
                for reason, amount in entry["dropped"].items():
                    ledger.drop(flow, source, reason, **{"documents": 0, **amount})
                for what, number in entry.get("found", {}).items():
                    ledger.count(flow, source, what, number)
        return ledger
