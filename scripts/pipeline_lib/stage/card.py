"""The card that ends every stage: what went in, what came out, how long, how much memory, what to type next."""

from typing import Any

from .ledger import MEASURES, Ledger
from .manifest import Manifest
from .output import print_line
from .progress import duration, size

_TOP_REASONS = 6


def spell_amounts(amounts: dict[str, int]) -> str:
    """Spell {documents, bytes, tokens}, leaving out what is zero."""
    parts = []
    if amounts.get("documents"):
        parts.append(f"{amounts['documents']:,} document{'s' * (amounts['documents'] != 1)}")
    if amounts.get("bytes"):
        parts.append(size(amounts["bytes"]))
    if amounts.get("tokens"):
        parts.append(f"{amounts['tokens']:,} tokens")
    return ", ".join(parts) or "nothing"


def dropped_by_reason(ledger: Ledger, flow: str) -> dict[str, dict[str, int]]:
    """Return {reason: amounts} of a flow over all sources, most documents first."""
    total: dict[str, dict[str, int]] = {}
    for name, _, entry in ledger.items():
        if name != flow:
            continue
        for reason, amount in entry.dropped.items():
            seen = total.setdefault(reason, dict.fromkeys(MEASURES, 0))
            for measure, count in zip(MEASURES, amount, strict=True):
                seen[measure] += count
    return dict(sorted(total.items(), key=lambda item: (-item[1]["documents"], item[0])))


def ledger_lines(ledger: Ledger) -> list[tuple[str, str]]:
    """Return (label, text) rows for what entered, was kept and was dropped, flow by flow, every reason by its name."""
    rows = []
    for flow in ledger.flows():
        entered, kept = ledger.total(flow, "entered"), ledger.total(flow, "kept")
        rows.append((flow, f"in {spell_amounts(entered)}; kept {spell_amounts(kept)}"))
        reasons = dropped_by_reason(ledger, flow)
        for reason in list(reasons)[:_TOP_REASONS]:
            rows.append(("", f"dropped, {reason}: {spell_amounts(reasons[reason])}"))
        if rare := list(reasons)[_TOP_REASONS:]:
            rows.append(
                ("", "dropped, others: " + ", ".join(f"{name} ({reasons[name]['documents']:,})" for name in rare))
            )
    return rows


def spell_value(value: Any) -> str:
    """Spell one result: thousands separated, floats with four significant digits, folders of numbers inline."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}"
    if value in ({}, []):
        return "none"
    if isinstance(value, dict):
        return ", ".join(f"{key} {spell_value(item)}" for key, item in value.items())
    if isinstance(value, list):
        return f"{len(value)} entries" if len(value) > 8 else ", ".join(spell_value(item) for item in value)
    return str(value)


def card_rows(manifest: Manifest) -> list[tuple[str, str]]:
    """Return the (label, text) rows of a finished stage."""
    rows = ledger_lines(Ledger.from_json(manifest.ledger))
    rows += [(key.replace("_", " "), spell_value(value)) for key, value in manifest.result.items()]
    rows += [("note", note) for note in manifest.notes]
    run = manifest.run  # of the last start: one that was killed could not say how long it had worked
    alone = " in this start, which went on with earlier work" if run["resumed"] else ""
    rows.append(("time", f"{duration(run['seconds'])}{alone}, peak memory {size(run['peak_memory_bytes'])}"))
    return rows


def print_card(manifest: Manifest, does: str, next_command: str | None) -> None:
    """Print the card of a finished stage: a panel on a terminal, indented lines elsewhere."""
    rows = card_rows(manifest)
    if next_command:
        rows.append(("next", next_command))
    import sys

    if not sys.stdout.isatty():
        print_line(f"{manifest.stage} {does}: done")
        for label, text in rows:
            print_line(f"  {label:<12} {text}")
        return
    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for label, text in rows:
        table.add_row(Text(label, style="bold"), Text(text))
    Console().print(Panel(table, title=f"{manifest.stage} {does}", title_align="left", border_style="green"))
