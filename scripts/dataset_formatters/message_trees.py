"""Trees of messages, of which one branch becomes a conversation: OpenAssistant."""

from collections.abc import Callable
from typing import Any

CONVERSATIONS: dict[str, Callable[[Any, str], dict[str, Any]]] = {}
