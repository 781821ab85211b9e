"""Token ids and loss masks come from the chat template, agree with TRL's own, and a template that cannot is refused."""

import copy
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline_lib.post_training.call_support import CallSupport
from pipeline_lib.post_training.chat_tokens import (
    control_tokens,
    end_of_turn_id,
    load_chat_tokenizer,
    tokenize_conversations,
)
from pipeline_lib.post_training.conversation_checks import check_conversations, mask_problem
from pipeline_lib.post_training.examples import conversation_rows, pair_rows
from pipeline_lib.post_training.pair_checks import check_pairs
from pipeline_lib.stage import UserError

texts = st.text(alphabet=st.characters(codec="utf-8"), min_size=1, max_size=30).map(str.strip).filter(bool)
conversations = st.lists(st.tuples(texts, texts), min_size=1, max_size=3).map(
    lambda turns: [
        {"role": role, "content": content}
        for pair in turns
        for role, content in zip(("user", "assistant"), pair, strict=True)
    ]
)
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(messages=conversations)
@quick
def test_the_mask_covers_exactly_the_answers_and_their_ends(tokenizer, messages):
    tokens = tokenize_conversations(tokenizer, [messages])[0]
    spoken = [token for token, mask in zip(tokens.ids, tokens.mask, strict=True) if mask]
    answers = [turn["content"] + "<|im_end|>" for turn in messages if turn["role"] == "assistant"]
    assert tokenizer.decode(spoken) == "".join(answers)
    assert mask_problem(tokens.mask, len(answers)) is None


@given(batch=st.lists(conversations, min_size=1, max_size=4))
@quick
def test_examples_equal_those_trl_prepares_itself(tokenizer, batch):
    from datasets import Dataset
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    arguments = SFTConfig("unused", assistant_only_loss=True, max_length=96, bf16=False, report_to="none")
    trainer = SimpleNamespace(chat_template=None, completion_only_loss=False, _tokenizer=tokenizer)
    dataset = Dataset.from_list([{"messages": messages} for messages in batch])
    theirs = SFTTrainer._prepare_dataset(trainer, dataset, tokenizer, arguments, False, None, "train")
    rows = conversation_rows([{"source": "s", "messages": m, "tools": None} for m in batch], tokenizer, 96)
    ours = [row.columns for row in rows if row.reason is None]
    fitting = [row for row in theirs.to_list() if len(row["input_ids"]) < 96]
    for row in fitting:
        assert {"input_ids": row["input_ids"], "labels": row["labels"]} in ours


@given(prompt=conversations, chosen=texts, rejected=texts)
@quick
def test_pairs_equal_those_trl_prepares_itself(tokenizer, prompt, chosen, rejected):
    from datasets import Dataset
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    record = {
        "prompt": prompt[:-1],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }
    arguments = DPOConfig("unused", max_length=None, bf16=False, report_to="none")
    trainer = SimpleNamespace(_tokenizer=tokenizer)
    theirs = DPOTrainer._prepare_dataset(trainer, Dataset.from_list([record]), tokenizer, arguments, "train")[0]
    ours = next(pair_rows([{"source": "s", **record}], tokenizer, 10_000)).columns
    assert ours == {name: theirs[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")}


def test_the_end_of_a_turn_is_known(tokenizer):
    assert tokenizer.decode([end_of_turn_id(tokenizer)]) == "<|im_end|>"


PLAIN = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
NO_END = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_HEADER = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant says\n{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (None, "has no chat template"),
        (PLAIN, "no {% generation %} markers"),
        (NO_END, "must mark the answer and the token that ends it"),
        (NO_HEADER, "renders a prompt alone differently"),
    ],
)
def test_a_template_that_cannot_be_trained_on_is_refused(tiny_run, tmp_path, template, problem):
    folder = tmp_path / "tokenizer"
    shutil.copytree(tiny_run / "03_packed" / "tokenizer", folder)
    (folder / "chat_template.jinja").unlink()
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(UserError, match=problem):
        load_chat_tokenizer(folder)


def test_a_tokenizer_without_its_own_padding_is_refused(tiny_run, tmp_path):
    folder = tmp_path / "tokenizer"
    shutil.copytree(tiny_run / "03_packed" / "tokenizer", folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "pad_token": config["eos_token"]}))
    with pytest.raises(UserError, match="padding token of its own"):
        load_chat_tokenizer(folder)


@pytest.mark.parametrize(
    ("mask", "problem"),
    [
        ([0, 0], "no_assistant_tokens"),
        ([1, 1], "loss_on_every_token"),
        ([0, 1, 0, 0], "assistant_turn_without_loss"),
        ([0, 1, 0, 1], None),
    ],
)
def test_a_mask_that_does_not_fit_two_answers_is_named(mask, problem):
    assert mask_problem(mask, 2) == problem


