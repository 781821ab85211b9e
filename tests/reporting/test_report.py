"""The card and the report show what the files of a run say, also of a run that is half done, and execute nothing."""

import dataclasses
import io
import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from pipeline_lib.reporting import chat, report, run_card
from pipeline_lib.reporting.chat import Continuation, Conversation, choose_model
from pipeline_lib.reporting.plots import training_curve
from pipeline_lib.reporting.report import render
from pipeline_lib.reporting.run_card import print_run_card
from pipeline_lib.reporting.run_facts import gather, short
from pipeline_lib.stage import Ledger, StageFailure, UserError
from pipeline_lib.stage.digests import bytes_digest
from pipeline_lib.stage.manifest import FileEntry, Manifest

MACHINE = {"machine": "m", "python": "3.11", "packages": {}}
RUN = {"seconds": 61.0, "peak_memory_bytes": 2_000_000, "resumed": True, **MACHINE}
METRIC = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 10, "higher_is_better": True}


def finish_stage(run_folder: Path, name: str, files: dict[str, bytes], ledger: Ledger, **result) -> None:
    folder = run_folder / name
    folder.mkdir(parents=True)
    entries = {}
    for file, data in files.items():
        (folder / file).write_bytes(data)
        entries[file] = FileEntry(len(data), bytes_digest(data))
    Manifest(name, {}, entries, ledger.to_json(), result, ["<b>measured</b>"], 0, RUN).write(folder / "manifest.json")


@pytest.fixture
def half_done(tmp_path: Path) -> Path:
    ledger = Ledger()
    ledger.enter("text", "<script>alert(1)</script>", 1500, 10)
    ledger.keep("text", "<script>alert(1)</script>", 1200, 8)
    ledger.drop("text", "<script>alert(1)</script>", "too <short>", 300, 2)
    finish_stage(tmp_path / "half", "01_download", {}, ledger, text_documents=1200)
    rows = [{"step": step, "loss": 3 - step / 10, "seconds": step} for step in range(5)]
    metrics = "".join(json.dumps(row) + "\n" for row in rows).encode()
    read = Ledger()
    read.enter("text", "a", 10, tokens=5_002_000)
    read.keep("text", "a", 8, tokens=4_001_000)
    read.drop("text", "a", "not reached within the budget", 2, tokens=1_001_000)
    trained = {"tokens": 4_100_000, "val_bits_per_byte_after": 1.6339}
    finish_stage(tmp_path / "half", "05_pretrain", {"metrics.jsonl": metrics}, read, **trained)
    models = {"sft": {"choice": {"accuracy": METRIC}}}
    results = {"models": models, "comparisons": {}, "training": {}, "confidence": 0.9}
    finish_stage(tmp_path / "half", "11_eval", {"results.json": json.dumps(results).encode()}, Ledger())
    gate = {"name": "g", "passed": False, "demand": "> 0.6", "observed": None, "metric": "m", "reason": "missing <i>"}
    verdicts = {"passed": False, "failed": ["g"], "gates": [gate]}
    files = {"gates.json": json.dumps(verdicts).encode()}
    finish_stage(tmp_path / "half", "12_gates", files, Ledger(), gates_passed="0 of 1")
    return tmp_path / "half"


def test_the_card_tells_unfinished_from_finished_and_a_missing_number_from_zero(half_done: Path):
    console = Console(width=160, record=True, file=io.StringIO())
    print_run_card(gather(half_done), console)
    text = console.export_text()
    assert text.count("not finished") == len(gather(half_done).stages) - 4
    assert "1.5k" in text and "1.2k" in text and "1 min 01 s (resumed)" in text and "2.0 MB" in text
    assert "text 5.0M tok" in text and "text 4.0M tok, 1.634 bits per byte" in text and "0 of 1 gates passed" in text
    assert "with 90 % confidence intervals" in text and "Stale" not in text
    assert "0.500 [0.400, 0.600]" in text and "FAIL" in text and "missing <i>" in text and "FAILED: g" in text


