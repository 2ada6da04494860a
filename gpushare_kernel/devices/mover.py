"""One process's device memory: moved out by the driver's checkpoint, and back by its restore. docs/parking.md has the rules.

Both take seconds, by size. A target whose caller is killed in the middle goes on by itself, and nobody else is answered
until it has ended: the worker is on record as moving, nobody ends it, and where it does not answer in time it is left to finish.
"""

from __future__ import annotations

from typing import NamedTuple

from gpushare_kernel import procfs
from gpushare_kernel.core.values import MiB, MoveStatus, PauseStatus
from gpushare_kernel.devices import answers
from gpushare_kernel.devices.answers import ProcessState, Reply
from gpushare_kernel.devices.base import Hold
from gpushare_kernel.devices.lock_link import WorkerLost
from gpushare_kernel.devices.locker import Locker
from gpushare_kernel.devices.move_limits import back_limit, out_limit

_FAREWELL = 1.0


class Move(NamedTuple):
    """What came of moving one process, and why it did not come about."""

    status: MoveStatus
    why: str = ""


class Mover(Locker):
    """A locker that can also park its process and restore it; one call at a time."""

    async def checkpoint(self, size: int) -> Move:
        """Park it, which is locked: `size` bytes of the device's memory go into its own.

        On record as parked from before the driver is asked: whoever comes after us neither unlocks nor forgets it (K4).
        Where nobody can tell what came of it, it counts as parked: then a restore finds out.
        """
        size = max(MiB, -(-size // MiB) * MiB)  # as the record keeps it; no park is of nothing
        self._intents.change(self.key, Hold.PARK, size)
        self.parked, self.unsure = size, True
        move = await self._move("checkpoint", out_limit(size))
        if isinstance(move, Move):
            return move
        return Move(MoveStatus.DONE) if self._takes_in(move) else self._not_parked(move)

    async def restore(self) -> Move:
        """Put it back; it stays locked. Whoever asks has seen that there is room: where there is none it is lost (K1)."""
        if self.parked is None:
            return Move(MoveStatus.DONE)
        self.unsure = True
        move = await self._move("restore", back_limit(self.parked))
        if isinstance(move, Move):
            return move
        if move.answer == answers.GONE or not procfs.alive(self.key):
            self.forget()
            return Move(MoveStatus.GONE)
        if move.state in {ProcessState.LOCKED, ProcessState.RUNNING, ProcessState.NONE}:
            self._takes_in(move)
            return Move(MoveStatus.DONE)
        return self._is_lost(move.answer)

    def _is_lost(self, answer: str) -> Move:
        self.forget()  # nobody can undo this
        return Move(
            MoveStatus.LOST,
            f"the driver could not put back the GPU memory of process {self.key.pid} ({answer}) and answers it no more: "
            "what was on the GPU is lost. Its CPU side runs: save what is there, then restart the kernel.",
        )

    async def _move(self, request: str, limit: float) -> Reply | Move:
        """Ask a worker, once: a move is not tried again by itself."""
        asked = False
        try:
            if self._link is None:
                self._link = self._crew.take(self.key)
            await self._link.ready()
            self._link.check()
            self._crew.moves(self._link)
            asked = True
            reply = await self._link.ask(request, self.key, limit=limit)
        except WorkerLost as lost:
            self.trouble = str(lost)
            link = self._link
            self._drop()
            if link is not None:
                await link.gone(_FAREWELL)  # before another one is asked
            return await self._lost(lost, request, asked=asked)
        except TimeoutError:
            self._leave()
            why = f"the driver has not ended a {request} of process {self.key.pid} in {limit:.0f} s; its worker is left to it. Nothing is asked of this process until it has ended."
            return Move(MoveStatus.NOT_NOW, why)
        except BaseException:  # the caller was cancelled
            self._leave()
            raise
        self._crew.moved(self._link)
        return reply

    async def _lost(self, lost: WorkerLost, request: str, *, asked: bool) -> Reply | Move:
        """A worker was lost: before it asked nothing has changed; after that, another one asks how the process stands."""
        why = f"the lock worker that was to {request} process {self.key.pid} was lost ({lost}). It is tried again when it is wanted again."
        if not asked:
            if request == "checkpoint":
                self._stands(ProcessState.LOCKED)
            else:
                self.unsure = False
            return Move(MoveStatus.NOT_NOW, why)
        found = await self.find_parked()
        if found is PauseStatus.PAUSED:
            done = request == "checkpoint"
            return Move(MoveStatus.DONE) if done else Move(MoveStatus.NOT_NOW, why)
        if self.failed:
            return self._is_lost(str(ProcessState.FAILED))
        if found is None and request == "restore":
            return Move(MoveStatus.DONE)  # it is locked, or runs
        return Move(MoveStatus.NOT_NOW, why)

    def _takes_in(self, reply: Reply) -> bool:
        """Note how it stands; tell whether it is parked."""
        if reply.answer == answers.GONE or not procfs.alive(self.key):
            self.forget()
        else:
            self._stands(reply.state)
        return self.parked is not None

    def _not_parked(self, reply: Reply) -> Move:
        """The driver would not park it: it is locked still, or runs, or is gone."""
        if reply.answer == answers.GONE or not procfs.alive(self.key):
            return Move(MoveStatus.GONE)
        what = f"the driver did not park process {self.key.pid} ({reply.answer})"
        if reply.state is ProcessState.FAILED:
            return Move(MoveStatus.LOST, f"{what} and answers it no more. Restart the kernel.")
        if reply.answer in {answers.NOT_SUPPORTED, answers.OPERATING_SYSTEM}:
            why = f"{what}: managed memory, IPC or a profiler are in its way, or it is somebody else's. It keeps its GPU memory."
            return Move(MoveStatus.UNABLE, why)
        return Move(MoveStatus.NOT_NOW, f"{what}. It keeps its GPU memory.")
