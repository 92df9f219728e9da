"""Standard output and error that never fail: if their reader is gone or the disk is full, output is dropped."""

import errno
import io
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from hfbsz.errors import INTERRUPTED, complain, ignore_rank, rank

_GONE = (errno.EPIPE, errno.EIO)  # the reader of the pipe has exited; the terminal was closed
_FULL = (errno.ENOSPC, errno.EDQUOT)


class _Lasting(io.FileIO):
    """A file whose writes always succeed.

    When its reader is gone, the file descriptor is redirected to the null device. When the disk is full, only that
    write is dropped.
    """

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as problem:
            if problem.errno in _GONE:
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self.fileno())
                os.close(null)
            elif problem.errno not in _FULL:
                raise
            return memoryview(data).nbytes


def make_lasting() -> None:
    """Replace stdout and stderr by streams that never fail; characters outside their encoding become `?`."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper):  # None, or the stream of a notebook
            continue
        raw = getattr(stream.buffer, "raw", stream.buffer)
        if type(raw) is not io.FileIO:  # a Windows console has its own encoder
            stream.reconfigure(errors="replace")
            continue
        stream.flush()
        buffer: Any = io.BufferedWriter(_Lasting(raw.fileno(), "wb", closefd=False))
        lasting = io.TextIOWrapper(
            buffer,
            encoding=stream.encoding,
            errors="replace",
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        setattr(sys, name, lasting)


def leave(code: int, at_once: bool = False) -> NoReturn:
    """Exit the process; a rank above 0 at once, since gloo's threads sometimes abort or hold up a regular exit. Rank 0
    has reported the result; `at_once`: rank 0 too."""
    if rank() > 0 or at_once:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def script(main: Callable[[list[str]], int], ranks: bool = False) -> int:
    """Run the main function of a command with the arguments of this process; returns its exit code. `ranks`: the
    command may be one of several processes of a launcher."""
    make_lasting()
    if not ranks:
        ignore_rank()
    try:
        return main(sys.argv[1:])
    except KeyboardInterrupt:
        return complain(["interrupted"], INTERRUPTED)
