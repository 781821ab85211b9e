"""What the plan of stage 03 says of a vocabulary agrees with what training finds."""

import pyarrow as pa
import pytest

from pipeline_lib.config.pack import PackSettings
from pipeline_lib.packing.shards import plan_runs
from pipeline_lib.packing.text_encoder import text_buffers
from pipeline_lib.packing.trained_tokenizer import train_tokenizer
from pipeline_lib.packing.vocabulary_forecast import foresee_vocabulary
from pipeline_lib.stage import UserError


@pytest.fixture
def text(packing_run, documents):
    """The runs of the corpus, its size, and how many ids training supports."""
    run = packing_run(documents, 1)
    runs = plan_runs(sorted((run.folder / "02_clean").glob("part-*.parquet")))
    batch = text_buffers(pa.array([document["text"] for document in documents], pa.large_string()))
    with pytest.raises(UserError) as refused:
        train_tokenizer([batch], 100_000, 2)
    return runs, len(batch[0]), int(str(refused.value).rpartition("at most ")[2].partition(",")[0])


def foresee(text, probed: int = 2_000_000, **settings) -> str | None:
    runs, size, _ = text
    return foresee_vocabulary(runs, size, PackSettings(**settings), probed)


def test_a_probe_of_all_text_is_certain_and_exact(text):
    supported = text[2]
    assert foresee(text, vocab_size=supported) is None
    line = foresee(text, vocab_size=supported + 1)
    assert "will refuse it" in line and f"at most {supported}," in line


def test_a_probe_of_a_part_only_says_may_and_only_when_all_of_it_is_likely_to_fall_short(text):
    runs, size, supported = text
    line = foresee(text, size // 2, vocab_size=3 * supported)
    assert "will refuse" not in line
    expected = int(line.partition(" may support only some ")[2].partition(" (")[0].replace(",", ""))
    assert supported / 2 < expected < 2 * supported
    assert foresee(text, size // 2, vocab_size=supported // 2) is None
    half = foresee_vocabulary(runs, size // 2, PackSettings(vocab_size=supported * 3 // 4), size // 2)
    grown = foresee_vocabulary(runs, 100 * size, PackSettings(vocab_size=supported * 3 // 4), size // 2)
    assert grown is None and (half is None or "may" in half)


@pytest.mark.parametrize("settings", [{"weights": {"web": 0.5}}, {"training_bytes": 1000}])
def test_a_training_text_that_is_not_all_text_is_not_certain(text, settings):
    line = foresee(text, vocab_size=3 * text[2], **settings)
    assert "may" in line and "will refuse" not in line


def test_a_given_tokenizer_has_its_own_vocabulary(text):
    assert foresee(text, vocab_size=3 * text[2], tokenizer="anything") is None
