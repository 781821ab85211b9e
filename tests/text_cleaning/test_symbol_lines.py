"""Lines of symbols go as datatrove's formatter takes them out."""

import numpy as np
import pyarrow as pa
import pytest
from datatrove.pipeline.formatters import SymbolLinesFormatter
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_lib.text_cleaning.symbol_lines import remove_symbol_lines

lines = st.sampled_from(["-----", "| | |", "", "  ", "a b", "* a", "...", "\t-", "漢。", "。。", " - ", "—", "x"])


@settings(deadline=None, max_examples=200)
@given(st.lists(st.lists(lines, min_size=1, max_size=12).map("\n".join), max_size=5), st.sampled_from(["", "|", "¶"]))
def test_the_same_lines_stay_as_with_datatrove(texts, replacement):
    oracle = SymbolLinesFormatter(replace_char=replacement)
    texts = [text.strip("\n") for text in texts]
    found = remove_symbol_lines(pa.array(texts, pa.large_string()), replacement, np.zeros(len(texts), np.bool_))
    found.validate(full=True)
    assert found.to_pylist() == [oracle.format(text) for text in texts]


@pytest.mark.parametrize("text", ["a\n---\nb", "---"])
def test_an_exempt_document_keeps_its_lines(text):
    texts = pa.array([text, text], pa.large_string())
    assert remove_symbol_lines(texts, "", np.array([True, False])).to_pylist() == [
        text,
        text.replace("\n---", "").replace("---", ""),
    ]
