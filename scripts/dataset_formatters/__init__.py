"""Formatters: one original record in, one conversation or preference pair out; see docs/add_a_formatter.md.

    FORMAT_HANDLERS[name](record, where) -> {"messages": [...], "tools": None or JSON text}
                                         or {"prompt": [...], "chosen": [...], "rejected": [...]}

`where` names the record for people ("sft/python_chat.jsonl:17"). A record that does not fit raises MalformedRecord,
whose `reason` becomes a row of the stage's ledger; no record ever disappears silently.
"""

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

from pipeline_lib.stage import UserError

from . import function_calling, general, math, message_trees, preference, reasoning
from .record import MalformedRecord

Handler = Callable[[Any, str], dict[str, Any]]

CONVERSATION_HANDLERS: dict[str, Handler] = {
    **general.CONVERSATIONS,
    **message_trees.CONVERSATIONS,
    **math.CONVERSATIONS,
    **reasoning.CONVERSATIONS,
    **function_calling.CONVERSATIONS,
}
PREFERENCE_HANDLERS: dict[str, Handler] = {**preference.PREFERENCES}
FORMAT_HANDLERS: dict[str, Handler] = {**CONVERSATION_HANDLERS, **PREFERENCE_HANDLERS}

__all__ = [
    "CONVERSATION_HANDLERS",
    "FORMAT_HANDLERS",
    "Handler",
    "MalformedRecord",
    "PREFERENCE_HANDLERS",
    "handler_for",
]


def handler_for(name: str, handlers: dict[str, Handler], source: str) -> Handler:
    """Return the handler of a format; `handlers` is one of the tables above, `source` the data set's name.

    Raises UserError that names the nearest known format.
    """
    if name in handlers:
        return handlers[name]
    if name in FORMAT_HANDLERS:
        made = "preference pairs" if name in PREFERENCE_HANDLERS else "conversations"
        raise UserError(f'download.sources "{source}": format "{name}" makes {made}, which this kind of source is not')
    near = get_close_matches(name, handlers, n=1, cutoff=0.0)
    raise UserError(
        f'download.sources "{source}": unknown format "{name}"; the nearest is "{near[0]}"'
        f" (known: {', '.join(sorted(handlers))})"
    )
