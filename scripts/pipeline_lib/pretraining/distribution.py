"""One run on several processes, started by torchrun: who does what, and how they agree.

    single   one process
    ddp      every process holds the whole model; their gradients are added up after the last micro-batch
    fsdp     weights, gradients and moments are cut over the processes, block by block (FSDP2, `fully_shard`)

Process 0 is the stage: it holds the lock, reads and writes checkpoints, metrics and the card. The others follow. Every
process reads the whole batch of a step from the packed cache, which costs next to nothing, and takes its rows; so all
know the number of predicted tokens of the step without asking, and the sum of their gradients is the gradient one
process would have had, up to rounding. Checkpoints hold whole tensors under plain names, so one that N processes wrote
continues on M.

With ddp the exchange begins only when every process has its whole gradient, not during the backward pass as in
torch's DistributedDataParallel: a process whose memory runs out can then tell the others, and all do the same batch
again in the same halves (accumulation.py). The cost is that the exchange hides behind no computation. With fsdp every
block of every micro-batch is an exchange, so memory that runs out in one process cannot be told; it ends the run.

What is decided by a clock, a signal or a measurement is decided once and told to all: two processes that disagree about
taking a checkpoint would wait for each other for ever. Messages are JSON in tensors; nothing is unpickled.

Back end: nccl between GPUs, gloo between CPUs.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from pipeline_lib.stage import Stage, StageFailure, UserError
from pipeline_lib.stage.torchrun import restart

from .machine import choose_device

# A follower waits this long for the first process, which may still be compiling, validating or saving.
PATIENCE = timedelta(hours=2)


@dataclass(frozen=True)
class Processes:
    """The place of this process among `size` of them; `strategy` is single, ddp or fsdp, or auto: not chosen yet."""

    rank: int
    size: int
    strategy: str
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process reads and writes files."""
        return self.rank == 0

    def share(self, value: Any) -> Any:
        """Return the first process's `value` (JSON) on all of them."""
        if self.size == 1:
            return value
        message = json.dumps(value).encode() if self.first else b""
        length = torch.tensor([len(message)], device=self.device)
        torch.distributed.broadcast(length, 0)
        text = torch.zeros(int(length), dtype=torch.uint8, device=self.device)
        if self.first:
            text.copy_(torch.frombuffer(bytearray(message), dtype=torch.uint8))
        torch.distributed.broadcast(text, 0)
        return json.loads(bytes(text.cpu().numpy()))

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of `value` over all processes, in place."""
        if self.size > 1:
            torch.distributed.all_reduce(value)
        return value

    def smallest(self, number: int) -> int:
        """Return the smallest `number` of all processes."""
        return -self.largest(-number)

    def largest(self, number: int) -> int:
        """Return the largest `number` of all processes."""
        if self.size == 1:
            return number
        value = torch.tensor([number], device=self.device)
        torch.distributed.all_reduce(value, torch.distributed.ReduceOp.MAX)
        return int(value)

    def wrap(self, network: torch.nn.Module) -> torch.nn.Module:
        """Return `network` (a TokenLoss), cut over the processes if the strategy is fsdp."""
        if self.strategy == "fsdp":
            from torch.distributed.fsdp import fully_shard

            for block in network.model.base_model.layers:
                fully_shard(block)
            fully_shard(network)
        return network

    def backward(self, loss: Tensor, network: torch.nn.Module, last: bool) -> None:
        """Add the gradient of a part of the loss; with fsdp the last micro-batch of a step exchanges it."""
        if self.strategy == "fsdp":
            network.set_requires_gradient_sync(last)
            loss = loss * self.size  # it averages over the processes; the average is then the sum of their parts
        loss.backward()

    def sum_gradients(self, model: torch.nn.Module) -> None:
        """Give every process the sum of all gradients, in place; what fsdp exchanged in the backward pass stays."""
        if self.strategy == "ddp":
            gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
            for work in [torch.distributed.all_reduce(gradient, async_op=True) for gradient in gradients]:
                work.wait()


def interrupted(stage: Stage, processes: Processes) -> bool:
    """Say whether a signal has arrived at any of the processes; the others then behave as if it were theirs."""
    if processes.size > 1:
        stage.signals.received = processes.largest(stage.signals.received or 0) or None
    return stage.interrupted


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor that FSDP has cut (all processes must ask, in the same order); another one as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def whole_by_name(tensors: dict[str, Tensor], processes: Processes) -> dict[str, Tensor]:
    """Return {name: whole tensor} on the first process and {} on the others; all of them must ask.

    One that FSDP has cut is put together alone and leaves the device before the next, so none holds more than one. With
    fsdp all are copies on the CPU, also those it has not cut (AdamW's count of steps), so that later updates leave them
    alone; else all are the tensors themselves.
    """
    result = {}
    for name, tensor in tensors.items():
        gathered = whole(tensor)
        if not processes.first:
            continue
        if gathered is not tensor:
            result[name] = gathered.cpu()
        elif processes.strategy == "fsdp":
            result[name] = tensor.detach().to("cpu", copy=True)
        else:
            result[name] = tensor
    return result


def local(tensor: Tensor) -> Tensor:
    """Return the share that this process holds of a tensor that FSDP has cut; another one as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def part(tensor: Tensor, like: Tensor) -> Tensor:
    """Cut a whole tensor as `like` is cut, without asking other processes; the inverse of `whole`."""
    if not hasattr(like, "full_tensor"):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    mesh, placements = like.device_mesh, like.placements
    share = distribute_tensor(tensor.to(like.device), mesh, placements, src_data_rank=None).to_local()
    # A copy: the share may be a view, which would keep the whole tensor on the device.
    return DTensor.from_local(share.clone(), mesh, placements, shape=like.shape, stride=like.stride())


def alone() -> Processes:
    """Return the only process of a run."""
    return Processes(0, 1, "single", choose_device())


def launched_processes() -> int:
    """Return how many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join(strategy: str) -> Processes:
    """Join the processes that torchrun started, or return the only one.

    Raises UserError when `strategy` needs several processes or there are several and it allows one.
    """
    size = launched_processes()
    if size == 1:
        if strategy in ("ddp", "fsdp"):
            raise UserError(
                f"pretrain.strategy {strategy} needs several processes: torchrun --nproc-per-node 2"
                " scripts/05_pretrain.py ...; or set it to auto"
            )
        return alone()
    if strategy == "single":
        raise UserError(f"pretrain.strategy is single, but torchrun started {size} processes; set it to auto")
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        if local >= torch.cuda.device_count():
            raise StageFailure(f"process {local} of this machine has no GPU: it has {torch.cuda.device_count()}")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if not torch.distributed.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        torch.distributed.init_process_group(backend, timeout=PATIENCE, **_meeting_place())
    return Processes(rank, size, strategy, device)


def _meeting_place() -> dict[str, Any]:
    """Return where the processes of this start tell each other their addresses, as init_process_group takes it.

    torchrun keeps one store for all its restarts, in which a restart may find the addresses of the processes before it,
    and then fails or waits for ever (pytorch issue 135712). So each restart has names of its own there. With several
    nodes the number of restarts is not the same on all of them, and docs/scale_out.md says what to set instead.
    """
    if os.environ.get("GROUP_WORLD_SIZE") != "1" or not restart():
        return {}
    store, rank, size = next(torch.distributed.rendezvous("env://", timeout=PATIENCE))
    return {"store": torch.distributed.PrefixStore(f"restart {restart()}", store), "rank": rank, "world_size": size}
