"""A trained tokenizer folder: loads everywhere, gives every text back, and never takes text for a control token."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from pipeline_lib.packing import text_encoder
from pipeline_lib.packing.shards import weighted_sample
from pipeline_lib.packing.text_encoder import PROBES, TextEncoder, text_buffers
from pipeline_lib.packing.tokenizer_folder import SPECIAL_TOKENS, copy_tokenizer, resolve_tokenizer
from pipeline_lib.stage import StageFailure, UserError
from pipeline_lib.stage.manifest import Manifest

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "And 3 + 3?"},
    {"role": "assistant", "content": "6, of course"},
]


@pytest.fixture(scope="session")
def folder(packed_run) -> Path:
    return packed_run.packed / "tokenizer"


@pytest.fixture(scope="session")
def encoder(folder: Path) -> TextEncoder:
    return TextEncoder(folder)


@pytest.fixture(scope="session")
def transformers_tokenizer(folder: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def encode(encoder: TextEncoder, text: str) -> list[int]:
    return encoder.encode(pa.array([text]))[0].tolist()


def test_any_text_comes_back_and_both_implementations_agree(encoder: TextEncoder, folder: Path):
    reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
    reference.encode_special_tokens = True
    sizes = encoder.token_bytes()

    @settings(max_examples=500, deadline=None)
    @given(st.text() | st.lists(st.sampled_from(PROBES)).map("".join))
    def check(text: str) -> None:
        ids = encode(encoder, text)
        assert encoder.decode(ids) == text.encode()
        assert sizes[ids].sum() == len(text.encode())
        assert ids == reference.encode(text, add_special_tokens=False).ids
        assert reference.decode(ids, skip_special_tokens=False) == text

    check()


def test_text_that_spells_a_special_token_stays_text(encoder: TextEncoder):
    for token in SPECIAL_TOKENS:
        assert not set(encode(encoder, f"before {token} after")) & {0, 1, 2, 3}


def unigram(folder: Path, pieces: list[str]) -> Path:
    """Write a tokenizer of the Unigram kind whose model has these pieces beside letters."""
    vocabulary = [("<unk>", 0.0), *((piece, 0.0) for piece in pieces), *((c, -3.0) for c in "▁abcdefgh<>/s")]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=False))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    return folder


def test_a_tokenizer_under_which_a_text_can_spell_the_separator_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"that spells '</s>' would hold the special token itself.*Unigram"):
        TextEncoder(unigram(tmp_path / "t5", ["</s>"]))
    apart = TextEncoder(unigram(tmp_path / "apart", []))
    assert apart.special.separator not in encode(apart, "a</s>b")


@pytest.mark.parametrize(
    "limits", [{"FORGET_AFTER_BYTES": 20_000}, {"FORGET_AFTER_GROWTH": -(1 << 60), "LEAST_BETWEEN": 20_000}]
)
def test_what_the_encoder_remembers_is_bounded_and_changes_no_id(folder, encoder, documents, monkeypatch, limits):
    for name, value in limits.items():
        monkeypatch.setattr(text_encoder, name, value)
    forgetful, engines = TextEncoder(folder), set()
    for document in documents:
        assert encode(forgetful, document["text"]) == encode(encoder, document["text"])
        engines.add(forgetful._engine._tokenizer)
    sizes = [len(document["text"].encode()) for document in documents]
    assert 2 < sum(sizes) / (20_000 + max(sizes)) <= len(engines) <= 1 + sum(sizes) / 20_000


def test_slices_and_wide_strings_are_the_same_text(encoder: TextEncoder):
    texts = pa.array(["skipped", "one", "two", "three", "skipped"])
    expected = encoder.encode(pa.array(["one", "two", "three"]))
    for array in (texts.slice(1, 3), texts.cast(pa.large_string()).slice(1, 3)):
        for ours, theirs in zip(encoder.encode(array), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(ValueError, match="1 nulls"):
        text_buffers(pa.array(["a", None]))


def test_transformers_loads_it_with_its_special_tokens(transformers_tokenizer, encoder: TextEncoder):
    assert transformers_tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [0, 1, 2, 3]
    assert (transformers_tokenizer.eos_token_id, transformers_tokenizer.pad_token_id) == (0, 1)
    assert set(transformers_tokenizer.all_special_tokens) == set(SPECIAL_TOKENS)
    assert len(transformers_tokenizer) == encoder.vocab_size
    text = "def f(x):\n    return x  # a comment, naïve"
    assert transformers_tokenizer(text)["input_ids"] == encode(encoder, text)
    assert transformers_tokenizer.decode(encode(encoder, text)) == text


def test_chat_template_adds_nothing_and_frames_every_turn(transformers_tokenizer):
    rendered = transformers_tokenizer.apply_chat_template(CHAT[1:3], tokenize=False)
    assert rendered == "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n"
    prompt = transformers_tokenizer.apply_chat_template(CHAT[1:2], tokenize=False, add_generation_prompt=True)
    assert prompt == "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n"
    assert rendered.startswith(prompt)


def test_assistant_mask_covers_what_the_assistant_writes_and_its_end(transformers_tokenizer):
    encoded = transformers_tokenizer.apply_chat_template(
        CHAT, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    masked = [token for token, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mask]
    assert transformers_tokenizer.decode(masked) == "4<|im_end|>6, of course<|im_end|>"


def test_chat_template_renders_functions_and_calls(transformers_tokenizer):
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
    messages = [CHAT[0], CHAT[1], {"role": "assistant", "content": None, "tool_calls": [call]}]
    rendered = transformers_tokenizer.apply_chat_template(messages, tools=[tool], tokenize=False)
    assert rendered.count("<|im_start|>system") == 1 and "Be brief." in rendered and '"name": "add"' in rendered
    assert '<tool_call>{"name": "add", "arguments": {"a": 2}}</tool_call><|im_end|>\n' in rendered


def test_disagreement_between_the_implementations_stops_the_run(encoder: TextEncoder, folder: Path, tmp_path: Path):
    copy_tokenizer(folder, tmp_path)
    other = TextEncoder(tmp_path)
    content = (tmp_path / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(content.replace(r"?\\p{L}+|", r"?\\p{L}|"))
    with pytest.raises(StageFailure, match="disagree"):
        other.check_against_hugging_face(["the word because"])
    encoder.check_against_hugging_face(["the word because", *PROBES])


def gpt2_like(folder: Path, texts: list[str], last_id: int) -> None:
    """Write a tokenizer as other projects have them: another split rule, a start token, special ids at the far end."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    content = json.loads(tokenizer.to_str())
    content["model"]["vocab"].update({f"unused{number}": number for number in range(600, last_id - 2)})
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    names = [(last_id - 2, "<start>", True), (last_id - 1, "    return", False), (last_id, "<end>", True)]
    content["added_tokens"] = [{"id": i, "content": name, "special": special, **flags} for i, name, special in names]
    start = {"SpecialToken": {"id": "<start>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    ids = {"<start>": {"id": "<start>", "ids": [last_id - 2], "tokens": ["<start>"]}}
    content["post_processor"] = {
        "type": "TemplateProcessing", "single": list(start), "pair": list(start), "special_tokens": ids
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<end>"}}))


@pytest.mark.parametrize("last_id", [602, 70_000])
def test_a_tokenizer_of_another_make_gives_its_own_ids(tmp_path: Path, documents, last_id: int):
    texts = [document["text"] for document in documents[:20]]
    gpt2_like(tmp_path, texts, last_id)
    encoder = TextEncoder(tmp_path)
    encoder.check_against_hugging_face([*texts, *PROBES, "def f():\n    return <start> x <end>"])
    assert encoder.is_lossless([*texts, *PROBES])
    assert encoder.dtype == (np.uint16 if last_id < 1 << 16 else np.uint32)
    assert (encoder.special.separator, encoder.special.pad, encoder.vocab_size) == (last_id, last_id, last_id + 1)
    assert encode(encoder, "    return") == [last_id - 1]


def test_folder_without_an_end_of_text_token_is_refused(folder: Path, tmp_path: Path):
    copy_tokenizer(folder, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(UserError, match="eos_token"):
        TextEncoder(tmp_path)
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        copy_tokenizer(tmp_path / "nowhere", tmp_path / "copy")


@pytest.mark.parametrize(("key", "token"), [("eos_token", "<|endoftext|>"), ("pad_token", "<|pad|>")])
def test_a_token_that_ends_or_fills_must_not_be_one_that_text_spells(folder: Path, tmp_path: Path, key, token):
    copy_tokenizer(folder, tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    for added in content["added_tokens"]:
        added["special"] = added["special"] and added["content"] != token
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError) as refused:
        TextEncoder(tmp_path)
    assert f"{tmp_path / 'tokenizer.json'}: the {key} {token!r} is" in str(refused.value)
    assert 'set "special": true there' in str(refused.value) and "\n" not in str(refused.value)
    spelled = TextEncoder(tmp_path, only_counts=True)  # what the refusal keeps out of a cache
    assert SPECIAL_TOKENS.index(token) in encode(spelled, f"before {token} after")


def individual_digits(folder: Path, texts: list[str]) -> None:
    """Write a tokenizer whose split rule gigatoken does not know."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))


def test_outside_the_schemes_of_gigatoken_hugging_face_encodes_and_the_card_says_so(packing_run, documents, tmp_path):
    individual_digits(tmp_path / "given", [document["text"] for document in documents])
    encoder = TextEncoder(tmp_path / "given")
    assert "pre_tokenizer" in encoder.fallback and encoder.is_lossless([*PROBES, "2026 12"])
    assert encode(encoder, "2026") == encode(encoder, "2") + encode(encoder, "0") + encode(encoder, "26")
    encoder.check_against_hugging_face(PROBES)
    run = packing_run(documents[:12], tokenizer=str(tmp_path / "given"))
    code, out, err = run.run()
    assert code == 0, out + err
    assert "note" in out and "Hugging Face tokenizers encodes, many times slower" in out


def test_the_report_compares_bytes_per_token_by_source(packing_run, packed_run, documents, folder, tmp_path: Path):
    report = json.loads((packed_run.packed / "tokenizer_report.json").read_text())
    assert report["reference"] is None and report["sources"].keys() == {"library", "other"}
    shutil.copytree(folder, tmp_path / "reference")
    (tmp_path / "reference" / "tokenizer_config.json").unlink()  # what only counts needs no token that ends documents
    run = packing_run(documents, vocab_size=400, reference_tokenizer=str(tmp_path / "reference"))
    code, out, err = run.run()
    assert code == 0, out + err
    sources = json.loads((run.packed / "tokenizer_report.json").read_text())["sources"]
    for name, row in sources.items():
        assert row["reference_bytes_per_token"] == report["sources"][name]["bytes_per_token"] > row["bytes_per_token"]
        assert row["bytes"] == sum(len(each["text"].encode()) for each in documents if each["source"] == name)


def test_a_tokenizer_that_is_nowhere_is_one_clear_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("no-such-owner/no-such-tokenizer", "/no/such/folder"):
        with pytest.raises(UserError, match="folder"):
            resolve_tokenizer(name)


@pytest.mark.parametrize("name", ["tokenizers/v2--old", "owner/name.git", "owner/a..b", "tokenizers/ends-"])
def test_a_name_that_the_hub_does_not_allow_is_no_folder_and_no_id(name: str):
    with pytest.raises(UserError, match=r"is no folder; name a tokenizer folder or an id on the Hugging Face hub$"):
        resolve_tokenizer(name)


def test_a_folder_without_a_tokenizer_is_one_clear_line(packing_run, documents, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    for only_counts in (False, True):
        with pytest.raises(UserError, match=r"empty has no tokenizer\.json; name a tokenizer folder"):
            TextEncoder(tmp_path / "empty", only_counts)
    run = packing_run(documents[:12], tokenizer=str(tmp_path / "empty"))
    code, _, err = run.run("--plan")
    assert code == 2 and err.count("\n") == 1 and f"{tmp_path / 'empty'} has no tokenizer.json" in err


def test_a_tokenizer_of_the_hub_comes_from_the_cache(monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path):
    snapshot = cached_snapshot(folder, tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert resolve_tokenizer("owner/name") == snapshot


@pytest.mark.parametrize("missing", ["tokenizer.json", "tokenizer_config.json"])
def test_what_another_program_cached_of_a_repository_is_not_its_tokenizer(monkeypatch, folder, tmp_path, missing: str):
    snapshot = cached_snapshot(folder, tmp_path)
    (snapshot / missing).rename(tmp_path / missing)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    if missing == "tokenizer.json":
        with pytest.raises(UserError, match=r"tokenizer 'owner/name' of the hub: .* holds no tokenizer\.json"):
            resolve_tokenizer("owner/name")
    download = huggingface_hub.snapshot_download

    def fetch(*arguments, local_files_only=False, **options) -> str:
        if not local_files_only:  # stands for the hub, which no test reaches
            shutil.copyfile(tmp_path / missing, snapshot / missing)
        return download(*arguments, local_files_only=True, **options)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert resolve_tokenizer("owner/name") == snapshot and (snapshot / missing).is_file()


def cached_snapshot(folder: Path, cache: Path) -> Path:
    """Put a tokenizer into a cache of the hub as owner/name; return where it lies."""
    snapshot = cache / "models--owner--name" / "snapshots" / ("0" * 40)
    copy_tokenizer(folder, snapshot)
    (cache / "models--owner--name" / "refs").mkdir()
    (cache / "models--owner--name" / "refs" / "main").write_text("0" * 40)
    return snapshot


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 10**6), min_size=1),
    st.dictionaries(st.sampled_from("abc"), st.just(0.0) | st.floats(0.001, 4)),
    st.integers(1, 10**6),
)
def test_a_weighted_sample_has_the_wanted_size_or_everything(sizes, weights, wanted):
    sample = weighted_sample(sizes, weights, wanted, seed=1)
    taken = sum(sample.fractions[source] * size for source, size in sizes.items())
    available = sum(size for source, size in sizes.items() if weights.get(source, 1) > 0)
    assert all(0 <= fraction <= 1 for fraction in sample.fractions.values())
    assert taken == pytest.approx(min(wanted, available), rel=1e-6)


@pytest.mark.long
def test_the_sample_and_its_rule_are_in_the_manifest(packing_run, documents):
    run = packing_run(documents, training_bytes=60_000, vocab_size=300, weights={"other": 3.0})
    assert run.run()[0] == 0
    training = Manifest.read(run.packed / "manifest.json").result["tokenizer_training"]
    assert training["seed"] == 7 and "hash of the id" in training["rule"]
    assert training["fractions"]["other"] == pytest.approx(3 * training["fractions"]["library"])
    assert 0 < training["documents"] < len(documents) and 20_000 < training["bytes"] < 120_000
