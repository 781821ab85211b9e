"""Data sets of function calls: Glaive, Hermes, xLAM, Gorilla, ToolBench."""

from collections.abc import Callable
from typing import Any

CONVERSATIONS: dict[str, Callable[[Any, str], dict[str, Any]]] = {}
