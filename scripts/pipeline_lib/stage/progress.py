"""Progress that suits its reader: a live bar on a terminal, one plain line every ten seconds in a log."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .output import print_line

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_LINE_SECONDS = 10.0


def duration(seconds: float) -> str:
    """Spell a duration for people: 4.2 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size(count: float) -> str:
    """Spell a number of bytes for people, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


class Pace:
    """How much of `total` units (None: unknown) is done, and how fast.

    Units that were finished before this start count as done, but not towards the rate: a run that continues at 90 %
    would otherwise promise to end at once.
    """

    def __init__(self, total: int | None, clock: Callable[[], float] = time.monotonic):
        self.total, self.done = total, 0
        self._clock, self._now_done = clock, 0
        self._start = self._last = clock()

    def advance(self, count: int) -> None:
        """Record `count` units as finished now."""
        self.done += count
        self._now_done += count
        self._last = self._clock()

    def skip(self, count: int) -> None:
        """Record `count` units as finished before this start."""
        self.done += count

    @property
    def rate(self) -> float:
        """Units per second up to the last unit that was finished; 0 before the first."""
        seconds = self._last - self._start
        return self._now_done / seconds if seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """The time until all units are done at this rate, or None when that cannot be known."""
        if self.total is None or not self.rate:
            return None
        return max(0.0, (self.total - self.done) / self.rate - (self._clock() - self._last))

    def spell_count(self, unit: str) -> str:
        """Return the units done, and of how many: 12/40 chunks."""
        return f"{self.done:,}{'' if self.total is None else f'/{self.total:,}'} {unit}"


class PlainProgress:
    """A line at most every ten seconds: label, done, total, rate, time left, the last text given."""

    def __init__(self, total: int | None, label: str, unit: str):
        self.pace, self._label, self._unit = Pace(total), label, unit
        self._printed = time.monotonic()

    def skip(self, count: int) -> None:
        """Record `count` units that were finished before this start."""
        self.pace.skip(count)

    def advance(self, count: int = 1, text: str = "") -> None:
        """Record `count` more units, with an optional short text such as the current loss."""
        self.pace.advance(count)
        now = time.monotonic()
        if now - self._printed < _LINE_SECONDS:
            return
        self._printed = now
        left = self.pace.seconds_left
        facts = [
            f"{self._label} {self.pace.spell_count(self._unit)}",
            f"{self.pace.rate:,.1f}/s",
            *([] if left is None else [f"{duration(left)} left"]),
            *([text] if text else []),
        ]
        print_line(f"  {', '.join(facts)}")


class RichProgress:
    """The same facts as a live bar."""

    def __init__(self, bar: "Progress", task: "TaskID", pace: Pace):
        self.pace, self._bar, self._task = pace, bar, task

    def skip(self, count: int) -> None:
        """Record `count` units that were finished before this start."""
        self.pace.skip(count)
        self._bar.update(self._task, completed=self.pace.done)

    def advance(self, count: int = 1, text: str = "") -> None:
        """Record `count` more units, with an optional short text such as the current loss."""
        self.pace.advance(count)
        self._bar.update(self._task, completed=self.pace.done, **({"text": text} if text else {}))


@contextmanager
def progress(total: int | None, label: str, unit: str) -> Iterator[PlainProgress | RichProgress]:
    """Show the progress of `total` units (None: unknown) for the length of the block."""
    if not sys.stdout.isatty():
        yield PlainProgress(total, label, unit)
        return
    from .live_bar import live_bar

    pace = Pace(total)
    with live_bar(unit) as bar:
        yield RichProgress(bar, bar.add_task(label, total=total, text="", pace=pace), pace)
