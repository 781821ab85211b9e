"""One text document per module: its docstring, then each documented name with its signature and docstring."""

from __future__ import annotations

from collections.abc import Iterable

from .extraction import Item, Module
from .splits import split_of


def render(module: Module, items: Iterable[Item]) -> str:
    """The document of a module, showing only `items`; "" when nothing at all is documented."""
    blocks = [module.docstring] if module.docstring else []
    blocks += [f"{item.header}\n\n{item.docstring}" for item in items]
    return "\n\n".join([module.name, *blocks]) + "\n" if blocks else ""


def training_items(module: Module) -> list[Item]:
    """The items that pretraining may see: all but the evaluation split."""
    return [item for item in module.items if split_of(item.name) != "eval"]
