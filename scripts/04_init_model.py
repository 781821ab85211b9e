"""Make the model to train: a plain Hugging Face directory with the tokenizer of stage 03 beside it.

The shape comes from a preset (--preset 125m), from the one dial (--depth 12), or from single numbers (--shape.layers 4
--shape.width 256), which win over both. The weights are random, or those of a smaller trained model that grows
(--grow.source runs/small/05_pretrain/final). docs/models.md lists the shapes, derives the rules and grows a model.
"""

import os
from typing import TYPE_CHECKING

from pipeline_lib.stage import Estimate, Stage, run_stage

if TYPE_CHECKING:
    from pipeline_lib.config.run import RunConfig


def describe_inputs(config: "RunConfig") -> dict[str, str]:
    """Identify the model to grow from by the content of its files."""
    if config.model.grow.source is None:
        return {}
    from pipeline_lib.models.growth_source import open_source

    return open_source(config.model.grow.source).digests()


def run(stage: Stage) -> None:
    from pipeline_lib.models.grown_model import grow_model
    from pipeline_lib.models.growth_source import source_of
    from pipeline_lib.models.initialise import build_model, save_model_directory
    from pipeline_lib.models.shapes import resolve_shape
    from pipeline_lib.models.tokenizer_source import read_tokenizer_source

    tokens, source = read_tokenizer_source(stage), source_of(stage)
    shape = resolve_shape(stage.settings, tokens.vocabulary, tokens.context, source and source.numbers)
    counts = shape.parameter_counts()
    stage.say(f"  {stage.settings.architecture} with {shape}")
    if not stage.finished("model"):
        with stage.unit("model") as unit:
            if source is None:
                model = build_model(shape, stage.settings, tokens.special, stage.seed)
            else:
                model, unit.result = grow_model(stage, source, shape, tokens)
            folder = save_model_directory(model, tokens.files, stage.work / "directory")
            for file in sorted(folder.iterdir()):
                os.replace(file, unit.path(file.name))
            folder.rmdir()
    stage.result = {"architecture": stage.settings.architecture, "shape": shape.to_json(), "parameters": counts}
    stage.result |= stage.unit_result("model")


def estimate(stage: Stage) -> Estimate:
    from pipeline_lib.models.grown_model import check_growth
    from pipeline_lib.models.growth_source import source_of
    from pipeline_lib.models.shapes import resolve_shape
    from pipeline_lib.models.tokenizer_source import read_tokenizer_source

    tokens, source = read_tokenizer_source(stage), source_of(stage)
    shape = resolve_shape(stage.settings, tokens.vocabulary, tokens.context, source and source.numbers)
    parameters = shape.parameter_counts()["total"]
    saved = parameters * (4 if stage.settings.dtype == "float32" else 2)
    basis, held = f"{parameters:,} parameters", 4 * parameters + saved
    if source is not None:
        plan = check_growth(stage.settings, source, shape, tokens)
        basis += f"; from {source.folder}: {plan.describe(stage.settings.grow)}"
        held += 3 * sum(path.stat().st_size for path in source.weights)  # as it is, and in float32, perhaps twice that
    # Imports, then about 30 million normal numbers per second on one core; memory holds them in both formats.
    return Estimate(8 + parameters / 3e7, 600_000_000 + held, saved, basis)


if __name__ == "__main__":
    run_stage("04_init", run, estimate=estimate, inputs=describe_inputs)
