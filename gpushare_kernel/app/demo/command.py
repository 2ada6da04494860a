"""`jupyter gpushare demo`: set the stage, play, show, leave nothing."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from traitlets import Float, Unicode

import gpushare_kernel
from gpushare_kernel.app.base import Command, console
from gpushare_kernel.app.demo import view
from gpushare_kernel.app.demo.act import Act, DemoFailed
from gpushare_kernel.app.demo.history import History
from gpushare_kernel.app.demo.stage import Stage, staged
from gpushare_kernel.client.line import Line
from gpushare_kernel.core.errors import BadDeclaration
from gpushare_kernel.transport.places import Places

FIRST, LATER = ("digits.ipynb", "letters.ipynb"), "neighbours.ipynb"
_RATE = 0.25
_LIMIT = 300.0


class DemoApp(Command):
    """Plays the demo."""

    name = "jupyter-gpushare-demo"
    description = (
        "Run three notebooks at the same time in real kernels that share this machine's CPU as if it were a GPU. "
        "Takes under a minute, has a broker of its own, and leaves nothing behind."
    )
    capacity = Unicode("1GiB", config=True, help="Memory the notebooks share.")
    seconds = Float(
        None, allow_none=True, config=True, help="CPU seconds of each notebook, instead of its own."
    )
    notebooks = Unicode(None, allow_none=True, config=True, help="The folder of the notebooks.")
    output = Unicode(None, allow_none=True, config=True, help="Keep the executed notebooks here.")
    aliases = {  # noqa: RUF012  traitlets reads it from the class
        **Command.aliases,
        "capacity": "DemoApp.capacity",
        "seconds": "DemoApp.seconds",
        "notebooks": "DemoApp.notebooks",
        "output": "DemoApp.output",
    }

    def start(self) -> None:
        """Play, then show what came of it."""
        out = console()
        folder = _folder(self.notebooks)
        with staged(["--device", "host", "--capacity", self.capacity]) as stage:
            acts = [Act(folder / name, stage, self.seconds) for name in (*FIRST, LATER)]
            history = History()
            _announce(out, stage.places, self.capacity)
            try:
                _run(_play(acts, stage, history, out))
            except* DemoFailed as failures:
                _show_log(out, stage)
                raise failures.exceptions[0] from None
        for part in (view.figures(acts), view.lane_history(history, acts)):
            out.print()
            out.print(part)
        _keep(acts, self.output, out)


class _Loop(asyncio.SelectorEventLoop):
    """Leaves signals to us: nbclient would end one kernel at an interrupt, and call that a failure."""

    def add_signal_handler(self, *_: object) -> None:
        """Refuse, as loops outside the main thread do; nbclient expects that."""
        msg = "signals are the demo's own"
        raise RuntimeError(msg)


def _run(play: Coroutine[Any, Any, None]) -> None:
    """Run the play; an interrupt or a termination ends every kernel, then us."""
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        with asyncio.Runner(loop_factory=_Loop) as runner:
            runner.run(play)
    finally:
        signal.signal(signal.SIGTERM, before)


async def _play(acts: Sequence[Act], stage: Stage, history: History, out: Console) -> None:
    *first, later = acts
    shared = asyncio.Event()

    async def play_first(act: Act) -> None:
        await act.play()
        shared.set()

    async def play_later() -> None:
        # It comes once the others hold what they declared (or one is through already).
        await shared.wait()
        await later.play()

    async with asyncio.timeout(_LIMIT), asyncio.TaskGroup() as group:
        watching = group.create_task(_watch(acts, stage.places, history, out, shared))
        playing = [group.create_task(play_first(act)) for act in first]
        await asyncio.wait([*playing, group.create_task(play_later())])
        watching.cancel()


async def _watch(
    acts: Sequence[Act], where: Places, history: History, out: Console, shared: asyncio.Event
) -> None:
    began = time.monotonic()
    lines = view.Lines(out)
    live = Live(console=out, auto_refresh=False) if out.is_terminal else None

    def render() -> None:
        elapsed = time.monotonic() - began
        if live is not None:
            live.update(view.panel(acts, history, elapsed), refresh=True)
        else:
            lines.update(acts, elapsed)

    with Line(where) as line, live or contextlib.nullcontext():
        try:
            while True:
                snapshot = await asyncio.to_thread(line.snapshot)
                history.add(snapshot)
                members = sum(len(lane.members) for d in snapshot.devices for lane in d.lanes)
                if members >= len(FIRST):
                    shared.set()
                render()
                await asyncio.sleep(_RATE)
        finally:
            render()


def _announce(out: Console, where: Places, capacity: str) -> None:
    with Line(where) as line:
        devices = line.snapshot().devices
    names = ", ".join(device.name for device in devices)
    out.print(f"The device is the host's own processor: {names}. Nothing here is a GPU.")
    out.print(
        f"Of its memory the demo shares {capacity}, so that two notebooks fill it and the third, "
        "which comes later, has to wait."
    )


def _folder(named: str | None) -> Path:
    """Return the folder of the notebooks: named, of this checkout, or installed."""
    candidates = (
        [Path(named)]
        if named
        else [
            Path(gpushare_kernel.__file__).parents[1] / "examples",
            Path(sys.prefix) / "share" / "gpushare" / "examples",
        ]
    )
    for folder in candidates:
        if (folder / LATER).exists():
            return folder
    looked = ", ".join(map(str, candidates))
    msg = f"the demo needs the notebooks of examples/, which are not in {looked}. Name their folder: --notebooks DIR"
    raise BadDeclaration(msg)


def _show_log(out: Console, stage: Stage) -> None:
    for log in (stage.kernel_log, stage.places.log):
        if log.exists():
            out.print(f"{log.name}:", log.read_text(errors="replace")[-4000:], markup=False)


def _keep(acts: Sequence[Act], folder: str | None, out: Console) -> None:
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for act in acts:
            act.write(Path(folder))
        out.print(f"The executed notebooks are in {folder}.", markup=False)
