"""Run a command that ends with its parent: python bound.py PARENT_PID COMMAND...

A parent that is killed outright cannot end its children, so on Linux the kernel is asked to. A program of its
own, and not a hook between fork and exec, because Python code there can hang once a process has threads.
Standard library only; elsewhere than on Linux the command just runs.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # The parent may have gone before the kernel was asked.
        if os.getppid() != parent:
            sys.exit(f"the parent process {parent} has gone")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
