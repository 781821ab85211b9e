"""Make the untrained model: a plain Hugging Face directory with the tokenizer of stage 03 beside it.

The shape comes from a preset (--preset 125m), from the one dial (--depth 12), or from single numbers (--shape.layers 4
--shape.width 256), which win over both. docs/models.md lists the shapes and derives the rules.
"""

import os

from pipeline_lib.stage import Estimate, Stage, run_stage


def run(stage: Stage) -> None:
    from pipeline_lib.models.initialise import build_model, save_model_directory
    from pipeline_lib.models.shapes import resolve_shape
    from pipeline_lib.models.tokenizer_source import read_tokenizer_source

    source = read_tokenizer_source(stage)
    shape = resolve_shape(stage.settings, source.vocabulary, source.context)
    counts = shape.parameter_counts()
    stage.say(f"  {stage.settings.architecture} with {shape}")
    if not stage.finished("model"):
        with stage.unit("model") as unit:
            model = build_model(shape, stage.settings, source.special, stage.seed)
            folder = save_model_directory(model, source.files, stage.work / "directory")
            for file in sorted(folder.iterdir()):
                os.replace(file, unit.path(file.name))
            folder.rmdir()
    stage.result = {"architecture": stage.settings.architecture, "shape": shape.to_json(), "parameters": counts}


def estimate(stage: Stage) -> Estimate:
    from pipeline_lib.models.shapes import resolve_shape
    from pipeline_lib.models.tokenizer_source import read_tokenizer_source

    source = read_tokenizer_source(stage)
    parameters = resolve_shape(stage.settings, source.vocabulary, source.context).parameter_counts()["total"]
    saved = parameters * (4 if stage.settings.dtype == "float32" else 2)
    # Imports, then about 30 million normal numbers per second on one core; memory holds them in both formats.
    return Estimate(8 + parameters / 3e7, 600_000_000 + 4 * parameters + saved, saved, f"{parameters:,} parameters")


if __name__ == "__main__":
    run_stage("04_init", run, estimate=estimate)
