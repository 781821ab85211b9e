"""Stage 02: repair the text, remove what is not worth training on, remove duplicates, leave a receipt for each removal.

Personal data is replaced by tags, quality rules drop documents by published thresholds, documents that contain text of
the evaluation sets go, then exact and near duplicates over all sources. `--why ID` tells one document's fate.
"""

from typing import TYPE_CHECKING

from pipeline_lib.stage import Estimate, run_stage

if TYPE_CHECKING:
    import argparse

    from pipeline_lib.config.run import RunConfig
    from pipeline_lib.stage import ActionContext, Stage


def add_arguments(parser: "argparse.ArgumentParser") -> None:
    parser.add_argument(
        "--why",
        metavar="ID",
        help="print why a document (its id, or the file or URL it was read from) was removed or kept, nothing else",
    )
    parser.add_argument(
        "--explore", metavar="RULE", nargs="?", const="all", help="print what other thresholds would keep or remove"
    )


def describe_inputs(config: "RunConfig") -> dict:
    """Identify what decides the outcome besides the text: examples, lists, the judge of toxicity, what 11 will ask."""
    from pipeline_lib.text_cleaning.copied_records import asked_sources
    from pipeline_lib.text_cleaning.quality_examples import example_files
    from pipeline_lib.text_cleaning.toxicity_backend import describe_backend

    asked = sorted(set(asked_sources(config).values())) if config.clean.contamination.enabled else []
    lists = {}
    if config.clean.url.domain_files:
        from pipeline_lib.text_cleaning.url_lists import own_list_files

        lists = own_list_files(config.clean)
    return {**example_files(config.clean), **lists, "toxicity": describe_backend(config.clean.toxicity), "asked": asked}


def why(context: "ActionContext", asked: str) -> None:
    from pipeline_lib.text_cleaning.fates import explain

    downloaded = sorted((context.run_folder / "01_download").glob("part-*.parquet"))
    print("\n".join(explain(context.stage_folder, asked, downloaded)))


def explore(context: "ActionContext", rule: str) -> None:
    from pipeline_lib.text_cleaning.explore import explore_thresholds, texts_that_are_there

    config = context.config
    texts = texts_that_are_there(context.run_folder, config.packed is not None)
    now = {"inputs": texts, "seed": config.seed, "data": describe_inputs(config)}
    print("\n".join(explore_thresholds(context.stage_folder, context.settings, now, rule)))


def estimate(stage: "Stage") -> Estimate:
    from pipeline_lib.text_cleaning.explore import effect_of_thresholds
    from pipeline_lib.text_cleaning.probe import estimate_cleaning

    texts = {name: stage.input(name).digest for name in stage.needs}
    now = {"inputs": texts, "seed": stage.seed, "data": describe_inputs(stage.config)}
    for line in effect_of_thresholds(stage.folder, stage.settings, now):
        print(line)
    return estimate_cleaning(stage)


def run(stage: "Stage") -> None:
    from pipeline_lib import engines
    from pipeline_lib.text_cleaning import corpus
    from pipeline_lib.text_cleaning.clean_summary import summarise
    from pipeline_lib.text_cleaning.pieces import shards_of

    engines.prepare(stage)
    shards = shards_of(stage)
    corpus.check_inputs(stage, shards)
    quality_model = corpus.train_quality_model(stage, shards)
    corpus.clean_shards(stage, shards, quality_model)
    duplicates = corpus.find_duplicates(stage, shards)
    corpus.write_final_shards(stage, shards, duplicates)
    corpus.write_contamination(stage, shards)
    corpus.write_all_receipts(stage, shards)
    corpus.write_scores(stage, shards, duplicates)
    stage.result = summarise(stage, shards)


if __name__ == "__main__":
    run_stage(
        "02_clean",
        run,
        estimate=estimate,
        inputs=describe_inputs,
        extra_arguments=add_arguments,
        actions={"why": why, "explore": explore},
    )
