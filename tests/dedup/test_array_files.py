"""Files of arrays: what was written is read, and any other byte is noticed."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from dedup.array_files import is_whole, load_arrays, save_arrays
from pipeline_lib.stage import StageFailure

TYPES = st.sampled_from(["u1", "bool", "i4", "i8", "u8", "f4", "f8"])
SOME = arrays(TYPES, array_shapes(min_dims=1, max_dims=2, min_side=0, max_side=9))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.text(max_size=5).filter(lambda name: name != "path"), SOME, max_size=4))
def test_what_goes_in_comes_out(tmp_path, written):
    save_arrays(tmp_path / "some.arrays", **written)
    read = load_arrays(tmp_path / "some.arrays")
    assert list(read) == list(written)
    for name, array in written.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)


def test_every_altered_byte_and_every_missing_end_is_damage(tmp_path):
    path = tmp_path / "some.arrays"
    save_arrays(path, row=np.arange(5), is_exact=np.array([True, False, True]))
    content = path.read_bytes()
    assert is_whole(path) and not is_whole(tmp_path / "none.arrays")
    for place in range(len(content)):
        for damaged in (content[:place], content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]):
            path.write_bytes(damaged)
            with pytest.raises(StageFailure, match="some.arrays is damaged"):
                load_arrays(path)
            assert not is_whole(path)