def test_a_control_token_spelled_in_a_message_is_refused(tokenizer):
    spoken = [{"role": "user", "content": "Say <|im_end|>"}, {"role": "assistant", "content": "no"}]
    assert check_conversations(tokenizer, [{"messages": spoken, "tools": None}], 96)[0].reason == "control_token"


def test_added_tokens_that_are_neither_special_nor_in_the_chat_template_are_text(tokenizer):
    """Words of a domain and runs of spaces, and what a template has for its own syntax."""
    more = copy.deepcopy(tokenizer)
    more.add_tokens(["lambda", "  ", "==", "role", "<|speaks|>", "<|unused|>"])
    more.chat_template = more.chat_template.replace("<|im_start|>", "<|speaks|><|im_start|>")
    assert set(control_tokens(more)) == {*control_tokens(tokenizer), "<|speaks|>"}
    assert "<|im_end|>" in control_tokens(tokenizer) and "<|endoftext|>" in control_tokens(tokenizer)
    spoken = "A  role of lambda: 1 == 2 <|unused|>"
    turns = [{"role": "user", "content": spoken}, {"role": "assistant", "content": spoken}]
    assert check_conversations(more, [{"messages": turns, "tools": None}], 96)[0].reason is None
    pair = {"prompt": turns[:1], "chosen": turns[1:], "rejected": [{"role": "assistant", "content": "no"}]}
    assert check_pairs(more, [pair], 96)[0].reason is None
    marked = [turns[0], {"role": "assistant", "content": "a <|speaks|> b"}]
    assert check_conversations(more, [{"messages": marked, "tools": None}], 96)[0].reason == "control_token"
    assert check_pairs(more, [{**pair, "rejected": marked[1:]}], 96)[0].reason == "control_token"


ADD = {"type": "function", "function": {"name": "add", "arguments": '{"a": 2, "b": "\\"é\\""}'}}
OFFERED = json.dumps([{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}])
CALLING = [
    {"role": "user", "content": "Add."},
    {"role": "assistant", "content": "Yes.", "tool_calls": [ADD, ADD]},
    {"role": "tool", "content": "4", "tool_calls": None},
    {"role": "tool", "content": "", "tool_calls": None},
    {"role": "assistant", "content": "Four.", "tool_calls": None},
]


def test_calls_are_learnt_and_functions_and_results_are_not(tokenizer):
    plain = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    tokens = tokenize_conversations(tokenizer, [plain, CALLING, plain], [None, OFFERED, None])
    assert tokens[0] == tokens[2] == tokenize_conversations(tokenizer, [plain])[0]
    spoken = tokenizer.decode([token for token, mask in zip(tokens[1].ids, tokens[1].mask, strict=True) if mask])
    call = '<tool_call>{"name": "add", "arguments": {"a": 2, "b": "\\"é\\""}}</tool_call>'
    assert spoken == f"Yes.\n{call}\n{call}<|im_end|>Four.<|im_end|>"
    whole = tokenizer.decode(tokens[1].ids)
    assert "<|im_start|>tool\n4<|im_end|>" in whole and '{"name": "add", "parameters": {"type": "object"}}' in whole
    assert check_conversations(tokenizer, [{"messages": CALLING, "tools": OFFERED}], 10_000)[0].reason is None


def test_calls_as_trl_renders_them(tokenizer):
    from datasets import Dataset
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    arguments = SFTConfig("unused", assistant_only_loss=True, max_length=None, bf16=False, report_to="none")
    trainer = SimpleNamespace(chat_template=None, completion_only_loss=False, _tokenizer=tokenizer)
    dataset = Dataset.from_list([{"messages": CALLING, "tools": OFFERED}])
    theirs = SFTTrainer._prepare_dataset(trainer, dataset, tokenizer, arguments, False, None, "train")[0]
    ours = next(conversation_rows([{"source": "s", "messages": CALLING, "tools": OFFERED}], tokenizer, 10_000))
    assert ours.columns == {"input_ids": theirs["input_ids"], "labels": theirs["labels"]}


@pytest.mark.parametrize(
    "missing", ["tool | tojson", "call['name']", "call['arguments'] | tojson", "message['content'] + '<|im_end|>"]
)
def test_a_template_that_leaves_out_functions_calls_or_results_is_refused(tokenizer, missing):
    other = copy.deepcopy(tokenizer)
    assert missing in other.chat_template
    CallSupport(other)
    other.chat_template = other.chat_template.replace(missing, "'<|im_end|>" if "im_end" in missing else "''")
    with pytest.raises(UserError, match="does not write functions"):
        CallSupport(other)
    with pytest.raises(UserError, match="does not write functions"):
        check_conversations(other, [{"messages": CALLING, "tools": OFFERED}], 10_000)


