"""The gate file: what a run must show before its model is promoted, each demand with a declared direction.

    gates:
      - name: four-choice accuracy is above chance
        group: sft                              # optional; `--only sft` checks one group
        metric: sft.python_choice.accuracy      # a path into results.json, see verdict.py
        direction: higher                       # never guessed from the metric's name
        threshold: 0.25
        use: low                                # value (default), or the low or high confidence bound
      - name: the training was compiled
        metric: training.05_pretrain.compiled
        equals: true                            # booleans are compared as booleans

Comparisons are strict (0.25 does not pass `higher` than 0.25), because a difference of exactly zero must not count as
an improvement; `or_equal: true` allows equality. Every unknown key is an error.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field, StrictBool, field_validator, model_validator

from pipeline_lib.config import Section
from pipeline_lib.config.load import build_file
from pipeline_lib.stage import UserError


class Gate(Section):
    """One demand on one metric."""

    name: str = Field(min_length=1)
    """What the gate demands, in words; unique in the file."""
    metric: str = Field(min_length=1)
    """Path of the metric in results.json, parts joined by dots."""
    group: str = Field(default="run", min_length=1)
    """Group of gates that are promoted together."""
    direction: Literal["higher", "lower"] | None = None
    """Which side of the threshold passes."""
    threshold: float | None = Field(default=None, strict=True)
    """Number the metric is compared with, in the metric's own unit."""
    use: Literal["value", "low", "high"] = "value"
    """Point value, or the low or high bound of its confidence interval."""
    or_equal: bool = False
    """Whether exactly the threshold passes too."""
    equals: StrictBool | None = None
    """The truth value a boolean metric must have, instead of direction and threshold."""

    @field_validator("threshold", mode="before")
    @classmethod
    def _no_truth_value(cls, value: object) -> object:
        if isinstance(value, bool):
            raise ValueError("a truth value is no threshold; write `equals: true` or `equals: false`")
        return value

    @model_validator(mode="after")
    def _one_kind_of_comparison(self) -> "Gate":
        numeric = (self.direction is not None, self.threshold is not None)
        if self.equals is None and not all(numeric):
            raise ValueError("a gate needs both `direction` and `threshold`, or `equals` for a boolean metric")
        if self.equals is not None and (any(numeric) or self.or_equal or self.use != "value"):
            raise ValueError("`equals` stands alone: remove direction, threshold, use and or_equal")
        return self

    def demand(self) -> str:
        """Return the demand as text, such as `low > 0.25`."""
        if self.equals is not None:
            return f"is {str(self.equals).lower()}"
        sign = {"higher": ">", "lower": "<"}[self.direction] + ("=" if self.or_equal else "")
        return f"{self.use} {sign} {self.threshold:g}"


class GateFile(Section):
    """A whole gate file."""

    description: str = ""
    """What the gates are for."""
    promotes_to: dict[str, str] = {}
    """For a group, the stage its model may go on to when all of its gates pass."""
    gates: list[Gate] = Field(min_length=1)
    """The gates, in the order in which they are reported."""

    @model_validator(mode="after")
    def _names_agree(self) -> "GateFile":
        names = [gate.name for gate in self.gates]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two gates are called {twice[0]!r}; names must be unique")
        if strange := sorted(set(self.promotes_to) - {gate.group for gate in self.gates}):
            raise ValueError(f"promotes_to names the group {strange[0]!r}, which has no gate")
        return self


def read_gate_file(path: Path, only: str | None = None) -> GateFile:
    """Read and check a gate file; `only` keeps one group.

    Raises UserError (file:line, what, nearest valid name) on a missing file, bad YAML, an unknown key, an incomplete
    gate or an unknown group: a file that demands nothing must never look like a run that passed.
    """
    if not path.is_file():
        raise UserError(f"gate file {path} does not exist; correct gates.file, or --file (see configs/gates/)")
    parsed = build_file(GateFile, path)
    if only is None:
        return parsed
    chosen = [gate for gate in parsed.gates if gate.group == only]
    if not chosen:
        groups = ", ".join(sorted({gate.group for gate in parsed.gates}))
        raise UserError(f"{path} has no gates of the group {only!r}; it has: {groups}")
    kept = {group: stage for group, stage in parsed.promotes_to.items() if group == only}
    return GateFile(description=parsed.description, promotes_to=kept, gates=chosen)
