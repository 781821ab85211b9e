"""The live bar of a terminal: what must be read is never cut off, what is merely nice gives way.

On 80 columns the label, the count and the time left stand in full. The bar gets the columns that nothing else needs,
and a text that is too long even then ends in an ellipsis. (A table of rich left to itself takes columns away from
whatever is allowed to wrap, and by default that is the count and the time.)
"""

from rich import progress as bars
from rich.console import Console
from rich.table import Column
from rich.text import Text


class _Words(bars.TextColumn):
    """Words that may be shortened; brackets in them are no markup."""

    def __init__(self, template: str):
        super().__init__(template, table_column=Column())

    def render(self, task: bars.Task) -> Text:
        return Text(self.text_format.format(task=task), no_wrap=True, overflow="ellipsis")


class _CountAndTimeLeft(bars.ProgressColumn):
    """12/40 chunks, 0:03:20 left."""

    def __init__(self, unit: str):
        super().__init__(table_column=Column(no_wrap=True))
        self._unit = unit

    def render(self, task: bars.Task) -> Text:
        pace = task.fields["pace"]
        count = pace.spell_count(self._unit)
        if pace.total is None:
            return Text(count)
        if pace.seconds_left is None:
            return Text(f"{count}, -:--:-- left")
        minutes, seconds = divmod(round(pace.seconds_left), 60)
        return Text(f"{count}, {minutes // 60}:{minutes % 60:02d}:{seconds:02d} left")


def live_bar(unit: str, console: Console | None = None) -> bars.Progress:
    """Return a display whose tasks have the fields `pace` (progress.Pace) and `text`; console: stdout if not given."""
    columns = (
        _Words("  {task.description}"),
        bars.BarColumn(bar_width=None, table_column=Column(ratio=1)),
        _CountAndTimeLeft(unit),
        _Words("{task.fields[text]}"),
    )
    return bars.Progress(*columns, console=console, transient=True, expand=True)