def test_names_that_look_like_markup_stay_as_they_are_and_a_truth_value_is_no_number(
    half_done: Path, tmp_path: Path, capsys
):
    name = "accuracy [strict] of [/100] :warning:"
    gate = {"name": name, "passed": False, "demand": "is false", "observed": True, "metric": "m", "reason": "is true"}
    verdicts = {"passed": False, "failed": [name], "gates": [gate]}
    shutil.rmtree(half_done / "12_gates")
    files = {"gates.json": json.dumps(verdicts).encode()}
    finish_stage(half_done, "12_gates", files, Ledger(), gates_passed="0 of 1")
    (tmp_path / "x.yaml").write_text("seed: 1\n")
    folder = half_done.rename(tmp_path / "run [red]")
    run_card.main(["--config", str(tmp_path / "x.yaml"), "--run-dir", str(folder)])
    card = capsys.readouterr().out
    assert card.count(name) == 2 and "│ true" in card
    assert card.startswith("Run run [red]") and f"Model:   {folder}/05_pretrain/final" in card


def test_the_report_escapes_what_comes_from_data(half_done: Path):
    page = render(gather(half_done))
    assert "<script>" not in page and "too &lt;short&gt;" in page and "<i>" not in page and "<b>measured" not in page
    assert page.count("<svg") == 1 and "FAIL" in page


def test_scores_of_copied_items_are_shown_apart_where_there_are_any(half_done: Path):
    def shown() -> str:
        console = Console(width=200, record=True, file=io.StringIO())
        print_run_card(gather(half_done), console)
        return console.export_text() + render(gather(half_done))

    assert "clean items" not in shown()
    alone = METRIC | {"n": 1, "low": None, "high": None}
    entry = {"compared": True, "items": 10, "dirty": 1, "in_training": 1}
    entry["scores"] = {"sft": {"accuracy": {"clean": METRIC, "dirty": alone}}}
    results = json.loads((half_done / "11_eval" / "results.json").read_bytes())
    results["contamination"] = {"choice": entry, "fine": {"compared": True, "items": 5, "dirty": 0}}
    shutil.rmtree(half_done / "11_eval")
    finish_stage(half_done, "11_eval", {"results.json": json.dumps(results).encode()}, Ledger())
    text = shown()
    assert text.count("choice: 9 clean items") == 2 and "0.500 [-]" in text
    assert text.count("choice: 1 dirty, 1 read") == 2 and "fine" not in text


def test_a_difference_of_a_single_item_has_dashes_for_what_it_does_not_prove(half_done: Path):
    alone = {"difference": -0.25, "low": None, "high": None, "p_value": None, "n": 1, "higher_is_better": False}
    ten = {"difference": 0.125, "low": -0.1, "high": 0.35, "p_value": 0.04, "n": 10, "higher_is_better": False}
    results = json.loads((half_done / "11_eval" / "results.json").read_bytes())
    results["comparisons"] = {"sft-vs-pretrained": {"docs": {"bits_per_byte": alone}, "domain": {"bits_per_byte": ten}}}
    shutil.rmtree(half_done / "11_eval")
    finish_stage(half_done, "11_eval", {"results.json": json.dumps(results).encode()}, Ledger())
    page = render(gather(half_done))
    assert "<td>-0.2500 [-]</td>\n<td>-</td><td>1</td>" in page
    assert "<td>+0.1250 [-0.1000, +0.3500]</td>\n<td>0.04</td><td>10</td>" in page


def test_a_table_made_from_an_earlier_model_is_called_stale(half_done: Path):
    manifest = Manifest.read(half_done / "12_gates" / "manifest.json")
    made_from = {"inputs": {"11_eval": "another digest"}}
    dataclasses.replace(manifest, fingerprint=made_from).write(half_done / "12_gates" / "manifest.json")
    facts = gather(half_done)
    assert facts.stale == ["12_gates was made from an earlier 11_eval; run it again"]
    console = Console(width=160, record=True, file=io.StringIO())
    print_run_card(facts, console)
    assert "Stale:   12_gates" in console.export_text() and "Stale: 12_gates" in render(facts)


def test_a_run_from_a_packed_cache_needs_no_stages_before_it(half_done: Path, tmp_path: Path, capsys):
    finish_stage(half_done, "03_packed", {"index.json": b"{}"}, Ledger())
    manifest = Manifest.read(half_done / "05_pretrain" / "manifest.json")
    made_from = {"inputs": {"03_packed": "digest of the other cache"}}
    dataclasses.replace(manifest, fingerprint=made_from).write(half_done / "05_pretrain" / "manifest.json")
    (tmp_path / "x.yaml").write_text("packed: /caches/03_packed\n")
    flags = ["--config", str(tmp_path / "x.yaml"), "--run-dir", str(half_done)]
    run_card.main(flags)
    report.main(flags)
    for shown in (capsys.readouterr().out, (half_done / "report.html").read_text()):
        assert shown.count("not needed (packed: /caches/03_packed)") == 2 and "Stale" not in shown


