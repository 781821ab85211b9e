"""How large the files behind http(s) addresses are, for `--plan`: servers are asked, and not waited for.

A plan waits a few seconds for all its sources together. Timeouts of the transport do not bound that: they hold for each
address of a host and each part of a request, and none holds for the resolution of a name, which may take a resolver
minutes without a network. So a daemon thread asks, and what it has not heard in time is left.
"""

import threading
import time
from pathlib import Path

from ..config.sources import SourceSettings
from ..stage import StageFailure, UserError
from ..stage.progress import size
from .base import Workbench
from .patience import TryAgain
from .transfer import Transfer

ANSWER_SECONDS = 5.0
"""How long a plan waits for answers, in all."""


class SizeQuestions:
    """The questions of one plan, which share its seconds."""

    def __init__(self) -> None:
        self._seconds = ANSWER_SECONDS

    def ask(self, settings: SourceSettings) -> str:
        """Say how many files the addresses of a source name and how large they are, as far as the servers tell in time.

        Each is asked once, for its first byte. The first failure ends the questions about a source: its next address is
        likely to cost as long a wait.
        """
        count = f"{len(settings.urls):,} file{'s' * (len(settings.urls) != 1)}"
        if self._seconds <= 0:
            return f"{count}, their sizes are unknown (not asked: {_waited()} for the sources before it)"
        import httpx  # noqa: F401  # not at the cost of the answers

        answers = _Answers(settings, self._seconds)
        started = time.monotonic()
        answers.start()
        answers.join(self._seconds)
        self._seconds -= time.monotonic() - started
        known, total, reason = answers.so_far()
        if known == len(settings.urls):
            return f"{count}, {size(total)} to download"
        told = f"{size(total)} in {known:,} of them" if known else "their sizes are unknown"
        return f"{count}, {told} ({reason or 'the servers tell no more'})"


class _Answers(threading.Thread):
    """Asks the addresses of one source in turn."""

    def __init__(self, settings: SourceSettings, seconds: float):
        super().__init__(daemon=True)
        self._settings, self._seconds = settings, seconds
        self._known, self._total, self._reason, self._asked = 0, 0, "", settings.urls[0].url
        self._defect: Exception | None = None
        self._lock = threading.Lock()

    def run(self) -> None:
        """Ask until all have answered, one fails, or the time is over."""
        quick = self._settings.model_copy(
            update={"timeout_seconds": min(self._seconds, self._settings.timeout_seconds)}
        )
        transfer = Transfer(quick, Workbench(Path()))
        end = time.monotonic() + self._seconds
        for file in self._settings.urls:
            if time.monotonic() > end:
                self._reason = _waited()
                return
            self._asked = file.url
            try:
                told = transfer.size_of(file.url)
            except (TryAgain, UserError, StageFailure) as error:
                self._reason = str(error) if file.url in str(error) else f"{file.url}: {error}"
                return
            except Exception as error:  # raised in the thread that waits
                self._defect = error
                return
            if told is not None:
                with self._lock:
                    self._known, self._total = self._known + 1, self._total + told

    def so_far(self) -> tuple[int, int, str]:
        """Files that told their size, their bytes, and why there are no more; raises what went wrong while asking."""
        if self._defect is not None:
            raise self._defect
        with self._lock:
            reason = self._reason or (f"{self._asked}: no answer, {_waited()}" if self.is_alive() else "")
            return self._known, self._total, reason


def _waited() -> str:
    return f"{ANSWER_SECONDS:g} s were over"
