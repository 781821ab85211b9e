"""Genuine records of the data sets under ../shared/data, and what the formatters make of all of them."""

import gzip
import json
from collections import Counter

from dataset_formatters import FORMAT_HANDLERS, MalformedRecord


def read(path):
    """Return the records of a file of JSON lines or of a JSON array, or the text of another file."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        text = file.read()
    if ".json" not in path.name:
        return text
    if ".jsonl" not in path.name and text.startswith("["):
        return json.loads(text)
    return [json.loads(line) for line in text.split("\n") if line]


def format_all(name, records):
    """Return [(record, what its format makes of it)] of those that are kept, and how many are refused why."""
    kept, refused = [], Counter()
    for number, record in enumerate(records, start=1):
        try:
            kept.append((record, FORMAT_HANDLERS[name](record, f"{name}:{number}")))
        except MalformedRecord as refusal:
            refused[refusal.reason] += 1
    return kept, refused


def messages_of_all(name, records):
    """Return the same with the messages of each conversation alone."""
    kept, refused = format_all(name, records)
    return [(record, made["messages"]) for record, made in kept], refused