def test_a_damaged_result_is_refused_and_not_shown(half_done: Path):
    path = half_done / "11_eval" / "results.json"
    path.write_text(path.read_text().replace("0.5", "0.9"))
    with pytest.raises(UserError, match=r"results\.json is damaged .*11_evaluate\.py --config x\.yaml"):
        gather(half_done, " --config x.yaml")


def test_a_curve_is_not_drawn_from_damaged_metrics(half_done: Path, tmp_path: Path, capsys):
    path = half_done / "05_pretrain" / "metrics.jsonl"
    path.write_text(path.read_text().replace("2.9", "1.9"))
    (tmp_path / "x.yaml").write_text("seed: 1\n")
    with pytest.raises(SystemExit, match="2"):
        report.main(["--config", str(tmp_path / "x.yaml"), "--run-dir", str(half_done)])
    said = capsys.readouterr().err
    assert said.startswith(f"error: {path} is damaged") and said.count("\n") == 1
    assert f"05_pretrain.py --config {tmp_path}/x.yaml --run-dir {half_done} --force" in said
    assert not (half_done / "report.html").exists()


def test_the_report_is_the_same_page_each_time(half_done: Path):
    assert render(gather(half_done)) == render(gather(half_done))


def test_a_damaged_manifest_shows_as_unfinished(half_done: Path):
    path = half_done / "01_download" / "manifest.json"
    path.write_text(path.read_text().replace("1200", "1201"))
    assert gather(half_done).stages[0].manifest is None


def test_metrics_without_a_loss_have_no_curve(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "tokens": 5}\n')
    assert training_curve(path, "x") is None


def test_chat_says_what_to_do_when_there_is_no_model(half_done: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"holds no model yet; make the first with: .*04_init_model\.py -c x$"):
        choose_model(tmp_path / "empty", None, " -c x")
    with pytest.raises(UserError, match=r"07_sft/manifest.json is missing; make it with: .*07_sft\.py -c x"):
        choose_model(half_done, "sft", " -c x")


def test_chat_refuses_a_damaged_model(tmp_path: Path):
    finish_stage(tmp_path, "04_init", {"config.json": b"{}", "model.safetensors": b"weights"}, Ledger())
    assert choose_model(tmp_path, "init") == ("04_init", tmp_path / "04_init")
    (tmp_path / "04_init" / "model.safetensors").write_bytes(b"weighty")
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        choose_model(tmp_path, "init")


TEMPLATE = (
    "{% for message in messages %}<turn>{{ message.role }}\n{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content }}</turn>{% endgeneration %}{% else %}{{ message.content }}</turn>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def turn_ender(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says only </turn>, with which its tokenizer ends a turn, and that is not told where to stop."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["</turn>", "<turn>", "<end>", "<pad>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({word: place for place, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(["</turn>", "<turn>"])  # not special, so that an answer shows how often it was said
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>")
    fast.chat_template = TEMPLATE
    folder = tmp_path_factory.mktemp("model")
    fast.save_pretrained(folder)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
            max_position_embeddings=256, tie_word_embeddings=False, bos_token_id=None, eos_token_id=None,
            pad_token_id=words.index("<pad>"),
        )
    )  # fmt: skip
    torch.nn.init.zeros_(model.lm_head.weight)  # all tokens are equally likely, and </turn> is the first
    model.save_pretrained(folder)
    return folder


def test_an_answer_ends_where_another_tokenizers_template_ends_the_turn(turn_ender: Path):
    assert Conversation(turn_ender, 4, 0.0).ask("hello") == "</turn>"


def test_an_answer_ends_where_the_models_own_settings_say(turn_ender: Path, tmp_path: Path):
    folder = Path(shutil.copytree(turn_ender, tmp_path / "model"))
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("{% generation %}", "").replace("{% endgeneration %}", ""))
    with pytest.raises(UserError, match="model: the chat template marks"):
        Conversation(folder, 4, 0.0)
    (folder / "generation_config.json").write_text('{"eos_token_id": [0]}')
    assert Conversation(folder, 4, 0.0).ask("hello") == "</turn>"


