"""Save checkpoints while training goes on.

What: between two updates of the weights nothing writes to weights or moments, and that time is long: it holds the
forward and backward passes of a whole step. So a save copies them in a thread during that time, and the loop waits for
the copy only just before the next update (`before_update`), by when it is long done. Writing, digests, fsync, rename
and pruning follow in the same thread.

    saver.start(tensors, state)    between two steps: takes references only
    ... forward, backward ...      meanwhile the thread copies
    saver.before_update()          the copy is complete from here on
    optimizer.step()               meanwhile the thread writes

Cost: one copy of weights and moments in host memory (pinned on a machine with a GPU), kept for the next save. Tensors
that the caller has made for the save (`owned`, as those put together from several processes) are written as they are.
Where there is no memory for the copy, the thread writes from weights and moments themselves, and `before_update` waits
until that is done; later saves are complete when `start` returns. So a save is slower then, and none is lost.
Traps: a copy through torch would use its thread pool and take cores from the step, so CPU tensors are copied through
numpy, one core and no interpreter lock. An error in the thread (a full disk) is raised in the loop by the next call.

The idea is that of DataStates-LLM (Maurya et al. 2024, arXiv 2406.10707).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_lib.oom_handler import is_out_of_memory
from pipeline_lib.stage.errors import StageFailure

from .folders import Retention, checkpoint_name, prune, save_checkpoint
from .tensor_files import bytes_of

if TYPE_CHECKING:
    from torch import Tensor

Groups = dict[str, dict[str, "Tensor"]]


class BackgroundSaver:
    """Writes the checkpoints of one run; `stalled` and `written` are seconds, of the loop and of the thread.

    failure: the error of a save that this raised, by which the loop tells it from other errors of the same kind.
    """

    def __init__(
        self, folder: Path, retention: Retention, background: bool = True, note: Callable[[str], None] = print
    ):
        """Checkpoints go below `folder`; with `background` False every save is complete when `start` returns.

        note: told, in the thread of the loop, when there is no memory for saving in the background.
        """
        self.folder = folder
        self.retention = retention
        self.background = background
        self.last_step: int | None = None
        self._note = note
        self._untold: str | None = None
        self.saves = 0
        self.stalled = 0.0
        self.written = 0.0
        self._thread: threading.Thread | None = None
        self._copied = threading.Event()
        self._copied.set()
        self._error: BaseException | None = None
        self.failure: BaseException | None = None
        self._buffers: dict[tuple[str, str], Tensor] = {}

    @property
    def busy(self) -> bool:
        """Whether a save is still being written."""
        return self._thread is not None and self._thread.is_alive()

    def start(
        self,
        tensors: Groups,
        state: dict[str, Any],
        score: float | None = None,
        first: Callable[[], None] | None = None,
        owned: bool = False,
    ) -> None:
        """Begin to save; waits for an earlier save to end. `first` is called in the thread before anything is written.

        `state` must not be changed afterwards, and the tensors not before `before_update` returned; owned: they are on
        the CPU and nobody changes them at all, so they are not copied. Raises what an earlier save failed with, and
        without background what this one fails with.
        """
        with self.stalling():
            self._join()
            self.last_step = state["step"]
            self.saves += 1
            if not self.background:
                self._write_alone(tensors, state, score, first)
                self._report()
                return
            if owned:
                target, given = self._write_alone, (tensors, state, score, first)
            else:
                self._copied.clear()
                target, given = self._copy_and_write, (tensors, state, score, first, _mark(tensors))
            self._thread = threading.Thread(target=target, args=given)
            self._thread.start()

    def before_update(self) -> None:
        """Wait until the weights and moments may be changed. Raises the error of a save that failed."""
        if not self._copied.is_set():
            with self.stalling():
                self._copied.wait()
        self._report()

    def finish(self) -> None:
        """Wait for the save in hand. Raises what it failed with."""
        with self.stalling():
            self._join()

    @contextmanager
    def stalling(self) -> Iterator[None]:
        """Count the time that the block takes as one in which saving holds up the loop; blocks must not be nested."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.stalled += time.perf_counter() - began

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._report()

    def _report(self) -> None:
        """Say what the save in hand had to do without, and raise what it failed with."""
        if self._untold is not None:
            line, self._untold = self._untold, None
            self._note(line)
        if self._error is not None:
            error, self._error = self._error, None
            self.last_step = None
            self.failure = error
            raise error

    def _copy_and_write(self, tensors: Groups, state: dict[str, Any], score: float | None, first: Any, ready: Any):
        try:
            copies = self._copy_if_it_fits(tensors, state["step"], ready)
            if copies is not None:
                self._copied.set()
            self._write(tensors if copies is None else copies, state, score, first)
        except BaseException as error:
            self._error = error
        finally:
            self._copied.set()

    def _write_alone(self, tensors: Groups, state: dict[str, Any], score: float | None, first: Any) -> None:
        try:
            self._write(tensors, state, score, first)
        except BaseException as error:
            self._error = error

    def _copy_if_it_fits(self, tensors: Groups, step: int, ready: Any) -> Groups | None:
        """Return a copy of `tensors`, or None where there is no memory for it: no save is in the background then."""
        try:
            return self._copy(tensors, ready)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        self._buffers.clear()  # outside of the except block, whose traceback holds those that were filled
        self.background = False
        self._untold = (
            f"step {step:,}: no memory for a copy of weights and moments; from here on training waits while a"
            " checkpoint is written, as with pretrain.background_saving: false"
        )
        return None

    def _copy(self, tensors: Groups, ready: Any) -> Groups:
        """Copy every tensor into its host buffer; tied tensors stay tied, so that they are written once."""
        import numpy
        import torch

        copies: Groups = {}
        stream = torch.cuda.Stream() if ready is not None else None
        if stream is not None:
            stream.wait_event(ready)
        for group, named in tensors.items():
            copies[group] = {}
            seen: dict[tuple, Tensor] = {}
            for name, tensor in named.items():
                tensor = tensor.detach()
                identity = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
                if tensor.numel() and identity in seen:
                    copies[group][name] = seen[identity]
                    continue
                buffer = self._buffer(group, name, tensor)
                if tensor.is_cuda:
                    with torch.cuda.stream(stream):
                        buffer.copy_(tensor, non_blocking=True)
                else:
                    numpy.copyto(bytes_of(buffer), bytes_of(tensor))
                copies[group][name] = seen[identity] = buffer
        if stream is not None:
            stream.synchronize()
        return copies

    def _buffer(self, group: str, name: str, tensor: Tensor) -> Tensor:
        import torch

        buffer = self._buffers.get((group, name))
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._buffers[group, name] = buffer
        return buffer

    def _write(self, tensors: Groups, state: dict[str, Any], score: float | None, first: Any) -> None:
        began = time.perf_counter()
        if first is not None:
            first()
        try:
            save_checkpoint(self.folder / checkpoint_name(state["step"]), tensors, state, score)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            # Whoever waits for the save is in the midst of a step, and would take it for the step that does not fit.
            raise StageFailure(
                f"no memory to write the checkpoint of step {state['step']:,}; the one before stands: give this"
                " process more host memory and start again"
            ) from None
        prune(self.folder, self.retention, state["step"])
        self.written += time.perf_counter() - began


def _mark(tensors: Groups) -> Any:
    """Return an event after which the work already given to the GPU is done, or None when all is on the CPU."""
    import torch

    if not any(tensor.is_cuda for named in tensors.values() for tensor in named.values()):
        return None
    event = torch.cuda.Event()
    event.record()
    return event