@pytest.mark.parametrize("where", ["name", "arguments", "tools"])
def test_a_control_token_in_a_call_or_a_tool_is_refused(tokenizer, where):
    messages, tools = copy.deepcopy(CALLING), OFFERED
    if where == "tools":
        tools = tools.replace('"object"', '"<|im_end|>"')
    else:
        messages[1]["tool_calls"][1]["function"][where] = '{"a": "<|im_end|>"}'
    assert check_conversations(tokenizer, [{"messages": messages, "tools": tools}], 10_000)[0].reason == "control_token"


REFUSES_SYSTEM = "{%- if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{%- endif %}"


def test_only_the_record_that_a_template_refuses_is_dropped(tokenizer):
    """As those of models that know no system role do."""
    other = copy.deepcopy(tokenizer)
    other.chat_template = REFUSES_SYSTEM + other.chat_template
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    system = [{"role": "system", "content": "s"}, *turns]
    records = [{"messages": messages, "tools": None} for messages in (turns, system, turns)]
    verdicts = check_conversations(other, records, 96)
    assert [verdict.reason for verdict in verdicts] == [None, "template_refuses", None]
    assert "no system role" in verdicts[1].detail
    answers = {"chosen": turns[1:], "rejected": [{"role": "assistant", "content": "b"}]}
    pairs = [{"prompt": messages[:-1], **answers} for messages in (turns, system)]
    assert [verdict.reason for verdict in check_pairs(other, pairs, 96)] == [None, "template_refuses"]


def test_a_template_that_loses_the_text_beside_a_call_or_the_second_call_loses_those_records_only(tokenizer):
    one, two = [{**CALLING[1], "tool_calls": [ADD] * number} for number in (1, 2)]
    silent = {"content": ""}
    records = [
        {"messages": [CALLING[0], {**one, **silent}, CALLING[2], CALLING[4]], "tools": OFFERED},
        {"messages": [CALLING[0], one, CALLING[2], CALLING[4]], "tools": OFFERED},
        {"messages": [CALLING[0], {**two, **silent}, *CALLING[2:]], "tools": OFFERED},
    ]

    def reasons(template):
        other = copy.deepcopy(tokenizer)
        other.chat_template = template
        return [verdict.reason for verdict in check_conversations(other, records, 10_000)]

    template = tokenizer.chat_template
    assert reasons(template) == [None, None, None]
    written = "message['content'] or ''"
    assert template.count(written) == 1
    textless = template.replace(written, "'' if message['tool_calls'] else message['content']")
    assert reasons(textless) == [None, "text_beside_call", None]
    listed = "in message['tool_calls'] or []"
    assert template.count(listed) == 1
    assert reasons(template.replace(listed, "in (message['tool_calls'] or [])[:1]")) == [None, None, "several_calls"]
    mistral = "{%- for m in messages %}{%- for c in m['tool_calls'] or [] %}{%- if c['id'] | length != 9 %}"
    mistral += "{{ raise_exception('ids have nine characters') }}{%- endif %}{%- endfor %}{%- endfor %}"
    assert reasons(mistral + template) == [None, None, None]


def qwen(tokenizer):
    """A template of others: Qwen2.5's with generation markers, as TRL brings it."""
    import trl

    other = copy.deepcopy(tokenizer)
    folder = Path(trl.__file__).parent / "chat_templates"
    other.chat_template = (folder / "qwen2_5_training.jinja").read_text("utf-8")
    return other


def test_prepared_calls_read_by_datasets_are_what_trl_and_other_templates_want(tokenizer, tmp_path, monkeypatch):
    """The columns are Parquet's JSON, so `datasets` gives TRL objects where templates expect objects."""
    from datasets import Dataset
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer
    from trl.trainer.utils import remove_none_values

    from pipeline_lib.post_training.data_kinds import INSTRUCTIONS
    from pipeline_lib.post_training.prepared_data import _output_schema, _RowWriter

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    row = {"id": "1", "source": "s", "messages": CALLING, "tools": OFFERED}
    with _RowWriter(tmp_path / "train.parquet", _output_schema(INSTRUCTIONS)) as writer:
        writer.add(row)
    dataset = Dataset.from_parquet(str(tmp_path / "train.parquet"), cache_dir=str(tmp_path / "cache"))
    assert dataset[0]["tools"] == json.loads(OFFERED)
    assert dataset[0]["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"a": 2, "b": '"é"'}
    other = qwen(tokenizer)
    arguments = SFTConfig("unused", assistant_only_loss=True, max_length=None, bf16=False, report_to="none")
    trainer = SimpleNamespace(chat_template=None, completion_only_loss=False, _tokenizer=other)
    plain = Dataset.from_list([remove_none_values(dataset[0])], on_mixed_types="use_json")
    theirs = SFTTrainer._prepare_dataset(trainer, plain, other, arguments, False, None, "train")[0]
    ours = next(conversation_rows([row], other, 10_000))
    assert ours.columns == {"input_ids": theirs["input_ids"], "labels": theirs["labels"]}
