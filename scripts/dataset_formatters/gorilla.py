"""Gorilla's data sets: APIBench, which answers with Python calls as text, and the function calling leaderboard."""

import re
from typing import Any

from .general import role_content_turns
from .parameter_schemas import with_json_types, with_parameters
from .record import MalformedRecord, Where, list_field, message, refuse_unread, text_field
from .tool_calls import call, calling, tool_schemas
from .turns import conversation

_SECTION = re.compile(r"(?:\A|\n)### ?(Instruction|Input|Output):")
_ANSWER_PART = re.compile("<{3,8}(domain|api_call|api_provider|explanation|code)>{3,8}:?")
_QUOTED_SECTION = re.compile(r"(?:\A\{|, ?)'(Instruction|Input|Output)':")
_QUOTED_ANSWER_PART = re.compile("[{,] ?'(domain|api_call|api_provider|explanation|code)':")
_ANSWERED_WITH = ("api_call", "explanation", "code")


def format_gorilla(record: Any, where: Where) -> dict[str, Any]:
    """Read a row of APIBench, {"code", ...}, or of the function calling leaderboard, {"question", "function", ...}.

    APIBench: "code" holds an instruction and an output in one of two spellings. The question is the instruction (and
    its input, after a blank line); the answer is the output's API call, its explanation and its code, as far as it has
    them, with a blank line between them. Domain and provider are labels, not part of an answer.

        ###Instruction: ...\\n###Output: <<<domain>>>: ...\\n<<<api_call>>>: ...\\n<<<explanation>>>: ...
        {'Instruction': ..., 'Output': {'domain': ..., 'api_call': ..., 'explanation': ..., 'code': ...}}

    The leaderboard: a row has no answer (no_answer) unless "ground_truth" is put beside it, [{function: {argument:
    [accepted value, ...]}}]. Of the accepted values the first is taken; an argument that may be absent ("" among them)
    and is not required is absent when "" comes first. Several questions in a row cannot be answered without results
    (several_questions). Types get JSON's names ("dict" is "object").

    Raises MalformedRecord; reasons no_answer, no_api_call (an output that calls nothing), malformed_answer,
    several_questions.
    """
    refuse_unread(record, (), where)
    if isinstance(record, dict) and "question" in record:
        return _leaderboard(record, where)
    text = text_field(record, "code", where)
    quoted = text.startswith("{")
    sections = _parts(_QUOTED_SECTION if quoted else _SECTION, text, quoted, where)
    if not sections.get("Instruction"):
        raise MalformedRecord("missing_field", where, '"code" has no instruction')
    if not sections.get("Output"):
        raise MalformedRecord("no_answer", where, '"code" has no output')
    parts = _parts(_QUOTED_ANSWER_PART if quoted else _ANSWER_PART, sections["Output"], quoted, where)
    if not parts.get("api_call"):
        raise MalformedRecord("no_api_call", where, "the output names no API call")
    question = "\n\n".join(sections[name] for name in ("Instruction", "Input") if sections.get(name))
    answer = "\n\n".join(parts[name] for name in _ANSWERED_WITH if parts.get(name))
    return conversation([message("user", question), message("assistant", answer)], where)


def _parts(mark: re.Pattern, text: str, quoted: bool, where: Where) -> dict[str, str]:
    """Return the text after each mark by the mark's name; a `quoted` one loses its quotes, the last one its brace."""
    marks = list(mark.finditer(text))
    ends = [found.start() for found in marks[1:]] + [len(text.rstrip().removesuffix("}") if quoted else text)]
    parts = {}
    for found, end in zip(marks, ends, strict=False):
        if found[1] in parts:
            raise MalformedRecord("malformed_answer", where, f'"{found[1]}" comes twice')
        value = text[found.end() : end].strip()
        parts[found[1]] = _unquoted(value, where) if quoted else value
    return parts


def _unquoted(value: str, where: Where) -> str:
    """Return a value without the quotes around it; those inside are escaped in some rows and bare in most."""
    if value[:1] not in ("'", '"'):
        return value
    if len(value) < 2 or value[-1] != value[0]:
        raise MalformedRecord("malformed_answer", where, f"a quote is not closed: {value[:60]!r}")
    return value[1:-1].replace("\\'", "'").replace('\\"', '"').strip()


def _leaderboard(record: dict[str, Any], where: Where) -> dict[str, Any]:
    questions = list_field(record, "question", where)
    if not record.get("ground_truth"):
        raise MalformedRecord("no_answer", where, 'the row has no "ground_truth"')
    if len(questions) != 1:
        raise MalformedRecord("several_questions", where, "the results between several questions are not in the row")
    if not isinstance(questions[0], list):
        raise MalformedRecord("wrong_type", where, '"question" must be a list of lists of messages')
    tools = with_parameters(tool_schemas(record.get("function"), where), with_json_types)
    schemas = {tool["function"]["name"]: tool["function"].get("parameters") for tool in tools}
    calls = []
    for accepted in list_field(record, "ground_truth", where):
        if not isinstance(accepted, dict) or len(accepted) != 1:
            raise MalformedRecord("malformed_answer", where, '"ground_truth" must hold {function: arguments} objects')
        for name, arguments in accepted.items():
            calls.append(call(name, _first_accepted(arguments, schemas.get(name.strip()), where), where))
    return conversation([*role_content_turns(questions[0], where), calling(calls)], where, tools)


def _first_accepted(arguments: Any, schema: Any, where: Where, depth: int = 0) -> dict[str, Any]:
    """Return {name: value} of {name: [accepted value, ...]}; objects among the values have lists in turn."""
    if not isinstance(arguments, dict) or depth == 20:
        raise MalformedRecord("malformed_answer", where, "the accepted arguments of a call are no object")
    schema = schema if isinstance(schema, dict) else {}
    required = schema.get("required") if isinstance(schema.get("required"), list) else []
    properties = schema.get("properties") if isinstance(schema.get("properties"), dict) else {}
    chosen = {}
    for name, values in arguments.items():
        if not isinstance(values, list) or not values:
            raise MalformedRecord("malformed_answer", where, f'"{name}" has no list of accepted values')
        given = [value for value in values if value != ""]
        if values[0] == "" and not (name in required and given):
            if name not in required:
                continue
            given = values
        chosen[name] = _plain(given[0], properties.get(name), where, depth)
    return chosen


def _plain(value: Any, schema: Any, where: Where, depth: int) -> Any:
    if isinstance(value, dict):
        return _first_accepted(value, schema, where, depth + 1)
    if isinstance(value, list) and any(isinstance(each, dict) for each in value) and depth < 20:
        items = schema.get("items") if isinstance(schema, dict) else None
        return [_plain(each, items, where, depth + 1) for each in value]
    return value


CONVERSATIONS = {"gorilla": format_gorilla}
