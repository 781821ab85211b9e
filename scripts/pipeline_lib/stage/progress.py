"""Progress that suits its reader: a live bar on a terminal, one plain line every ten seconds in a log."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

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


class PlainProgress:
    """A line at most every ten seconds: label, done, total, rate, time left, the last text given."""

    def __init__(self, total: int | None, label: str, unit: str):
        self.total, self.label, self.unit = total, label, unit
        self.done = 0
        self._start = self._last = time.monotonic()

    def advance(self, count: int = 1, text: str = "") -> None:
        """Record `count` more units, with an optional short text such as the current loss."""
        self.done += count
        now = time.monotonic()
        if now - self._last < _LINE_SECONDS:
            return
        self._last = now
        rate = self.done / (now - self._start)
        of_total = f"/{self.total:,}" if self.total else ""
        left = f", {duration((self.total - self.done) / rate)} left" if self.total and rate else ""
        print(
            f"  {self.label} {self.done:,}{of_total} {self.unit}, {rate:,.1f}/s{left}{', ' + text if text else ''}",
            flush=True,
        )


class RichProgress:
    """The same facts as a live bar."""

    def __init__(self, bar: "object", task: "object"):
        self._bar, self._task = bar, task

    def advance(self, count: int = 1, text: str = "") -> None:
        """Record `count` more units, with an optional short text such as the current loss."""
        self._bar.update(self._task, advance=count, **({"text": text} if text else {}))


@contextmanager
def progress(total: int | None, label: str, unit: str) -> Iterator[PlainProgress | RichProgress]:
    """Show the progress of `total` units (None: unknown) for the length of the block."""
    if not sys.stdout.isatty():
        yield PlainProgress(total, label, unit)
        return
    from rich import progress as bars

    columns = (
        bars.TextColumn("  {task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TextColumn(unit),
        bars.TimeRemainingColumn(),
        bars.TextColumn("{task.fields[text]}"),
    )
    with bars.Progress(*columns, transient=True) as bar:
        yield RichProgress(bar, bar.add_task(label, total=total, text=""))
