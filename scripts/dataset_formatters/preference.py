"""Preference pairs: TRL's conversational layout, and Anthropic's hh-rlhf transcripts.

An hh-rlhf record is two whole transcripts, "\\n\\nHuman: ...\\n\\nAssistant: ...", that share everything but the last
answer. Splitting on the speaker marks and comparing the turns before the last one gives the prompt; a record whose
transcripts differ earlier has no single prompt and is refused.
"""

import re
from typing import Any

from .general import content_of, refuse_calls, role_content_turns
from .record import MalformedRecord, Message, Where, list_field, message, text_field
from .turns import preference

_SPEAKER = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
_ROLE = {"Human": "user", "Assistant": "assistant"}


def _side(record: Any, name: str, where: Where) -> list[Message]:
    value = record.get(name) if isinstance(record, dict) else None
    if isinstance(value, str):
        return [message("assistant", value.strip())]
    return refuse_calls(role_content_turns(list_field(record, name, where), where), where)


def format_preference(record: Any, where: Where) -> dict[str, Any]:
    """Read {"prompt", "chosen", "rejected"}, each a list of {"role", "content"} or a plain string.

    Sides that repeat the prompt (whole conversations) are cut after it. Raises MalformedRecord; reason
    prompt_mismatch when a side repeats another prompt.
    """
    if not isinstance(record, dict):
        raise MalformedRecord("wrong_type", where, f"a record must be an object, not {type(record).__name__}")
    if isinstance(record.get("prompt"), str):
        prompt = [message("user", content_of(record["prompt"], where))]
    else:
        prompt = refuse_calls(role_content_turns(list_field(record, "prompt", where), where), where)
    sides = []
    for name in ("chosen", "rejected"):
        side = _side(record, name, where)
        if len(side) > 1:
            if side[:-1] != prompt:
                raise MalformedRecord("prompt_mismatch", where, f'"{name}" answers another prompt')
            side = side[-1:]
        sides.append(side)
    return preference(prompt, *sides, where)


def transcript_turns(transcript: str, where: Where) -> list[Message]:
    """Return the turns of "\\n\\nHuman: ...\\n\\nAssistant: ...". Raises MalformedRecord."""
    pieces = _SPEAKER.split("\n\n" + transcript.lstrip())
    if pieces[0].strip() or len(pieces) < 3:
        raise MalformedRecord("not_a_transcript", where, 'the text does not begin with "Human:" or "Assistant:"')
    return [message(_ROLE[who], what.strip()) for who, what in zip(pieces[1::2], pieces[2::2], strict=True)]


def format_hh_rlhf(record: Any, where: Where) -> dict[str, Any]:
    """Read {"chosen", "rejected"}: two transcripts that differ in the last answer only."""
    chosen = transcript_turns(text_field(record, "chosen", where), where)
    rejected = transcript_turns(text_field(record, "rejected", where), where)
    if chosen[:-1] != rejected[:-1]:
        raise MalformedRecord("prompt_mismatch", where, "the transcripts differ before the last turn")
    return preference(chosen[:-1], chosen[-1:], rejected[-1:], where)


PREFERENCES = {"preference": format_preference, "hh-rlhf": format_hh_rlhf}
