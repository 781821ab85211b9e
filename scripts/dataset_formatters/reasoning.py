"""Reasoning in words, and questions with choices: OpenOrca, CoT-Collection, ARC, LogiQA."""

from collections.abc import Callable
from typing import Any

CONVERSATIONS: dict[str, Callable[[Any, str], dict[str, Any]]] = {}
