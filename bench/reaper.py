"""Run a server, and be the parent of those of its processes whose own parents have gone.

Otherwise they would stay as zombies until the benchmark ends: init(8) is not there to wait for
them, since the benchmark has made itself the parent (`bench.processes`). Exim leaves one for each
message.

    python -m bench.reaper COMMAND...
"""

import ctypes
import os
import sys

SET_CHILD_SUBREAPER = 36  # prctl(2)


def main(command: list[str]) -> int:
    """Wait for all; the exit code is that of the command."""
    ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    first = os.spawnvp(os.P_NOWAIT, command[0], command)
    while True:
        pid, status = os.wait()
        if pid == first:
            return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
