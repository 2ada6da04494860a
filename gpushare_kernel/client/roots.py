"""Which process of a session's tree is the kernel itself, and what it weighed when it began.

The kernel leaves a mark in its environment. Children inherit it: they know that they are not the
kernel, and measure the session's memory from the same root and baseline. A kernel started inside a
kernel has a session of its own, so a mark of another session is not about it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from gpushare_kernel import procfs
from gpushare_kernel.core.values import SessionId

if TYPE_CHECKING:
    from gpushare_kernel.client.hostmem import HostMemory
    from gpushare_kernel.wire.messages import Again

VARIABLE = "GPUSHARE_ROOT"
SESSION = "GPUSHARE_SESSION"


class Root(NamedTuple):
    """The kernel's process of a session, and its private memory at the start in bytes."""

    session: str
    pid: int
    baseline: int


def claim() -> bool:
    """Mark this process as its session's kernel; False where another one is already."""
    root = find()
    if root is not None:
        return root.pid == os.getpid()
    pid = os.getpid()
    baseline = procfs.private_memory(pid) or 0
    os.environ[VARIABLE] = f"{os.environ.get(SESSION, '')}:{pid}:{baseline}"
    return True


def find() -> Root | None:
    """Return the root of the session this process belongs to, where it is marked and above us (or we are it)."""
    session, _, rest = os.environ.get(VARIABLE, "").rpartition(":")[0].rpartition(":")
    baseline = os.environ.get(VARIABLE, "").rpartition(":")[2]
    if session != os.environ.get(SESSION, "") or not (rest.isdigit() and baseline.isdigit()):
        return None
    root = Root(session, int(rest), int(baseline))
    return root if procfs.is_descendant(os.getpid(), root.pid) else None


def again(device: str) -> Again | None:
    """Return what tells a broker that has lost its ledger which session this process is, and on which device; None in a child of it."""
    from gpushare_kernel.wire.messages import Again  # noqa: PLC0415 - not in programs that a kernel starts

    root = find()
    if root is None or root.pid != os.getpid() or not root.session:
        return None
    name = os.path.basename(os.environ.get("JPY_SESSION_NAME") or "python")  # noqa: PTH119 - as `api.session_name`
    return Again(SessionId(root.session), name, root.baseline, device)


def session_memory() -> HostMemory:
    """Return what measures this process's session."""
    from gpushare_kernel.client.hostmem import HostMemory  # noqa: PLC0415 - not at kernel start

    root = find()
    return HostMemory() if root is None else HostMemory(root.pid, root.baseline)
