"""Preference pairs: two answers to a prompt, in the layouts of TRL, Anthropic, OpenAI, Orca, UltraFeedback and others.

An hh-rlhf record is two whole transcripts, "\\n\\nHuman: ...\\n\\nAssistant: ...", that share everything but the last
answer. Splitting on the speaker marks and comparing the turns before the last one gives the prompt; a record whose
transcripts differ earlier has no single prompt and is refused.
"""

import re
from typing import Any

from .general import content_of, from_value_turns, refuse_calls, role_content_turns, with_system
from .record import MalformedRecord, Message, Where, has_entries, list_field, message, refuse_unread, text_field
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

    Sides that repeat the prompt (whole conversations) are cut after it. Without "prompt" it is what both sides begin
    with, all but the last turn; so it is where it is a text and they lead up to that text, with a system message or
    earlier turns before it. An optional "system" text comes first, whether the sides repeat it or not. Raises
    MalformedRecord; reason prompt_mismatch when a side has another prompt.
    """
    if not isinstance(record, dict):
        raise MalformedRecord("wrong_type", where, f"a record must be an object, not {type(record).__name__}")
    sides = {name: _side(record, name, where) for name in ("chosen", "rejected")}
    if isinstance(record.get("prompt"), str):
        asked = message("user", content_of(record["prompt"], where))
        before, other = (side[:-1] for side in sides.values())
        prompt = before if before == other and before[-1:] == [asked] else [asked]
    elif record.get("prompt") is None and len(sides["chosen"]) > 1:
        prompt = sides["chosen"][:-1]
    else:
        prompt = refuse_calls(role_content_turns(list_field(record, "prompt", where), where), where)
    refuse_unread(record, ("system",), where)
    whole = with_system(record, prompt, where)
    for name, side in sides.items():
        if len(side) > 1 and side[:-1] not in (prompt, whole):
            raise MalformedRecord("prompt_mismatch", where, f'"{name}" answers another prompt')
    return preference(whole, sides["chosen"][-1:], sides["rejected"][-1:], where)


def format_sharegpt_preference(record: Any, where: Where) -> dict[str, Any]:
    """Read {"conversations": [{"from", "value"}, ...], "chosen": {"from", "value"}, "rejected": ...}.

    An optional "system" text comes first.
    """
    prompt = from_value_turns(list_field(record, "conversations", where), where)
    answers = [from_value_turns([record.get(name)], where) for name in ("chosen", "rejected")]
    prompt, *answers = (refuse_calls(turns, where) for turns in (prompt, *answers))
    refuse_unread(record, ("system",), where)
    return preference(with_system(record, prompt, where), *answers, where)


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
    refuse_unread(record, (), where)
    if chosen[:-1] != rejected[:-1]:
        raise MalformedRecord("prompt_mismatch", where, "the transcripts differ before the last turn")
    return preference(chosen[:-1], chosen[-1:], rejected[-1:], where)


def format_orca_dpo(record: Any, where: Where) -> dict[str, Any]:
    """Read {"system", "question", "chosen", "rejected"}, all of them texts, the system text optional."""
    prompt = [message("user", text_field(record, "question", where))]
    refuse_unread(record, ("system",), where)
    answers = [_answer(record, name, where) for name in ("chosen", "rejected")]
    return preference(with_system(record, prompt, where), *answers, where)


def format_stack_exchange(record: Any, where: Where) -> dict[str, Any]:
    """Read {"question", "response_j", "response_k"}, of which response_j got more votes."""
    prompt = [message("user", text_field(record, "question", where))]
    refuse_unread(record, (), where)
    return preference(prompt, _answer(record, "response_j", where), _answer(record, "response_k", where), where)


def _answer(record: dict[str, Any], name: str, where: Where) -> list[Message]:
    """Return a field's text as an answer; a blank one is left to `preference`, which calls it an empty side."""
    if record.get(name) is None:
        raise MalformedRecord("missing_field", where, f'no field "{name}"')
    return [message("assistant", text_field(record, name, where, required=False))]


def format_openai_preference(record: Any, where: Where) -> dict[str, Any]:
    """Read {"input": {"messages"}, "preferred_output": [turn], "non_preferred_output": [turn]}, OpenAI's layout.

    Raises MalformedRecord; reason tools_offered when the input offers functions, which the answers of a pair cannot
    call and its prompt would not show.
    """
    if not isinstance(record, dict) or not isinstance(record.get("input"), dict):
        raise MalformedRecord("wrong_type", where, 'a record must be an object whose "input" is an object')
    if has_entries(record["input"].get("tools")):
        raise MalformedRecord("tools_offered", where, "preference pairs cannot call functions")
    refuse_unread(record, ("input",), where)
    refuse_unread(record["input"], ("tools",), where)
    sides = [(record["input"], "messages"), (record, "preferred_output"), (record, "non_preferred_output")]
    turns = [role_content_turns(list_field(holder, name, where), where) for holder, name in sides]
    return preference(*(refuse_calls(each, where) for each in turns), where)


def format_ultrafeedback(record: Any, where: Where) -> dict[str, Any]:
    """Read {"instruction", "completions": [{"response", "overall_score"}, ...]}: the best answer against the worst.

    Of equal scores the first answer counts. Raises MalformedRecord; reasons fewer_than_two_answers, score_is_no_number
    and equal_scores, when no answer is better than another.
    """
    prompt = [message("user", text_field(record, "instruction", where))]
    refuse_unread(record, (), where)
    completions = record.get("completions")
    if not isinstance(completions, list) or not all(isinstance(each, dict) for each in completions):
        raise MalformedRecord("wrong_type", where, '"completions" must be a list of objects')
    if len(completions) < 2:
        raise MalformedRecord("fewer_than_two_answers", where, f"{len(completions)} completions make no pair")
    scores = [_score(each, where) for each in completions]
    best, worst = scores.index(max(scores)), scores.index(min(scores))
    if scores[best] == scores[worst]:
        raise MalformedRecord("equal_scores", where, f"all {len(scores)} completions have the score {scores[best]}")
    return preference(prompt, *(_answer(completions[n], "response", where) for n in (best, worst)), where)


def _score(completion: dict[str, Any], where: Where) -> float:
    score = completion.get("overall_score")
    if isinstance(score, bool) or not isinstance(score, int | float) or score != score:
        raise MalformedRecord("score_is_no_number", where, f'the "overall_score" of a completion is {score!r:.40}')
    return score


PREFERENCES = {
    "preference": format_preference,
    "sharegpt-preference": format_sharegpt_preference,
    "hh-rlhf": format_hh_rlhf,
    "orca-dpo": format_orca_dpo,
    "openai-preference": format_openai_preference,
    "ultrafeedback": format_ultrafeedback,
    "stack-exchange": format_stack_exchange,
}
