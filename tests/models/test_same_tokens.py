"""Ids mean the same under the same tokenizer and under a pure extension of it, and under nothing else."""

import copy
import json

import pytest

from pipeline_lib.models.same_tokens import require_same_tokens
from pipeline_lib.stage import UserError


def tokenizer(merges=("a b", "ab c")):
    tokens = ["a", "b", "c", *(merge.replace(" ", "") for merge in merges)]
    return {
        "version": "1.0",
        "truncation": None,
        "added_tokens": [{"id": 0, "content": "<end>", "special": True}],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
        "model": {
            "type": "BPE",
            "vocab": {"<end>": 0, **{token: place + 1 for place, token in enumerate(tokens)}},
            "merges": list(merges),
        },
    }


@pytest.fixture
def check(tmp_path):
    def check(source, own):
        (tmp_path / "tokenizer.json").write_text(json.dumps(source))
        return require_same_tokens(tmp_path / "tokenizer.json", json.dumps(own).encode())

    return check


def changed(place, value):
    own = copy.deepcopy(tokenizer())
    inside = own
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = value
    return own


def test_the_same_file_and_another_spelling_of_it_are_the_same(check):
    check(tokenizer(), tokenizer())
    check(tokenizer(), changed(["model", "merges"], [["a", "b"], ["ab", "c"]]))
    check(tokenizer(), changed(["truncation"], {"max_length": 5}))


def test_a_pure_extension_is_the_same(check):
    longer = tokenizer(("a b", "ab c", "b c"))
    longer["added_tokens"].append({"id": 7, "content": "<new>", "special": True})
    assert check(tokenizer(), longer) == 6 and check(longer, longer) == 8, "1 + the highest id of the source"
    with pytest.raises(UserError, match="its token 'bc' is missing"):
        check(longer, tokenizer())


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (["model", "vocab", "c"], 9, "'c' has id 3 there and 9 here"),
        (["model", "merges"], ["ab c", "a b"], "merges are not the first ones here"),
        (["added_tokens", 0, "special"], False, "'<end>' is treated in another way"),
        (["pre_tokenizer", "add_prefix_space"], True, "pre_tokenizer differs"),
        (["normalizer"], {"type": "NFC"}, "normalizer differs"),
        (["model", "byte_fallback"], True, "model.byte_fallback differs"),
    ],
)
def test_anything_else_is_another_tokenizer(check, place, value, words):
    with pytest.raises(UserError, match=f"another tokenizer .*{words}; start the run from the packed cache"):
        check(tokenizer(), changed(place, value))


def test_a_unigram_vocabulary_is_a_list(check):
    source, own = tokenizer(()), tokenizer(())
    for each, tokens in ((source, ["x", "y"]), (own, ["x", "y", "z"])):
        each["model"] = {"type": "Unigram", "vocab": [["<end>", 0.0], *([token, -1.0] for token in tokens)]}
    check(source, own)
    own["model"]["vocab"][1:3] = [["y", -1.0], ["x", -1.0]]
    with pytest.raises(UserError, match="'x' has id 1 there and 2 here"):
        check(source, own)


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"model": {}}', b'{"model": {"vocab": 3}}'])
def test_what_is_no_tokenizer_is_one_clear_line(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UserError, match="no tokenizer in Hugging Face's fast format"):
        require_same_tokens(tmp_path / "tokenizer.json", json.dumps(tokenizer()).encode())


def test_a_genuine_tokenizer_is_extended_by_added_tokens(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    small = Tokenizer(models.BPE())
    small.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<end>"], show_progress=False)
    small.train_from_iterator(["the cat sat on the mat and the hat"] * 3, trainer)
    small.save(str(tmp_path / "tokenizer.json"))
    before = small.get_vocab()
    small.add_special_tokens(["<new>"])
    require_same_tokens(tmp_path / "tokenizer.json", small.to_str().encode())
    assert {token: number for token, number in small.get_vocab().items() if token != "<new>"} == before
