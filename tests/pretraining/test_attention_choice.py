"""Which attention runs where, what is said when FlashAttention cannot, and the layout its kernels get."""

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as functional

from pipeline_lib.kernel_optimizations import flash_attention_problem
from pipeline_lib.pretraining.attention import _end_to_end, choose_attention, sequence_starts
from pipeline_lib.pretraining.cpu_attention import alike, document_attention, document_runs
from pipeline_lib.stage import StageFailure

CPU = torch.device("cpu")


@pytest.fixture
def package(tmp_path: Path, monkeypatch):
    """Install a flash_attn whose import does as told."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "flash_attn", raising=False)

    def install(text: str) -> None:
        (tmp_path / "flash_attn").mkdir()
        (tmp_path / "flash_attn" / "__init__.py").write_text(text)

    yield install
    sys.modules.pop("flash_attn", None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("raise ImportError('/lib/libc.so.6: version `GLIBC_2.32` not found (required by x.so)')", "newer C library"),
        ("raise ImportError('libcudart.so.11.0: cannot open shared object file')", "another CUDA than torch's"),
        ("raise ImportError('flash_attn_2_cuda.so: undefined symbol: _ZN3c104cuda9SetDeviceEi')", "another torch"),
        ("import a_module_nobody_has", "needs the module a_module_nobody_has"),
        ("raise OSError('bad magic number')", "does not load: bad magic number"),
    ],
)
def test_the_reason_why_flash_attn_does_not_load_is_told(package, text, words):
    package(text)
    assert words in flash_attention_problem()


def test_a_missing_package_is_called_missing_and_a_whole_one_has_no_problem(package):
    assert "is missing" in flash_attention_problem()
    package("")
    assert flash_attention_problem() is None


def test_a_cpu_attends_document_by_document_and_refuses_what_needs_a_gpu():
    choice = choose_attention("auto", CPU, torch.float32)
    assert choice.name == "documents" and "no GPU" in choice.reason
    assert choose_attention("dense", CPU, torch.float32).name == "dense"
    for wanted in ("flash", "flex"):
        with pytest.raises(StageFailure, match=f"pretrain.attention {wanted} needs a GPU"):
            choose_attention(wanted, CPU, torch.float32)


def test_a_gpu_in_float32_takes_flex_and_says_why():
    choice = choose_attention("auto", torch.device("cuda", 0), torch.float32)
    assert choice.name == "flex" and "multiplies in 16 bits, this run in float32" in choice.reason
    with pytest.raises(StageFailure, match="documents runs on a CPU"):
        choose_attention("documents", torch.device("cuda", 0), torch.bfloat16)
    with pytest.raises(StageFailure, match="flash cannot run"):
        choose_attention("flash", torch.device("cuda", 0), torch.float32)


def some_documents() -> torch.Tensor:
    return torch.tensor([[1, 1, 1, 2, 2, 0, 0, 0], [1] * 8, [1, 2, 2, 2, 2, 2, 3, 3]])


def test_runs_and_starts_of_documents():
    documents = some_documents()
    assert document_runs(documents) == [(0, 0, 3), (0, 3, 5), (1, 0, 8), (2, 0, 1), (2, 1, 6), (2, 6, 8)]
    starts = sequence_starts(documents)
    assert starts.dtype is torch.int32
    # Padding counts as a document, and an empty one fills up to a power of two.
    assert starts.tolist() == [0, 3, 5, 8, 16, 17, 22, 24, 24]


def test_documents_that_lie_alike_in_consecutive_rows_go_as_one_and_are_computed_as_if_alone():
    rows = [[1] * 8, [1] * 8, [1, 1, 1, 2, 2, 2, 2, 2], [3, 3, 3, 4, 4, 4, 0, 0], [1] * 8, [2] * 8, [1] * 8]
    documents = torch.tensor(rows)
    assert [(rows.start, rows.stop, places.start, places.stop) for rows, _, places in alike(documents)] == [
        (0, 2, 0, 8), (2, 4, 0, 3), (2, 3, 3, 8), (3, 4, 3, 6), (4, 7, 0, 8),
    ]  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(7, 3, 8, 16, generator=generator, requires_grad=True) for _ in range(3)]
    aim = torch.randn(7, 3, 8, 16, generator=generator)

    def attended(first: int, stop: int) -> list[torch.Tensor]:
        output = document_attention(
            *(tensor[first:stop] for tensor in tensors), documents[first:stop], 0.25, torch.float32
        )[0]
        return [output, *torch.autograd.grad((output * aim[first:stop]).sum(), tensors)]

    together, alone = attended(0, 7), [attended(row, row + 1) for row in range(7)]
    torch.testing.assert_close(together[0], torch.cat([results[0] for results in alone]), rtol=0, atol=0)
    for place in (1, 2, 3):
        torch.testing.assert_close(together[place], sum(results[place] for results in alone), rtol=0, atol=0)


def test_long_documents_are_multiplied_in_bfloat16_forward_and_still_see_neither_neighbours_nor_what_comes_later():
    documents = torch.tensor([[1] * 300 + [2] * 290 + [0] * 10, [1] * 600])
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(2, 2, 600, 16, generator=generator, requires_grad=True) for _ in range(3)]
    aim = torch.randn(2, 2, 600, 16, generator=generator)

    def attended(number_format: torch.dtype) -> list[torch.Tensor]:
        output = document_attention(*tensors, documents, 0.25, number_format)[0]
        return [output.detach(), *torch.autograd.grad((output * aim).sum(), tensors)]

    exact, low = attended(torch.float32), attended(torch.bfloat16)
    for ours, expected in zip(low, exact, strict=True):
        assert 0 < (ours - expected).norm() < 0.02 * expected.norm()
    assert (low[0][0, :, 590:] == 0).all()
    with torch.no_grad():
        for tensor in tensors:
            tensor[0, :, 300:] += 1.0
            tensor[1, :, 400:] += 1.0
    changed = document_attention(*tensors, documents, 0.25, torch.bfloat16)[0]
    assert torch.equal(changed[0, :, :300], low[0][0, :, :300]) and torch.equal(changed[1, :, :400], low[0][1, :, :400])
    assert not torch.equal(changed[1, :, 400:], low[0][1, :, 400:])


def test_short_documents_stay_in_float32():
    documents = torch.tensor([[1] * 255 + [2] * 45])
    tensors = [torch.randn(1, 2, 300, 16, generator=torch.Generator().manual_seed(number)) for number in range(3)]
    results = [document_attention(*tensors, documents, 0.25, form)[0] for form in (torch.float32, torch.bfloat16)]
    assert torch.equal(*results)


def plain_kernel(query, key, value, starts, longest, scale):
    """What a variable-length kernel computes, sequence by sequence."""
    output = torch.empty_like(query)
    for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        parts = (tensor[start:end].transpose(0, 1)[None] for tensor in (query, key, value))
        if end > start:
            attended = functional.scaled_dot_product_attention(*parts, is_causal=True, scale=scale, enable_gqa=True)
            output[start:end] = attended[0].transpose(0, 1)
    return output


def test_a_variable_length_kernel_gets_rows_end_to_end_and_gives_them_back_in_place():
    documents = some_documents()
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(3, 4, 8, 16, generator=generator)
    key, value = (torch.randn(3, 2, 8, 16, generator=generator) for _ in range(2))

    def kernel(query, key, value, starts, longest, scale):
        assert query.shape == (24, 4, 16) and key.shape == (24, 2, 16) and longest == 8
        return plain_kernel(query, key, value, starts, longest, scale)

    found, _ = _end_to_end(kernel)(None, query, key, value, None, 0.25, sequence_starts(documents))
    whole = key.repeat_interleave(2, 1), value.repeat_interleave(2, 1)
    expected = document_attention(query, *whole, documents, 0.25, torch.float32)[0].transpose(1, 2)
    text = documents != 0
    torch.testing.assert_close(found[text], expected[text], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
@pytest.mark.parametrize("name", ["flash", "flash_torch"])
def test_a_model_takes_the_variable_length_functions_and_computes_the_same_through_them(
    architecture, name, monkeypatch
):
    from test_documents_apart import hidden, make_run, packed_rows

    from pipeline_lib.pretraining import attention
    from pipeline_lib.pretraining.batches import as_batch

    monkeypatch.setitem(attention._FUNCTIONS, name, _end_to_end(plain_kernel))  # theirs need a GPU
    batch = as_batch(packed_rows())
    found = hidden(make_run(architecture, attention=name), batch)
    expected = hidden(make_run(architecture), batch)
    text = batch.documents[0] != 0
    torch.testing.assert_close(found[text], expected[text], rtol=1e-5, atol=1e-5)


def test_the_operator_is_what_torch_expects_of_one():
    documents = some_documents()
    tensors = [torch.randn(3, 2, 8, 16, requires_grad=True) for _ in range(3)]
    torch.library.opcheck(document_attention, (*tensors, documents, 0.25, torch.float32))


@pytest.mark.long
def test_compiled_it_computes_the_same_and_is_not_compiled_again_for_other_documents():
    from test_documents_apart import make_run, packed_rows

    from pipeline_lib.pretraining.batches import as_batch
    from pipeline_lib.pretraining.choosing import compile_body, uncompile_body
    from pipeline_lib.pretraining.forward import summed_loss

    run = make_run("llama")
    batches = [as_batch(packed_rows(seed)) for seed in range(3)]
    batches[1].documents[0, 3:7] = 9  # one document more than the others have
    eager = [float(summed_loss(run, batch, 8)) for batch in batches]
    compile_body(run.model, "single")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = [float(summed_loss(run, batch, 8)) for batch in batches]
    assert compiled == pytest.approx(eager, rel=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    uncompile_body(run.model)
    assert [float(summed_loss(run, batch, 8)) for batch in batches] == eager
