"""Formatters: one original record in, one conversation or preference pair out; see docs/add_a_formatter.md.

    FORMAT_HANDLERS[name](record, where) -> {"messages": [...], "tools": None or JSON text}
                                         or {"prompt": [...], "chosen": [...], "rejected": [...]}

`where` names the record for people ("sft/python_chat.jsonl:17"). A record that does not fit raises MalformedRecord,
whose `reason` becomes a row of the stage's ledger; no record ever disappears silently.

`python -m dataset_formatters FILE` says which format a file is in (run it with PYTHONPATH=scripts).
"""

from .alpaca_conversion import convert_sharegpt_to_alpaca
from .detect import detect_dataset_format
from .record import MalformedRecord
from .tables import CONVERSATION_HANDLERS, FORMAT_HANDLERS, PREFERENCE_HANDLERS, Handler, handler_for
from .validation import DatasetValidationResult, validate_dataset

__all__ = [
    "CONVERSATION_HANDLERS",
    "DatasetValidationResult",
    "FORMAT_HANDLERS",
    "Handler",
    "MalformedRecord",
    "PREFERENCE_HANDLERS",
    "convert_sharegpt_to_alpaca",
    "detect_dataset_format",
    "handler_for",
    "validate_dataset",
]