def test_a_tokenizer_that_cannot_spell_a_turn_is_refused(turn_ender: Path, tmp_path: Path):
    folder = Path(shutil.copytree(turn_ender, tmp_path / "model"))
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="model: the tokenizer has no chat template; give it one"):
        Conversation(folder, 4, 0.0)


def test_a_model_saved_in_bfloat16_talks_in_float32_on_a_cpu_as_it_is_evaluated(turn_ender: Path, tmp_path: Path):
    import torch
    from transformers import AutoModelForCausalLM

    folder = Path(shutil.copytree(turn_ender, tmp_path / "model"))
    AutoModelForCausalLM.from_pretrained(folder).to(torch.bfloat16).save_pretrained(folder)
    assert Conversation(folder, 4, 0.0, "cpu")._model.dtype == torch.float32
    assert Conversation(folder, 4, 0.0, "cpu", "bfloat16")._model.dtype == torch.bfloat16


def test_model_and_words_go_to_the_device_that_stage_11_chooses(turn_ender: Path, monkeypatch: pytest.MonkeyPatch):
    import torch

    monkeypatch.setattr(chat, "choose_device", {"auto": "meta"}.__getitem__)
    conversation = Conversation(turn_ender, 4, 0.0)
    seen = []

    def generate(input_ids, **rest):
        seen.append((conversation._model.device.type, input_ids.device.type, rest["attention_mask"].device.type))
        return torch.zeros(1, input_ids.shape[1] + 1, dtype=torch.long)

    monkeypatch.setattr(conversation._model, "generate", generate)
    assert conversation.ask("hello") == "</turn>" and seen == [("meta", "meta", "meta")]


