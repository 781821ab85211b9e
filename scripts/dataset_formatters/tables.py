"""The tables from the name of a format to its handler."""

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from pipeline_lib.stage import UserError

from . import function_calling, general, math, message_trees, preference, reasoning

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


def handler_for(name: str, handlers: dict[str, Handler], source: str) -> Handler:
    """Return the handler of a format; `handlers` is one of the tables above, `source` the data set's name.

    Raises UserError that names the nearest known format.
    """
    if name in handlers:
        return handlers[name]
    if name in FORMAT_HANDLERS:
        made = "preference pairs" if name in PREFERENCE_HANDLERS else "conversations"
        raise UserError(f'download.sources "{source}": format "{name}" makes {made}, which this kind of source is not')
    raise UserError(f'download.sources "{source}": {unknown_format(name, handlers)}')


def unknown_format(name: str, handlers: Mapping[str, Handler] = FORMAT_HANDLERS) -> str:
    """Return the line for a format that is not among the handlers; it names the nearest one."""
    near = get_close_matches(name, handlers, n=1, cutoff=0.0)
    return f'unknown format "{name}"; the nearest is "{near[0]}" (known: {", ".join(sorted(handlers))})'
