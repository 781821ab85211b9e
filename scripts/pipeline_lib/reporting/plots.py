"""Plots as SVG text, so that the report is one file that needs neither a server nor the network."""

import io
import json
import re
from pathlib import Path

_WIDTH_INCHES, _HEIGHT_INCHES = 7.5, 3.0


def training_curve(metrics: Path, title: str) -> str | None:
    """Return the loss of a metrics.jsonl over its steps as SVG, or None when it holds no loss.

    Every numeric column whose name contains "loss" or "bits_per_byte" is drawn; a validation column has gaps.
    """
    rows = [json.loads(line) for line in metrics.read_text("utf-8").splitlines()]
    names = sorted({key for row in rows for key in row if re.search("loss|bits_per_byte", key)})
    series = {name: [(row["step"], row[name]) for row in rows if row.get(name) is not None] for name in names}
    series = {name: points for name, points in series.items() if points}
    if not series:
        return None
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "report"  # otherwise element ids, and so the file, differ at every call
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(_WIDTH_INCHES, _HEIGHT_INCHES), layout="constrained")
    for name, points in series.items():
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, label=name.replace("_", " "), marker="o" if len(points) < 30 else None, markersize=3)
    axes.set(title=title, xlabel="optimizer step")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    buffer = io.StringIO()
    nameless = dict.fromkeys(("Creator", "Date", "Format", "Type"))  # no metadata block: it differs between versions
    figure.savefig(buffer, format="svg", metadata=nameless)
    pyplot.close(figure)
    return re.sub(r"^.*?(?=<svg)", "", buffer.getvalue(), flags=re.DOTALL)
