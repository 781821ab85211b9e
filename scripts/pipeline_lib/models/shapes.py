"""What shape a model has: presets, the depth dial, explicit numbers, and how many parameters that makes.

The dial follows the principle of nanochat's `--depth`: one number, everything else by rule, so that models of
different sizes are comparable and none of them is badly tuned by accident.

    layers      depth
    width       64 x depth, rounded up to whole heads
    head width  64 below width 1024, 128 from there on
    heads       width / head width; key/value heads the same number
    ffn         8/3 x width, rounded up to a multiple of 64 (a gated network has three matrices instead of two, so
                two thirds of the usual 4 x width keeps its size)

Learning rate, batch and horizon follow from the resulting width and parameter count in pretraining/horizon.py.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pipeline_lib.config.model import ModelSettings
from pipeline_lib.stage import UserError

DIAL_WIDTH_PER_LAYER = 64
WIDE_HEADS_FROM = 1024


@dataclass(frozen=True)
class ModelShape:
    """The numbers that decide a decoder's size; widths in features, context in tokens."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_width: int
    ffn: int
    context: int
    vocabulary: int
    tied: bool
    qk_norm: bool

    def parameter_counts(self) -> dict[str, int]:
        """Return the exact numbers of parameters.

        total; embedding (input table, and the head unless tied); without_embedding (blocks and norms); matmul: those
        that cost FLOPs for every token, that is the matrices of the blocks and the head, tied or not.
        """
        table = self.vocabulary * self.width
        queries, keys = self.heads * self.head_width, self.kv_heads * self.head_width
        matrices = self.layers * (2 * self.width * (queries + keys) + 3 * self.width * self.ffn)
        norms = self.width + self.layers * (2 * self.width + (2 * self.head_width if self.qk_norm else 0))
        embedding = table if self.tied else 2 * table
        return {
            "total": embedding + matrices + norms,
            "embedding": embedding,
            "without_embedding": matrices + norms,
            "matmul": matrices + table,
        }

    def __str__(self) -> str:
        counts = self.parameter_counts()
        keys = "" if self.kv_heads == self.heads else f" ({self.kv_heads} for keys and values)"
        return (
            f"{self.layers} blocks, width {self.width}, {self.heads} heads{keys} of {self.head_width}, ffn {self.ffn},"
            f" {self.vocabulary:,} ids, context {self.context:,}: {counts['total']:,} parameters,"
            f" {counts['without_embedding']:,} without embeddings"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the numbers by name."""
        return asdict(self)


# hidden size, feed-forward size, layers, heads, key/value heads, context
_PRESETS = {
    "125m": (768, 2048, 12, 12, 12, 2048),
    "350m": (1024, 2816, 24, 16, 16, 2048),
    "1b": (2048, 5504, 24, 16, 4, 4096),
    "3b": (3072, 8192, 26, 24, 8, 4096),
    "7b": (4096, 11008, 32, 32, 8, 4096),
}


def resolve_shape(
    settings: ModelSettings, vocabulary: int, packed_context: int, source: dict[str, int] | None = None
) -> ModelShape:
    """Return the shape that the settings describe for a tokenizer of `vocabulary` ids.

    `packed_context` is the longest context packed in stage 03, in tokens; it raises the declared context of a preset
    and is the context otherwise. source: the numbers of the model to grow from, by the names of `ModelShape`; without a
    preset or a depth they hold where the settings give no other. Raises UserError when the settings leave the shape
    open, contradict themselves, or give another number than that of the source for what does not grow.
    """
    given = {name: value for name, value in settings.shape.model_dump().items() if value is not None}
    if source is not None and settings.preset is None and settings.depth is None:
        _require_what_does_not_grow(given, source)
        base, context = source, max(source["context"], packed_context)
    else:
        base, context = _base(settings, given, packed_context)
    numbers = {**base, **given}
    if base is not source and "head_width" not in given and ("heads" in given or "head_width" not in base):
        numbers["head_width"] = _divide(numbers["width"], numbers["heads"])
    shape = ModelShape(
        layers=numbers["layers"],
        width=numbers["width"],
        heads=numbers["heads"],
        kv_heads=given.get("kv_heads") or _kv_heads(numbers["heads"], base, settings.preset),
        head_width=numbers["head_width"],
        ffn=numbers["ffn"],
        context=settings.context or context,
        vocabulary=vocabulary,
        tied=settings.tie_embeddings,
        qk_norm=settings.architecture == "qwen3",
    )
    _check(shape, packed_context, settings)
    return shape


def _require_what_does_not_grow(given: dict[str, int], source: dict[str, int]) -> None:
    for name in ("width", "heads", "kv_heads", "head_width"):
        if given.get(name, source[name]) != source[name]:
            raise UserError(
                f"model.shape.{name} is {given[name]}, and that of the model to grow from {source[name]}; set"
                f" model.shape.{name} to {source[name]} (only depth, ffn and vocabulary grow), or leave it out"
            )


def _base(settings: ModelSettings, given: dict[str, int], packed_context: int) -> tuple[dict[str, int], int]:
    """Return the numbers before the explicit ones are laid over them, and the context."""
    if settings.preset is not None:
        width, ffn, layers, heads, kv_heads, context = _PRESETS[settings.preset]
        if given.get("width", width) != width and "heads" not in given and "head_width" not in given:
            raise UserError("model.shape.width differs from the preset's: give model.shape.heads as well")
        base = {"layers": layers, "width": width, "heads": heads, "kv_heads": kv_heads, "ffn": ffn}
        if "width" in given:
            base["ffn"] = gated_ffn(given["width"])
        return base, max(context, packed_context)
    if settings.depth is None and not {"layers", "width"} <= set(given):
        raise UserError(
            "the model has no shape: set model.depth, model.preset, or model.shape.layers and model.shape.width"
        )
    layers = settings.depth or given["layers"]
    return dial(layers, given.get("width"), given.get("head_width")), packed_context


def dial(depth: int, width: int | None = None, head_width: int | None = None) -> dict[str, int]:
    """Return layers, width, heads, kv_heads, head_width and ffn of a model of `depth` blocks, by the rules above."""
    wanted = width or DIAL_WIDTH_PER_LAYER * depth
    head_width = head_width or (128 if wanted >= WIDE_HEADS_FROM else 64)
    rounded = wanted if width else -(-wanted // head_width) * head_width
    if rounded % head_width:
        fitting = (size for size in range(head_width, 0, -1) if rounded % size == 0 and size % 2 == 0)
        head_width = next(fitting, None)
        if head_width is None:
            raise UserError(f"model.shape.width {rounded} is odd, and heads have an even width: take {rounded + 1}")
    heads = rounded // head_width
    return {
        "layers": depth,
        "width": rounded,
        "heads": heads,
        "kv_heads": heads,
        "head_width": head_width,
        "ffn": gated_ffn(rounded),
    }


def gated_ffn(width: int) -> int:
    """Return 8/3 of the width, rounded up to a multiple of 64."""
    return -(-8 * width // (3 * 64)) * 64


def _kv_heads(heads: int, base: dict[str, int], preset: str | None) -> int:
    """Return as many key/value heads as keep the groups of heads that share one as large as they are in `base`."""
    group = base["heads"] // base["kv_heads"]
    if heads % group:
        raise UserError(
            f"model.shape.heads {heads} is not a multiple of {group}, the heads that share a key/value head in preset"
            f" {preset}: give model.shape.kv_heads as well"
        )
    return heads // group


def _divide(width: int, heads: int) -> int:
    if width % heads:
        raise UserError(f"model.shape: width {width} is not a multiple of {heads} heads; give head_width too")
    return width // heads


def _check(shape: ModelShape, packed_context: int, settings: ModelSettings) -> None:
    if shape.heads % shape.kv_heads:
        raise UserError(f"model.shape: {shape.heads} heads cannot share {shape.kv_heads} key/value heads evenly")
    if shape.head_width % 2:
        raise UserError(f"model.shape: head width {shape.head_width} is odd; rotary positions need pairs of features")
    if settings.architecture == "llama" and shape.width % shape.heads:
        raise UserError(f"model.shape: the Llama family needs a width ({shape.width}) divisible by {shape.heads} heads")
    if shape.context < packed_context:
        raise UserError(f"model.context {shape.context} is shorter than the packed sequences ({packed_context} tokens)")
