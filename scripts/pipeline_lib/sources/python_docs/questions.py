"""The wordings in which names and descriptions are asked about, shared by training and evaluation.

An evaluation question is a training question about another name: what is measured is whether the model learned to
describe names, not whether it can read a new form.
"""

from __future__ import annotations

from .harvest import CatalogItem
from .splits import pick

WHAT = (
    "What does the {kind} `{name}` do?",
    "What does `{name}` do?",
    "What is the {kind} `{name}` for?",
    "Describe the {kind} `{name}` in one sentence.",
    "Explain in one sentence what `{name}` does.",
    "In one sentence, what is the purpose of `{name}`?",
    "Summarise the {kind} `{name}`.",
    "I found `{name}` in some code. What does it do?",
)

WHICH = (
    'Which {kind} in `{owner}` fits this description? "{description}"',
    "Name the {kind} in `{owner}` that is described like this: {description}",
    'I am looking for a {kind} in `{owner}`: "{description}" Which one is it?',
    '"{description}" Which {kind} of `{owner}` is documented with these words?',
)

PARAMETERS = (
    "What are the parameters of this {kind}?",
    "List the parameters of `{short}`.",
    "Which arguments does `{short}` accept?",
    "How many parameters does this {kind} have, and what are they called?",
)

SIGNATURE = "Write the one-line summary of this {kind} of `{owner}`.\n\n{signature}"


def ask(wordings: tuple[str, ...], item: CatalogItem) -> str:
    """A question about the item in one of the wordings, always the same one for the same item."""
    return fill(pick(wordings, "wording", wordings[0], item.name), item)


def fill(wording: str, item: CatalogItem) -> str:
    """The wording with the item's particulars in their places."""
    return wording.format(
        kind=item.kind,
        name=item.name,
        short=item.short_name,
        owner=item.owner,
        signature=item.signature,
        description=item.summary,
    )
