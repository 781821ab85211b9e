"""How long a checkpoint holds up training: saved in the background against saved on the spot, and against torch.save.

The same steps of the same Llama with AdamW on random tokens, three ways interleaved: no save, one save on the spot,
one save in the background. The stall of a way is what its steps take longer than those without a save, wall clock, so
that whatever the copying thread takes from the steps counts too. Beside it the part the loop itself measured.
"""

import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline_lib.checkpoints import BackgroundSaver, Retention, load_checkpoint, optimizer_state_by_name

ROUNDS, STEPS = 7, 4
SHAPE = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 6}


def main() -> None:
    """Print one row."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=8192, **SHAPE))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    tokens = torch.randint(0, 8192, (4, 256))
    folder = Path(tempfile.mkdtemp())
    savers = {way: BackgroundSaver(folder / way, Retention(1), way == "background") for way in ("spot", "background")}

    def content() -> dict[str, dict[str, torch.Tensor]]:
        return {"model": model.state_dict(), "optimizer": optimizer_state_by_name(optimizer, model)[0]}

    def steps(way: str, number: int) -> float:
        began = time.perf_counter()
        for step in range(STEPS):
            if step == 0 and way in savers:
                savers[way].start(content(), {"step": number})
            elif step == 0 and way == "torch":
                torch.save(content(), folder / "peer.pt")
            model(input_ids=tokens, labels=tokens).loss.backward()
            if way in savers:
                savers[way].before_update()
            optimizer.step()
            optimizer.zero_grad()
        seconds = time.perf_counter() - began
        if way in savers:
            savers[way].finish()
        return seconds

    ways = ("none", "spot", "background", "torch")
    for way in ways:
        steps(way, 0)
    start = savers["background"].stalled
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(1, ROUNDS + 1):
        for way in ways:
            taken[way].append(steps(way, number))
    plain = statistics.median(taken["none"])
    stall = {way: statistics.median(times) - plain for way, times in taken.items()}
    measured = (savers["background"].stalled - start) / ROUNDS
    same = load_checkpoint(savers["background"].folder / f"step-{ROUNDS:08d}")
    size = sum(tensor.nbytes for group in same.tensors.values() for tensor in group.values())
    row = {
        "claim": f"stall of a checkpoint of {size / 1e6:.0f} MB",
        "ours": f"{1000 * stall['background']:.0f} ms in the background (the loop waited {1000 * measured:.1f} ms)",
        "peer": f"on the spot {1000 * stall['spot']:.0f} ms, torch.save without fsync {1000 * stall['torch']:.0f} ms",
        "ratio": f"{100 * measured / stall['spot']:.1f} % waited, {100 * stall['background'] / stall['spot']:.1f} %"
        " in wall clock",
        "quality": f"every byte fsynced and digested; {STEPS} steps take {plain:.2f} s",
    }
    shutil.rmtree(folder)
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
