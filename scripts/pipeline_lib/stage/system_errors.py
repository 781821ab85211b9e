"""What the operating system refused, in one line: a full disk, a size limit, a missing permission."""

import errno
import re

_FULL = r"No space left|os error 28|\d+ requested and \d+ written|Not enough free space to write"


def tells_of_a_full_disk(error: BaseException) -> bool:
    """Say whether a full disk is behind an error without an errno: numpy's short write, or a library's own words."""
    behind = [error, error.__cause__, error.__context__]
    return any(re.search(_FULL, str(one)) for one in behind if one)


def spell_system_error(error: OSError) -> str:
    """Say what the system refused."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or tells_of_a_full_disk(error):
        return (
            f"disk full while writing {error.filename or 'the outputs'}: free some space and start again;"
            " finished units are kept, nothing is half-written"
        )
    if error.errno == errno.EFBIG:
        return f"{error.filename or 'an output'} would pass the file size limit (ulimit -f): raise it and start again"
    what = f"{error.strerror}: {error.filename}" if error.strerror and error.filename else str(error)
    return f"the system refused ({what}); mend that and start again; finished units are kept"
