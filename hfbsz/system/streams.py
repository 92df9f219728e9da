"""Standard output and error that do not end the work: where their reader has gone, what is written is dropped."""

import errno
import io
import os
import sys
from collections.abc import Callable
from typing import Any

from hfbsz.errors import INTERRUPTED, complain, one_process

_GONE = (errno.EPIPE, errno.EIO)  # `| head` has ended; the terminal was closed
_FULL = (errno.ENOSPC, errno.EDQUOT)


class _Lasting(io.FileIO):
    """A file descriptor whose writes succeed: the first that finds no reader leads it to the null device for good, one
    that finds a full disk is dropped alone."""

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
    """Put such streams in place of stdout and stderr; characters that their encoding lacks are replaced."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper):  # none, or a notebook's
            continue
        raw = getattr(stream.buffer, "raw", stream.buffer)
        if type(raw) is not io.FileIO:  # a Windows console encodes for itself
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


def script(main: Callable[[list[str]], int]) -> int:
    """Run a script of one process with this process's arguments; returns its exit code."""
    make_lasting()
    one_process()
    try:
        return main(sys.argv[1:])
    except KeyboardInterrupt:
        return complain(["interrupted"], INTERRUPTED)
