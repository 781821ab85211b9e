"""Settings of stage 04: the shape of the model and how it is initialised."""

from typing import Any, Literal

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
    """Size of one attention head, in features; width / heads when not given."""
    ffn: int | None = Field(default=None, ge=8)
    """Inner size of the gated feed-forward network, in features; 8/3 of the width, rounded up to 64, when not given."""


class ModelSettings(Section):
    """Settings of stage 04: the shape of the model and how it is initialised."""

    architecture: Literal["llama", "qwen3"] = "llama"
    """Model family: Llama, or Qwen3, which also normalises queries and keys."""
    preset: Literal["125m", "350m", "1b", "3b", "7b"] | None = None
    """A named shape (docs/models.md lists them); exclusive with `depth`."""
    depth: int | None = Field(default=None, ge=1, le=200)
    """The one dial: number of blocks, which sets width, heads, learning rates, batch and horizon (docs/models.md)."""
    shape: ShapeSettings = ShapeSettings()
    """Single numbers of the shape that win over the preset or the dial; alone, they need `layers` and `width`."""
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
