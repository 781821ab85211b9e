"""The ways in which a stage ends early, and the exit code of each."""


class UserError(Exception):
    """Something the user can put right: the message says what, where and what to do. Exit code 2, no traceback."""


class StageFailure(Exception):
    """The work itself failed (an unbalanced ledger, a corpus that cleaning emptied, a diverged loss). Exit code 1."""


class WorkersLost(StageFailure):
    """Worker processes were killed: memory ran out, or a signal to the whole process group reached them too."""


class StageInterrupted(BaseException):
    """SIGINT or SIGTERM arrived and the unit in hand has been saved. Exit code 130 or 143.

    A BaseException, so that a library's `except Exception` cannot mistake a request to stop for a failed batch.
    """

    def __init__(self, signal_number: int):
        super().__init__(f"signal {signal_number}")
        self.signal_number = signal_number
