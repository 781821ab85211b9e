"""Chat examples (alpaca records): what does X do, which name fits this description, what are the parameters of X."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..base import Record
from .harvest import CatalogItem
from .questions import PARAMETERS, WHAT, WHICH, ask
from .splits import draw

MOST_PARAMETERS = 8
LONGEST_SIGNATURE = 240


def chat_examples(items: Sequence[CatalogItem]) -> Iterator[Record]:
    """One to three examples per item: its description always, its name for a third, its parameters for half of them."""
    for item in items:
        yield _record(item, "what", ask(WHAT, item), "", item.summary)
        if draw("chat which", item.name) % 3 == 0:
            yield _record(item, "which", ask(WHICH, item), "", f"`{item.name}`")
        if _asks_for_parameters(item):
            yield _record(item, "parameters", ask(PARAMETERS, item), item.signature, parameters_answer(item))


def parameters_answer(item: CatalogItem) -> str:
    """A sentence with the number and the names of the parameters."""
    names = [f"`{name}`" for name in item.parameters]
    if not names:
        return f"`{item.short_name}` takes no parameters."
    if len(names) == 1:
        return f"`{item.short_name}` takes 1 parameter: {names[0]}."
    return f"`{item.short_name}` takes {len(names)} parameters: {', '.join(names[:-1])} and {names[-1]}."


def _asks_for_parameters(item: CatalogItem) -> bool:
    return (
        item.kind in ("function", "method")
        and len(item.parameters) <= MOST_PARAMETERS
        and len(item.signature) <= LONGEST_SIGNATURE
        and draw("chat parameters", item.name) % 2 == 0
    )


def _record(item: CatalogItem, family: str, instruction: str, context: str, answer: str) -> Record:
    return {"instruction": instruction, "input": context, "output": answer, "id": f"{item.name}#{family}"}
