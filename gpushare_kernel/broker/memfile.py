"""The file behind an arena: a memfd that is populated in steps, gives memory back in parts, and cannot be made shorter."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os

from gpushare_kernel.broker.extents import Span

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
"""Nobody can shrink it (a mapping never meets SIGBUS), and nobody can add a seal against writing."""
_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_SECTOR = 512
_ZEROS = bytes(2**20)
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class MemFile:
    """One memfd. Its slow calls (`populate`, `punch`) release the GIL and map nothing: they are for a thread of their own."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("gpushare-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.fchmod(self.fd, 0o600)  # nobody opens it by a path in /proc: it is passed on
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _SEALS)
        except BaseException:
            os.close(self.fd)
            raise

    def reach(self, size: int) -> None:
        """Make it at least `size` bytes long; what is new is a hole."""
        if os.fstat(self.fd).st_size < size:
            os.ftruncate(self.fd, size)

    def resident(self) -> int:
        """Return the bytes of memory that are behind it."""
        return os.fstat(self.fd).st_blocks * _SECTOR

    def populate(self, span: Span) -> None:
        """Take memory for a hole, all zero. It is written to, not mapped: no page table, and no lock of our address space."""
        for start in range(span.start, span.end, len(_ZEROS)):
            done, most = 0, min(len(_ZEROS), span.end - start)
            while done < most:
                done += os.pwrite(self.fd, memoryview(_ZEROS)[done:most], start + done)

    def punch(self, span: Span) -> None:
        """Give the memory behind a span back to the machine; whoever maps it reads zeros there from now on."""
        mode = _PUNCH_HOLE | _KEEP_SIZE
        while _libc.fallocate(self.fd, mode, span.start, span.size):
            problem = ctypes.get_errno()
            if problem != errno.EINTR:
                raise OSError(problem, os.strerror(problem))

    def another(self) -> int:
        """Return a descriptor of its own for somebody else: flags that they set on it (O_APPEND) are not ours."""
        return os.open(f"/proc/self/fd/{self.fd}", os.O_RDWR | os.O_CLOEXEC)

    def close(self) -> None:
        """Let go of it; the memory stays while anybody else has it."""
        os.close(self.fd)
