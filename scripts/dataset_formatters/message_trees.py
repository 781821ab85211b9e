"""Trees of messages, of which one branch becomes a conversation: OpenAssistant.

    {"message_tree_id", "tree_state", "prompt": {"role": "prompter", "text", "replies": [{"role": "assistant", ...}]}}

Every message of a tree may have several replies, which people have ranked. One tree gives one conversation, the
branch of the best replies: other branches repeat its beginning, and would be learnt as often as people liked to write.

Trap: the rows of OpenAssistant's Parquet files are single messages that name their parent. They make no conversation
one by one, so they are refused with the name of the file that has the trees.
"""

from typing import Any

from .general import role_of
from .record import MalformedRecord, Message, Where, list_field, message, refuse_unread, text_field
from .turns import conversation

TREES_FILE = "2023-04-12_oasst_ready.trees.jsonl.gz"
"""The file of OpenAssistant/oasst1 with the finished trees; oasst2 has one whose name ends alike."""

_READY = "ready_for_export"


def format_oasst(record: Any, where: Where) -> dict[str, Any]:
    """Read one tree of OpenAssistant: at each message the best reply, down to the last answer of that branch.

    The best reply has the lowest "rank"; those without one come after it, in the order of the file. Messages that are
    deleted or that reviewers rejected are left out with all that follows them. Raises MalformedRecord; reasons
    single_message (a row of the Parquet files), tree_not_ready, prompt_rejected.
    """
    if isinstance(record, dict) and record.get("prompt") is None and "message_id" in record:
        raise MalformedRecord(
            "single_message", where, f"one message is no conversation; read the trees instead, files: [{TREES_FILE}]"
        )
    if not isinstance(record, dict) or not isinstance(record.get("prompt"), dict):
        raise MalformedRecord("no_tree", where, 'no tree: "prompt" must be a message with "text", "role", "replies"')
    state = record.get("tree_state", _READY)
    if state != _READY:
        raise MalformedRecord("tree_not_ready", where, f'"tree_state" is {state!r:.40}, not {_READY}')
    if not _accepted(record["prompt"]):
        raise MalformedRecord("prompt_rejected", where, "the first message is deleted or was rejected in review")
    branch = _best_branch(record["prompt"], where)
    while len(branch) > 1 and branch[-1]["role"] == "user":
        branch.pop()
    refuse_unread(record, (), where)
    return conversation(branch, where)


def _best_branch(prompt: dict[str, Any], where: Where) -> list[Message]:
    """Return the turns from the prompt down the best replies; a loop, because a tree may be deeper than the stack."""
    branch: list[Message] = []
    turn: dict[str, Any] | None = prompt
    while turn is not None:
        role = role_of(turn.get("role"), where)
        if role not in ("user", "assistant"):
            raise MalformedRecord("unknown_role", where, f"a message of the role {turn['role']!r}")
        branch.append(message(role, text_field(turn, "text", where)))
        replies = list_field(turn, "replies", where) if turn.get("replies") else []
        if not all(isinstance(reply, dict) for reply in replies):
            raise MalformedRecord("wrong_type", where, 'an entry of "replies" is no message')
        turn = min(filter(_accepted, replies), key=lambda reply: _rank(reply, where), default=None)
    return branch


def _accepted(turn: dict[str, Any]) -> bool:
    """Whether a message is there to be read; one that nobody has reviewed yet is."""
    return not turn.get("deleted") and turn.get("review_result") is not False


def _rank(reply: dict[str, Any], where: Where) -> tuple[bool, float]:
    rank = reply.get("rank")
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int | float)):
        raise MalformedRecord("wrong_type", where, f'"rank" must be a number, not {type(rank).__name__}')
    return rank is None, rank or 0


CONVERSATIONS = {"oasst": format_oasst}
