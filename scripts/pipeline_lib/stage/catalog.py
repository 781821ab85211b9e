"""The stages in their order: where each one writes, which script runs it, and what it needs first."""

from dataclasses import dataclass


@dataclass(frozen=True)
class StageSpec:
    """One row of the pipeline.

    name: folder inside the run; script: file in scripts/; section: key of its settings in the YAML; needs: folders of
    the stages it reads; does: the rest of the sentence "This stage ..."; keeps_superseded: its unfinished work is hours
    of training, so it is moved aside rather than deleted when settings or code no longer match; verdict_files: its
    outputs, of a stage that says whether what it reads is good enough: it refuses to speak of models that are no longer
    there, and leaves no such file of an earlier start then; scales_out: an engine of the section `scale_out` can do its
    units; reads_running: stages of `needs` that it can read while they are still at work, each with the setting that
    must be true for it, or ""; needed_for: stages of `needs` that it reads only when a setting that is a list has an
    entry, each with the setting and the entry.
    """

    name: str
    script: str
    section: str
    needs: tuple[str, ...]
    does: str
    keeps_superseded: bool = False
    verdict_files: tuple[str, ...] = ()
    scales_out: bool = False
    reads_running: tuple[tuple[str, str], ...] = ()
    needed_for: tuple[tuple[str, str, str], ...] = ()


STAGES = (
    StageSpec("01_download", "01_download_data.py", "download", (), "reads every source into shards", scales_out=True),
    StageSpec(
        "02_clean",
        "02_clean_deduplicate.py",
        "clean",
        ("01_download",),
        "cleans and deduplicates the text",
        scales_out=True,
    ),
    StageSpec("03_packed", "03_tokenize_and_pack.py", "pack", ("02_clean",), "tokenises and packs"),
    StageSpec(
        "04_init",
        "04_init_model.py",
        "model",
        ("03_packed",),
        "makes the model to train",
        reads_running=(("03_packed", ""),),  # its tokenizer, which is finished first
    ),
    StageSpec(
        "05_pretrain",
        "05_pretrain.py",
        "pretrain",
        ("03_packed", "04_init"),
        "pretrains",
        True,
        reads_running=(("03_packed", "growing_input"),),
    ),
    StageSpec(
        "06_sft_data",
        "06_prepare_sft_data.py",
        "sft_data",
        ("01_download", "03_packed"),
        "formats the instruction data",
    ),
    StageSpec(
        "06_reasoning_data",
        "06_prepare_reasoning_data.py",
        "reasoning_data",
        ("01_download", "03_packed"),
        "formats the reasoning data",
    ),
    StageSpec(
        "07_sft",
        "07_sft.py",
        "sft",
        ("05_pretrain", "06_sft_data", "06_reasoning_data"),
        "fine-tunes on instructions",
        True,
    ),
    StageSpec(
        "08_dpo_data",
        "08_prepare_dpo_data.py",
        "dpo_data",
        ("01_download", "03_packed"),
        "formats the preference pairs",
    ),
    StageSpec("09_dpo", "09_dpo.py", "dpo", ("07_sft", "08_dpo_data"), "aligns with preferences", True),
    StageSpec(
        "10_lora",
        "10_lora_finetune.py",
        "lora",
        ("01_download", "06_sft_data", "09_dpo"),
        "adapts to a domain",
        True,
    ),
    StageSpec(
        "11_eval",
        "11_evaluate.py",
        "evaluate",
        ("01_download", "02_clean", "03_packed", "04_init", "05_pretrain", "07_sft", "09_dpo", "10_lora"),
        "evaluates every model",
        needed_for=(
            ("04_init", "models", "init"),
            ("05_pretrain", "models", "pretrained"),
            ("07_sft", "models", "sft"),
            ("09_dpo", "models", "dpo"),
            ("10_lora", "models", "lora"),
        ),
    ),
    StageSpec(
        "12_gates",
        "12_check_gates.py",
        "gates",
        ("11_eval",),
        "gives the verdicts",
        verdict_files=("gates.json", "gates.md", "gates.junit.xml"),
    ),
)

BEFORE_PACKED = ("02_clean", "03_packed")
"""Stages that a run leaves out when it starts from a packed cache (`packed:` in its YAML)."""

BY_NAME = {spec.name: spec for spec in STAGES}


def later_stages(name: str) -> tuple[StageSpec, ...]:
    """Return the stages after `name`, in their order."""
    return STAGES[STAGES.index(BY_NAME[name]) + 1 :]
