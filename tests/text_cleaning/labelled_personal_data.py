"""The labelled sentences of tests/fixtures/personal_data.txt, and how well finds agree with the labels."""

import re
from pathlib import Path
from typing import NamedTuple

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "personal_data.txt"
_LABEL = re.compile(r"\[\[([a-z_]+)\|((?:[^\]]|\](?!\]))*)\]\]")


class Labelled(NamedTuple):
    """A text and its labels, (kind, first character, end)."""

    text: str
    labels: list[tuple[str, int, int]]


def labelled_texts() -> list[Labelled]:
    """Return the fixture's texts with the marks taken out."""
    found = []
    for line in FIXTURE.read_text("utf-8").splitlines():
        if not line or line.startswith("# "):
            continue
        line = line.replace("\\", "").replace("⏎", "\n")
        text, labels, copied = "", [], 0
        for match in _LABEL.finditer(line):
            text += line[copied : match.start()]
            labels.append((match[1], len(text), len(text) + len(match[2])))
            text += match[2]
            copied = match.end()
        found.append(Labelled(text + line[copied:], labels))
    return found
