"""Settings of stage 03: the tokenizer, the packed cache and its plans."""

from pydantic import Field, field_validator, model_validator

from .base import Section


class PackSettings(Section):
    """Settings of stage 03: the tokenizer, the packed cache and its plans."""

    tokenizer: str | None = None
    """Existing Hugging Face tokenizer, a folder (with tokenizer.json) or an id on the hub; null trains one. Stages 06
    to 10 need a chat template with generation markers and a pad_token of its own there."""
    reference_tokenizer: str | None = None
    """Tokenizer, a folder or an id on the hub, that tokenizer_report.json compares with: bytes per token by source."""
    vocab_size: int = Field(default=32768, ge=260, le=2**24)
    """Number of token ids of the trained tokenizer, the four special tokens and the 256 bytes included."""
    min_pair_count: int = Field(default=2, ge=1)
    """How often two neighbouring tokens must occur in the training text to be merged into one, in occurrences."""
    training_bytes: int = Field(default=1_000_000_000, ge=1)
    """How much text the tokenizer is trained on at most, in bytes: a seeded sample of documents when there is more, and
    of that only the share whose distinct pieces fit into 12 MB, the limit of training's memory."""
    contexts: list[int] = Field(default=[512], min_length=1)
    """Context lengths to make a packing plan for, in tokens; training uses the first unless it names another."""
    chunk_tokens: int = Field(default=4_000_000, ge=1_000, le=2**30)
    """Expected size of one chunk of the cache, in tokens; documents are packed with others of their chunk only."""
    part_bytes: int | None = Field(default=None, ge=1)
    """Text after which a part of the cache is finished and can be trained on while the rest is still being packed, in
    bytes, whole shards at a time; null packs everything as one part."""
    val_fraction: float = Field(default=0.01, ge=0, lt=1)
    """Share of the documents, chosen by a seeded hash of their id, that is packed apart for validation."""
    weights: dict[str, float] = {}
    """Source -> how often its documents appear in an epoch, in copies; 1 for sources not named, 0 leaves one out."""
    token_shares: dict[str, float] = {}
    """Source -> its share of an epoch's tokens, relative to the others; every source must be named."""
    epoch_tokens: int | None = Field(default=None, ge=1)
    """Size of an epoch that `token_shares` divides, in tokens; null = as many as the sources with a share have."""
    max_repeats: float = Field(default=4.0, gt=0)
    """Most copies of a document per epoch that a weight or a share may lead to; a source cut by it is reported."""
    rehydration: dict[int, float] = {}
    """Least number of removed duplicates -> factor on how often a document appears in an epoch."""
    lz4_level: int = Field(default=0, ge=0, le=12)
    """LZ4 compression level of the chunks: 0 is fast, from 3 on about two percent smaller and slower to write."""

    @field_validator("weights", "token_shares", "rehydration")
    @classmethod
    def _factors_are_not_negative(cls, value: dict) -> dict:
        for key, factor in value.items():
            if not 0 <= factor <= 1000:
                raise ValueError(f"{key}: {factor} is not between 0 and 1000")
        return value

    @field_validator("contexts")
    @classmethod
    def _contexts_are_distinct(cls, value: list[int]) -> list[int]:
        if min(value) < 2:
            raise ValueError("a context must be at least 2 tokens long")
        if len(set(value)) < len(value):
            raise ValueError("a context is listed twice")
        return value

    @model_validator(mode="after")
    def _one_way_to_say_the_mixture(self) -> "PackSettings":
        if self.weights and self.token_shares:
            raise ValueError("give either `weights` (copies) or `token_shares`, not both")
        if self.epoch_tokens and not self.token_shares:
            raise ValueError("`epoch_tokens` is what `token_shares` divides; give shares or remove it")
        if self.token_shares and self.part_bytes:
            raise ValueError(
                "`token_shares` needs the tokens of all text, and `part_bytes` finishes a part before they are known;"
                " give `weights` instead, or no `part_bytes`"
            )
        return self
