"""Who judges toxicity is chosen openly, and what the backends say is what they measured."""

import pyarrow as pa
import pytest
from finished_download import document, finish_download
from test_02_clean_stage import prose, receipts_of, start

from pipeline_lib.config.clean import CleanSettings, ToxicitySettings
from pipeline_lib.stage import UserError
from pipeline_lib.stage.manifest import MANIFEST, Manifest
from pipeline_lib.text_cleaning.data_cleaner import DataCleaner
from pipeline_lib.text_cleaning.memory_share import fitting_workers, memory_limit
from pipeline_lib.text_cleaning.toxicity import Detoxify, WordShare, load_scorer
from pipeline_lib.text_cleaning.toxicity_backend import WORD_LIST, describe_backend, read_words, toxicity_backend

LENIENT = {"quality_rules": [], "language": {"keep": []}, "contamination": {"enabled": False}}


def strings(*texts: str) -> pa.Array:
    return pa.array(texts, pa.large_string())


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A BERT with six labels and random weights, saved as the hub has it."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

    folder = tmp_path_factory.mktemp("classifier")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "you", "are", "kind", "bad", "the", "river"]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        num_labels=6, max_position_embeddings=32, initializer_range=1.0, problem_type="multi_label_classification",
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def test_words_are_counted_whole_whatever_their_case_and_punctuation():
    scorer = WordShare(["crud", "naïve"])
    shares = scorer.score(strings("Crud, said he.", "crude crudités", "NAÏVE crud", "", "a b c crud"))
    assert shares == pytest.approx([1 / 3, 0, 1, 0, 1 / 4])
    assert scorer.score(strings()).shape == (0,)


def test_the_list_that_comes_along_is_one_word_a_line_and_leaves_ordinary_text_alone():
    words = read_words(WORD_LIST)
    assert len(set(words)) == len(words) == len({word.lower() for word in words})
    scorer = WordShare(words)
    assert scorer.score(strings("Assess the classic Scunthorpe cockpit passage, title, and competition."))[0] == 0
    with pytest.raises(UserError, match="'two words' is not one word"):
        WordShare(["one", "two words"])


def test_detoxify_without_weights_is_an_error_and_auto_says_that_it_counts_words(tmp_path):
    with pytest.raises(UserError, match="not on this machine"):
        toxicity_backend(ToxicitySettings(backend="detoxify", model=str(tmp_path)))
    auto = ToxicitySettings(backend="auto", model=str(tmp_path))
    assert toxicity_backend(auto) == "words" and "crudeness, not toxicity" in describe_backend(auto)["backend"]
    assert load_scorer(ToxicitySettings()) is None and describe_backend(ToxicitySettings()) == {"backend": "off"}
    with pytest.raises(UserError, match=r"missing\.txt cannot be read"):
        load_scorer(ToxicitySettings(backend="words", words=str(tmp_path / "missing.txt")))


@pytest.mark.parametrize("model", ["./toxic-bert", "~/toxic-bert", "models/toxic--bert", "my models/toxic-bert"])
def test_a_mistyped_folder_is_a_model_that_is_not_here(model):
    with pytest.raises(UserError, match=f"the weights of {model} are not on this machine.* in clean.toxicity.model"):
        toxicity_backend(ToxicitySettings(backend="detoxify", model=model))
    assert toxicity_backend(ToxicitySettings(backend="auto", model=model)) == "words"


def test_each_process_that_judges_with_a_model_counts_its_weights_under_max_ram(tmp_path):
    with open(tmp_path / "model.safetensors", "wb") as weights:
        weights.truncate(438 << 20)
    judge = {"backend": "detoxify", "model": str(tmp_path)}
    with pytest.raises(UserError, match=r"max_ram is 1G; cleaning needs at least 1698M, 1138M of it to judge toxicity"):
        memory_limit(CleanSettings(max_ram="1G", toxicity=judge))
    for toxicity, fitting in ((judge, 2), ({"backend": "words"}, 10)):
        settings = CleanSettings(max_ram="4G", toxicity=toxicity)
        assert fitting_workers(20, memory_limit(settings), settings) == fitting


@pytest.mark.long
def test_a_classifier_on_this_machine_is_used_and_agrees_with_transformers(classifier):
    import torch
    from transformers import pipeline

    settings = ToxicitySettings(backend="auto", model=str(classifier))
    assert toxicity_backend(settings) == "detoxify" and str(classifier) in describe_backend(settings)["backend"]
    reference = pipeline("text-classification", model=str(classifier), top_k=None, function_to_apply="sigmoid")
    texts = ["you are kind", "you are bad bad", "the river"]
    expected = [max(label["score"] for label in labels) for labels in reference(texts)]
    scorer = load_scorer(settings)
    with torch.inference_mode():
        assert scorer.score(strings(*texts)) == pytest.approx(expected, rel=1e-4)
    assert scorer.score(strings("")) == [0.0]


@pytest.mark.long
def test_a_bad_end_of_a_long_text_counts(classifier):
    scorer = Detoxify(classifier)
    loud = max(scorer.score(strings("bad " * 30))[0], scorer.score(strings("kind " * 30))[0])
    word, other = ("bad", "kind") if loud == scorer.score(strings("bad " * 30))[0] else ("kind", "bad")
    assert scorer.score(strings(f"{other} " * 300 + f"{word} " * 30))[0] == pytest.approx(loud, rel=1e-4)


def test_the_data_cleaner_judges_texts_in_memory_as_the_stage_does():
    settings = CleanSettings(**LENIENT, toxicity={"backend": "words", "max_word_share": 0.2})
    cleaner = DataCleaner(settings)
    crude, fine, empty = cleaner.clean(["What the fuck is this shit", "Write to jane@web.de \u2028now", ""])
    assert crude.removed_by == "toxicity.max_word_share" and crude.scores["toxicity.max_word_share"] > 0.2
    assert (fine.removed_by, fine.text) == (None, "Write to [EMAIL]\nnow") and fine.scores["profane_words"] == 0
    assert empty.removed_by == "empty" and "words (crudeness" in cleaner.toxicity_backend
    assert cleaner.clean([]) == []


@pytest.mark.long
def test_the_stage_removes_with_a_receipt_and_names_the_judge_on_the_card(tmp_path):
    rows = [document(f"fine-{i}", prose(i)) for i in range(3)] + [document("crude", prose(9) + "\nSome blazes.")]
    finish_download(tmp_path, [rows])
    (tmp_path / "words.txt").write_text("# mine\nblazes\n")
    flags = ["--quality_rules", "[]", "--language.keep", "[]", "--contamination.enabled", "false"]
    flags += ["--toxicity.backend", "words", "--toxicity.words", str(tmp_path / "words.txt")]
    flags += ["--toxicity.max_word_share", "0.001"]
    done = start(tmp_path, *flags, threads=1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {name: row["rule"] for name, row in receipts_of(tmp_path).items()} == {"crude": "toxicity.max_word_share"}
    assert "toxicity is judged by a list of 1 words" in done.stdout
    assert any("toxicity" in note for note in Manifest.read(tmp_path / "02_clean" / MANIFEST).notes)
    assert "up to date" in start(tmp_path, *flags, threads=1).stdout
    (tmp_path / "words.txt").write_text("river\n")
    assert "up to date" not in start(tmp_path, *flags, threads=1).stdout
