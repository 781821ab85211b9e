"""The shards that leave stage 02: row groups whose documents are all duplicates leave nothing behind."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from finished_download import SCHEMA, document
from test_duplicate_table import removals_of

from pipeline_lib.stage import file_digest
from pipeline_lib.text_cleaning.duplicate_table import DuplicateTable
from pipeline_lib.text_cleaning.final_shards import FinalJob, write_final_shard


@pytest.mark.parametrize("removed", [[2, 3], [0, 1], [4, 5], [1, 2, 3, 5], [0, 1, 2, 3, 4, 5]])
def test_a_row_group_of_nothing_but_duplicates_is_not_written(tmp_path, removed):
    rows = [document(f"document {row}", f"text {row}") for row in range(6)]
    candidates = tmp_path / "candidates.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), candidates, row_group_size=2)
    table = DuplicateTable.below(tmp_path)
    table.write(removals_of(np.array(removed), np.full(len(removed), 9), 10), 10)
    output, receipts = tmp_path / "part-00000.parquet", tmp_path / "receipts.parquet"
    result = write_final_shard(FinalJob((candidates,), (file_digest(candidates),), table, 0, output, receipts, 0.8))
    stays = [f"document {row}" for row in range(6) if row not in removed]
    written = pq.read_metadata(output)
    sizes = [written.row_group(group).num_rows for group in range(written.num_row_groups)]
    assert sizes == [kept for kept in (2 - len({first, first + 1} & {*removed}) for first in (0, 2, 4)) if kept]
    assert pq.read_table(output)["id"].to_pylist() == stays
    assert pq.read_schema(output).names == [*SCHEMA.names, "duplicates"]
    assert pq.read_table(receipts)["id"].to_pylist() == [f"document {row}" for row in removed]
    assert sum(n for *_, measure, n in result["kept"] if measure == "documents") == len(stays)
