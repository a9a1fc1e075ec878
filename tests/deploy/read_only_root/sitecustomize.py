"""On PYTHONPATH of a process, this makes every folder but those in WRITABLE as read-only as a container's root."""

import errno
import os
import sys

_WRITABLE = tuple(os.path.realpath(it) + os.sep for it in os.environ["WRITABLE"].split(os.pathsep))
_LOG = os.path.realpath(os.environ["REFUSED"])
_CHANGES = {"os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.utime"}
_TO_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def _refuse(event: str, arguments: tuple[object, ...]) -> None:
    changes = event in _CHANGES or (event == "open" and bool(int(arguments[2]) & _TO_WRITE))  # type: ignore[call-overload]
    if not changes or not isinstance(arguments[0], str | bytes | os.PathLike):
        return
    path = os.path.realpath(os.fsdecode(arguments[0]))
    if path == _LOG:
        return
    if not path.startswith((*_WRITABLE, "/dev/", "/proc/")) and path + os.sep not in _WRITABLE:
        with os.fdopen(os.open(_LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "a") as log:
            log.write(f"{event} {path}\n")
        raise OSError(errno.EROFS, "read-only file system", path)


sys.addaudithook(_refuse)
