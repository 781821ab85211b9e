"""Settings of stage 04: the shape of the model and how it is initialised."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from .base import Section


class ShapeSettings(Section):
    """Single numbers of the shape; each one given here wins over the preset or the depth dial."""

    layers: int | None = Field(default=None, ge=1)
    """Number of transformer blocks."""
    width: int | None = Field(default=None, ge=8)
    """Size of the residual stream (hidden size), in features."""
    heads: int | None = Field(default=None, ge=1)
    """Number of attention heads per block."""
    kv_heads: int | None = Field(default=None, ge=1)
    """Number of key/value heads per block; fewer than `heads` is grouped-query attention."""
    head_width: int | None = Field(default=None, ge=2)
    """Size of one attention head, in features; width / heads, or the source's, when not given."""
    ffn: int | None = Field(default=None, ge=8)
    """Inner size of the gated feed-forward network, in features; the source's, or 8/3 of the width, when not given."""


class GrowSettings(Section):
    """From which smaller, trained model this one begins, and how what it has more comes about (docs/models.md)."""

    source: str | None = None
    """Folder of the model to begin as (a Hugging Face directory such as runs/small/05_pretrain/final); none: random."""
    depth: Literal["identity", "stack"] = "identity"
    """New blocks: `identity` inserts blocks that change nothing at first, `stack` repeats the trained ones."""
    layer_map: list[Annotated[int, Field(ge=0)]] | None = None
    """The block of the source, from 0, that each block copies; evenly spread or the whole stack repeated by default."""
    ffn: Literal["zero", "copy"] = "zero"
    """New feed-forward units: `zero` makes random ones whose output weights are 0, `copy` repeats trained ones."""
    ffn_noise: float = Field(default=0.0, ge=0, le=1)
    """Noise on the input weights of copied feed-forward units, as a share of the source's root mean square."""
    token_map: dict[int, int] = {}
    """Which id of the source gives a new id its rows; new ids that are not named get the mean row."""
    vocabulary_noise: float = Field(default=0.1, ge=0, le=1)
    """Noise on the rows of new ids, as a share of the root mean square of the source's table."""

    @model_validator(mode="after")
    def _nothing_grows_from_nothing(self) -> "GrowSettings":
        if others := sorted(self.model_fields_set - {"source"}) if "source" not in self.model_fields_set else []:
            raise ValueError(f"{others[0]} says how a model grows: give grow.source, the model to begin as, too")
        if self.ffn_noise and self.ffn != "copy":
            raise ValueError("ffn_noise is for copied units: set grow.ffn to copy, or leave it out")
        return self


class ModelSettings(Section):
    """Settings of stage 04: the shape of the model and how it is initialised."""

    architecture: Literal["llama", "qwen3"] = "llama"
    """Model family: Llama, or Qwen3, which also normalises queries and keys."""
    preset: Literal["125m", "350m", "1b", "3b", "7b"] | None = None
    """A named shape (docs/models.md lists them); exclusive with `depth`."""
    depth: int | None = Field(default=None, ge=1, le=200)
    """The one dial: number of blocks, which sets width, heads, learning rates, batch and horizon (docs/models.md)."""
    shape: ShapeSettings = ShapeSettings()
    """Single numbers that win over preset, dial and source; without any of these, `layers` and `width` are needed."""
    grow: GrowSettings = GrowSettings()
    """Begin as a smaller trained model instead of random weights."""
    context: int | None = Field(default=None, ge=2)
    """Longest sequence the model is declared for, in tokens; the preset's or the longest packed one when not given."""
    rope_theta: float = Field(default=10_000.0, gt=1)
    """Base of the rotary position embedding; larger bases suit longer contexts."""
    tie_embeddings: bool = False
    """Whether the output head shares the weights of the input embedding."""
    init_std: float = Field(default=0.02, gt=0, le=1)
    """Standard deviation of the initial weights; that of residual-stream writers is divided by sqrt(2 x layers)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the saved weights."""

    @staticmethod
    def superseded_by(above: dict[str, Any]) -> set[str]:
        """Return the keys that lose their value of a base YAML when `above`, the values laid over it, sets the shape.

        A preset or a depth is a whole shape: single numbers left from the base would silently win over it.
        """
        whole = {"preset", "depth"} & {key for key, value in above.items() if value is not None}
        return {"preset", "depth", "shape"} if whole else set()

    @model_validator(mode="after")
    def _one_origin_of_the_shape(self) -> "ModelSettings":
        if self.preset is not None and self.depth is not None:
            raise ValueError("preset and depth both set the shape: give one of them")
        if self.depth is not None and self.shape.layers is not None and self.shape.layers != self.depth:
            raise ValueError("depth and shape.layers are the same number: give one of them")
        return self
