"""What a contest of hours has measured so far, so that a second start of it measures the rest."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from .contest import Result


class Journal:
    """Results by what was measured together: one JSON line each, written when the runs are over.

    A result counts again only for the same contender, settings, machine and code: all of that is in its key.
    """

    def __init__(self, path: Path, **always: str):
        """`always`: what every key of this contest has, such as the machine."""
        self._path, self._always = path, always
        lines = path.read_text().splitlines() if path.exists() else []
        known = [json.loads(line) for line in lines]
        self._results = {_spell(line["key"]): [Result(**result) for result in line["results"]] for line in known}

    def once(self, key: dict[str, object], measure: Callable[[], list[Result]]) -> list[Result]:
        """Return the results under this key, which were measured together, measuring them if nobody has."""
        key = {**self._always, **key}
        if (spelled := _spell(key)) not in self._results:
            results = measure()
            with open(self._path, "a") as lines:
                lines.write(json.dumps({"key": key, "results": [asdict(result) for result in results]}) + "\n")
                lines.flush()
                os.fsync(lines.fileno())
            self._results[spelled] = results
        return self._results[spelled]


def _spell(key: dict[str, object]) -> str:
    return json.dumps(key, sort_keys=True)
