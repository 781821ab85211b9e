"""The trained model that a larger one grows from: its folder, what keeps it from growing into a shape, its weights.

Everything that can be said without reading the weights is said before anything is made, so `--plan` says it too.
Nothing here trusts a file: one that the manifest of a stage vouches for is compared with its digest, and names and
shapes of all tensors must be those that config.json promises.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_lib.config import resolve_path
from pipeline_lib.config.model import ModelSettings
from pipeline_lib.stage import Stage, UserError, file_digest
from pipeline_lib.stage.catalog import BY_NAME
from pipeline_lib.stage.digests import content_digest
from pipeline_lib.stage.manifest import MANIFEST, Manifest

from .same_tokens import require_same_tokens
from .shapes import ModelShape

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel

_INDEX = "model.safetensors.index.json"
_SETTING_OF = {
    "hidden_size": "model.shape.width",
    "num_attention_heads": "model.shape.heads",
    "num_key_value_heads": "model.shape.kv_heads",
    "head_dim": "model.shape.head_width",
    "tie_word_embeddings": "model.tie_embeddings",
}
_WITHOUT_SETTING = ("rope_parameters", "hidden_act", "rms_norm_eps", "attention_bias", "mlp_bias", "use_sliding_window")


@dataclass(frozen=True)
class GrowthSource:
    """A Hugging Face folder whose files are all there; name: as the settings give it."""

    name: str
    folder: Path
    weights: tuple[Path, ...]

    @cached_property
    def config(self) -> PreTrainedConfig:
        """Its configuration, with what the file leaves out filled in by transformers. Raises UserError."""
        from huggingface_hub.errors import StrictDataclassError
        from transformers import AutoConfig

        try:
            return AutoConfig.from_pretrained(self.folder)
        except (StrictDataclassError, ValueError, TypeError, KeyError, AttributeError) as error:
            what = " ".join(str(error).split())
            raise UserError(
                f"model.grow.source: {self.folder / 'config.json'} is no configuration that transformers reads"
                f" ({what}); copy or make the model again"
            ) from None

    @property
    def numbers(self) -> dict[str, int]:
        """Its shape, by the names of `ModelShape`."""
        return {
            "layers": self.config.num_hidden_layers,
            "width": self.config.hidden_size,
            "heads": self.config.num_attention_heads,
            "kv_heads": self.config.num_key_value_heads,
            "head_width": self.config.head_dim,
            "ffn": self.config.intermediate_size,
            "context": self.config.max_position_embeddings,
            "vocabulary": self.config.vocab_size,
        }

    def digests(self, read_again: bool = False) -> dict[str, str]:
        """Return {file name: digest} of all that decides what grows from it.

        A file that the manifest of its stage knows and that looks untouched since is read only with `read_again`, and
        of a large one that no manifest knows only samples, as there is nothing to compare it with. Links are followed.
        Raises UserError when a file is not what the manifest says.
        """
        found = {}
        for named in (self.folder / "config.json", self.folder / "tokenizer.json", *self.weights):
            path = named.parent.resolve() / named.name
            manifest, above = _manifest_above(path)
            name = path.relative_to(above).as_posix()
            entry = manifest.files.get(name) if manifest else None
            if entry is None:
                found[path.name] = _digest_of_samples(path)
                continue
            if not read_again and manifest.run.get("seen", {}).get(name) == manifest.stat_of(path):
                found[path.name] = entry.digest
                continue
            found[path.name] = file_digest(path)
            if entry.digest != found[path.name]:
                made_by = BY_NAME[manifest.stage].script if manifest.stage in BY_NAME else manifest.stage
                raise UserError(
                    f"model.grow.source: {path} is damaged (its checksum is not that of {above / MANIFEST}); make it"
                    f" again with {made_by} --force of its run, or name another model"
                )
        return found

    def require_growth_into(self, shape: ModelShape, target: PreTrainedConfig, tokenizer: bytes) -> int:
        """Return how many rows of its tables belong to ids of its tokenizer; those behind them are padding.

        Raises UserError unless it can grow into `shape`, whose configuration is `target` and whose tokenizer.json is
        `tokenizer`. Depth, feed-forward width and vocabulary may be larger; all else that decides the function is
        equal.
        """
        for name in (*_SETTING_OF, *_WITHOUT_SETTING):
            have, want = getattr(self.config, name, None), getattr(target, name, None)
            if have != want:
                raise UserError(self._refuse(name, have, want))
        for name in ("layers", "ffn"):
            have, want = self.numbers[name], getattr(shape, name)
            if want < have:
                remedy = f"growth makes nothing smaller: set model.shape.{name} to {have} or more"
                raise UserError(f"model.grow.source: {self.folder} has {name} {have}, this model {want}; {remedy}")
        return min(require_same_tokens(self.folder / "tokenizer.json", tokenizer), self.config.vocab_size)

    def _refuse(self, name: str, have: Any, want: Any) -> str:
        if name == "rope_parameters" and have and {**have, "rope_theta": 0} == {**want, "rope_theta": 0}:
            name, have, want, setting = "rope_theta", have["rope_theta"], want["rope_theta"], "model.rope_theta"
        else:
            setting = _SETTING_OF.get(name)
        remedy = (
            f"set {setting} to {json.dumps(have)} (only depth, ffn and vocabulary grow)"
            if setting
            else "no setting of this pipeline makes such a model: choose another source"
        )
        return f"model.grow.source: {self.folder} has {name} {have}, this model {want}; {remedy}"

    def read_model(self) -> PreTrainedModel:
        """Return the source in float32 on the CPU. Raises UserError when a file is damaged or tensors do not fit."""
        import torch
        from safetensors import SafetensorError
        from safetensors.torch import load_file
        from transformers import AutoModelForCausalLM

        self.digests(read_again=True)
        weights: dict[str, Tensor] = {}
        for path in self.weights:
            try:
                weights.update(load_file(path))
            except SafetensorError as error:
                raise UserError(
                    f"model.grow.source: {path} is damaged or no safetensors file ({error}); copy or make it again"
                ) from None
        model = AutoModelForCausalLM.from_config(self.config, dtype=torch.float32)
        wanted = dict(model.named_parameters())
        if self.config.tie_word_embeddings:
            weights.pop("lm_head.weight", None)  # the same table a second time
        for name in sorted(wanted.keys() | weights.keys()):
            have, want = (tuple(each[name].shape) if name in each else None for each in (weights, wanted))
            if have != want:
                raise UserError(
                    f"model.grow.source: {self.folder} does not fit its config.json: {name} is {have or 'missing'},"
                    f" expected {want or 'no such tensor'}; name a folder as transformers saves it"
                )
        with torch.no_grad():
            for name, parameter in wanted.items():
                parameter.copy_(weights[name])
        return model.eval()


def open_source(name: str) -> GrowthSource:
    """Return the folder of model.grow.source (relative to the project's root). Raises UserError for any other thing."""
    folder = resolve_path(name)
    if not folder.is_dir():
        raise UserError(
            f"model.grow.source: {folder} is no folder; train the smaller model first, or name the folder of a model"
            " such as runs/small/05_pretrain/final"
        )
    if not (folder / "config.json").is_file():
        inside = sorted(path.parent for path in folder.glob("*/config.json"))
        remedy = f"name {inside[-1]}" if len(inside) == 1 else "name the folder of a model"
        raise UserError(f"model.grow.source: {folder} is no model, it has no config.json; {remedy}")
    index = folder / _INDEX
    config = _read_json(folder / "config.json")
    if config.get("model_type") not in ("llama", "qwen3"):
        raise UserError(
            f"model.grow.source: {folder / 'config.json'} describes a {config.get('model_type')} model; only llama and"
            " qwen3 models grow"
        )
    parts = sorted(set(_read_json(index).get("weight_map", {}).values())) if index.is_file() else ["model.safetensors"]
    for file in (*parts, "tokenizer.json"):
        if not (folder / file).is_file():
            raise UserError(f"model.grow.source: {folder} has no {file}; name a whole model folder with its tokenizer")
    return GrowthSource(name, folder, tuple(folder / part for part in parts))


def _manifest_above(path: Path) -> tuple[Manifest | None, Path]:
    """Return the manifest of the stage that made the file, and the folder of the stage."""
    for above in (path.parent, path.parent.parent):
        if (manifest := Manifest.read(above / MANIFEST)) is not None:
            return manifest, above
    return None, path.parent


def _digest_of_samples(path: Path) -> str:
    """Return the digest of the file, beyond 64 MiB of samples of it, its length and its time."""
    told = content_digest(path)
    if "xxh3" in told:
        return f"xxh3:{told['xxh3']}"
    return f"samples of {told['bytes']} bytes modified at {told['modified_ns']}: {told['xxh3_of_samples']}"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"model.grow.source: {path} is not JSON ({error}); copy or make the model again") from None
    if not isinstance(value, dict):
        raise UserError(f"model.grow.source: {path} is not a JSON object; copy or make the model again")
    return value


def source_of(stage: Stage) -> GrowthSource | None:
    """Return the model that the stage's model grows from, None when it begins with random weights.

    Raises UserError when it is not there, is of another family, or is made by the very run that would grow from it.
    """
    settings: ModelSettings = stage.settings
    if settings.grow.source is None:
        return None
    source = open_source(settings.grow.source)
    if source.folder.resolve().is_relative_to(stage.run_folder.resolve()):
        raise UserError(
            f"model.grow.source: {source.folder} belongs to this run, which would make it anew; give the larger model a"
            " run of its own (another YAML, or --run-dir)"
        )
    if source.config.model_type != settings.architecture:
        family = source.config.model_type
        raise UserError(
            f"model.grow.source: {source.folder} is a {family} model, this one {settings.architecture}; set"
            f" model.architecture to {family}"
        )
    return source