def test_a_gpu_that_the_configuration_demands_and_the_machine_lacks_is_an_error(
    turn_ender: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(chat, "choose_model", lambda *_: ("07_sft", turn_ender))
    (tmp_path / "mine.yaml").write_text("evaluate: {device: cuda}")
    with pytest.raises(SystemExit, match="2"):
        chat.main(["--config", str(tmp_path / "mine.yaml"), "--prompt", "hello"])
    assert capsys.readouterr().err.startswith("error: evaluate.device is cuda and this machine has no usable GPU")


@pytest.mark.parametrize("stage", ["04_init", "05_pretrain", "07_sft", "09_dpo", "10_lora"])
def test_models_before_07_continue_text_and_who_answers_is_told_beside_the_answer(
    turn_ender: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, stage: str
):
    from transformers.utils import logging

    logging.enable_progress_bar()  # as in a process of its own
    monkeypatch.setattr(chat, "choose_model", lambda *_: (stage, turn_ender))
    chat.main(["--prompt", "hello", "--device", "cpu", "--max-new-tokens", "4"])
    out, err = capsys.readouterr()
    text = stage < "06"
    assert out == ("</turn></turn></turn></turn>\n" if text else "</turn>\n")
    how = "continues text, without its chat template" if text else "answers in turns of its chat template"
    assert err == f"{turn_ender} (made by {stage}) {how}\n"


def test_a_text_is_continued_as_pretraining_spells_it(
    turn_ender: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = Path(shutil.copytree(turn_ender, tmp_path / "model"))
    (folder / "chat_template.jinja").unlink()  # no text needs one
    model = Continuation(folder, 4, 0.0, "cpu")
    generate, seen = model._model.generate, []
    monkeypatch.setattr(model._model, "generate", lambda **inputs: seen.append(inputs) or generate(**inputs))
    for text in ("<end> one", "<end> one", ""):
        model.ask(text)
    words = [model._tokenizer.convert_ids_to_tokens(inputs["input_ids"][0].tolist()) for inputs in seen]
    assert words == [[*"<end>Ġone"], [*"<end>Ġone"], ["<end>"]], "no special token, and nothing of the text before"
    assert model._model.generation_config.eos_token_id == model._tokenizer.eos_token_id
    with pytest.raises(
        UserError, match="these 300 tokens and an answer of 4 do not fit into the model's context of 256"
    ):
        model.ask("x" * 300)


def test_an_interrupted_answer_loses_the_question_alone(
    turn_ender: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    conversation = Conversation(turn_ender, 4, 0.0)
    generate, lines = conversation._model.generate, iter(["first", "interrupted", "x" * 300, "last", ""])

    def interrupted(**inputs):
        if len(conversation.messages) == 2 and said[-1] == "interrupted":
            raise KeyboardInterrupt
        return generate(**inputs)

    said = []
    monkeypatch.setattr("builtins.input", lambda prompt: said.append(next(lines)) or said[-1])
    monkeypatch.setattr(conversation._model, "generate", interrupted)
    chat.talk(conversation)
    assert said == ["first", "interrupted", "x" * 300, "last", ""], "the prompt came again each time"
    asked = [message["content"] for message in conversation.messages if message["role"] == "user"]
    assert asked == ["first", "last"] and len(conversation.messages) == 4
    out, err = capsys.readouterr()
    assert out.count("</turn>") == 2 and err.count("(interrupted") == 1 and err.count("do not fit") == 1
    assert "the oldest words" not in err


def test_the_oldest_exchange_makes_room_and_that_is_said(turn_ender: Path, capsys: pytest.CaptureFixture):
    conversation = Conversation(turn_ender, 4, 0.0)
    for letter in "abc":
        conversation.ask(letter * 90)
    assert [message["content"][0] for message in conversation.messages] == ["b", "<", "c", "<"]
    assert (
        capsys.readouterr().err.count("the oldest words no longer fit into the model's context and are forgotten") == 1
    )


def out_of_memory(*_, **__):
    """What torch raises."""
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def test_running_out_of_memory_costs_the_question_alone(
    turn_ender: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    conversation = Conversation(turn_ender, 4, 0.0, "cpu")
    capsys.readouterr()  # the bar of loading
    generate, lines = conversation._model.generate, iter(["first", "too much", "last", ""])

    def generating(**inputs):
        return out_of_memory() if said[-1] == "too much" else generate(**inputs)

    said = []
    monkeypatch.setattr("builtins.input", lambda prompt: said.append(next(lines)) or said[-1])
    monkeypatch.setattr(conversation._model, "generate", generating)
    chat.talk(conversation)
    assert [message["content"] for message in conversation.messages if message["role"] == "user"] == ["first", "last"]
    out, err = capsys.readouterr()
    assert out.count("</turn>") == 2
    assert err == "error: out of memory; ask shorter or lower --max-new-tokens (it ran on cpu)\n"
    conversation._device = "cuda"
    monkeypatch.setattr(conversation, "_respond", out_of_memory)
    with pytest.raises(StageFailure, match="out of memory; run it on the CPU with --device cpu or ask shorter"):
        conversation.ask("again")


@pytest.mark.parametrize("broken", ["load_pretrained", "Conversation._answer"])
def test_running_out_of_memory_without_a_conversation_is_one_line(
    turn_ender: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, broken: str
):
    monkeypatch.setattr(chat, "choose_model", lambda *_: ("07_sft", turn_ender))
    monkeypatch.setattr(f"pipeline_lib.reporting.chat.{broken}", out_of_memory)
    with pytest.raises(SystemExit, match="1"):
        chat.main(["--prompt", "hello", "--device", "cpu"])
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("error: ") and "memory; " in last


def test_the_device_of_the_command_line_comes_before_that_of_the_configuration(
    turn_ender: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(chat, "choose_model", lambda *_: ("07_sft", turn_ender))
    (tmp_path / "mine.yaml").write_text("evaluate: {device: cuda}")
    ask = ["--config", str(tmp_path / "mine.yaml"), "--prompt", "hello", "--max-new-tokens", "4"]
    chat.main([*ask, "--device", "cpu"])
    assert capsys.readouterr().out == "</turn>\n"
    with pytest.raises(SystemExit, match="2"):
        chat.main([*ask, "--device", "cuda"])
    assert (
        capsys.readouterr()
        .err.rpartition("error: ")[2]
        .startswith("--device is cuda and this machine has no usable GPU")
    )


def test_interrupting_the_only_question_is_no_traceback(turn_ender: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(chat, "choose_model", lambda *_: ("07_sft", turn_ender))
    monkeypatch.setattr(Conversation, "ask", interrupted)
    with pytest.raises(SystemExit, match="130"):
        chat.main(["--prompt", "hello"])


@pytest.mark.parametrize("flags", [["--max-new-tokens", "0"], ["--temperature", "-1"], ["--temperature", "nan"]])
def test_chat_refuses_numbers_that_mean_nothing(flags: list[str]):
    with pytest.raises(SystemExit, match="2"):
        chat.main(flags)


def test_counts_are_short():
    assert [short(count) for count in (0, 999, 1500, 123_456, 61_400_000, 2.5e12)] == [
        "0", "999", "1.5k", "123k", "61.4M", "2.5T",
    ]  # fmt: skip
