"""The registered magics: `%gpushare`, and `%%gpulane` for help, lists and stacked use."""

from __future__ import annotations

import difflib
import shlex
from typing import TYPE_CHECKING

from IPython.core.magic import Magics, cell_magic, line_magic, magics_class, no_var_expand

from gpushare_kernel.core.errors import NoBroker, UserError
from gpushare_kernel.core.sizes import parse_size
from gpushare_kernel.wire import parking_texts, texts
from gpushare_magics.completion import COMMANDS

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from gpushare_kernel.client.session import Session
    from gpushare_magics.extension import Extension


@magics_class
class GpuShareMagics(Magics):
    """The magics of one shell."""

    def __init__(self, shell: InteractiveShell, extension: Extension) -> None:
        super().__init__(shell)
        self._extension = extension

    @no_var_expand
    @cell_magic
    def gpulane(self, line: str, cell: str) -> object:
        """Run a cell on its share of the device: `%%gpulane 6GiB`.

        %%gpulane [SIZE] [-p SIZE] [-e SIZE] [--time T] [--weight W] [--name N] [--wait SECONDS] [--dry-run]

        SIZE is the most this notebook may hold while the cell runs: 512MiB, 2G, "1.5 GB", 25%.
        Without one the host's default is declared. If there is no room, the cell waits, says why,
        and moves on by itself; interrupt leaves the queue.

        -p, --persistent SIZE  instead of one size: what the notebook keeps in all ...
        -e, --ephemeral SIZE   ... and what the cell holds beyond that while it runs
        --time T               how long it takes with the device to itself: 90s, 5min, 1h30m
        --weight W             how this cell counts among your own work (1)
        --name N               what it is called in lists (the notebook's name)
        --wait SECONDS         wait that long at most; the cell has then not run
        --dry-run              say what would happen now, and run nothing

        --class RT --period 33ms --deadline 30ms [--model NAME --input NAME]
                               a model with a deadline: NAMEs are variables of the notebook, and the cell
                               has `pipe`, whose --weight says who goes first; without them the cell opens
                               one gpushare.realtime.Pipeline(model, example) itself

        --pack digits=t1,wine=t2 --ratio 1.6 [--bits 8] [--max-drop 0.03]
                               several models in one set of weight pages: t1 and t2 are variables of the
                               notebook, each a gpushare.nwv.Task or a torch module. They are packed first,
                               and the cell has `bundle`: bundle["digits"](x). What the bundle takes is what
                               the notebook keeps, unless SIZE or -p says otherwise. bundle.save(path) writes
                               it to a file, and bundle.packing is the report

        `gpushare.current_lane()` is the lane inside the cell.
        """
        from gpushare_magics.extension import plain_interrupt  # noqa: PLC0415
        from gpushare_magics.stacked import run  # noqa: PLC0415

        __tracebackhide__ = True  # an error of the body is the user's: our frames are not in it
        extension = self._extension
        if "--dry-run" in line.split():
            extension.dry_run(line)
            return None
        with plain_interrupt():
            entered = extension.entered(line)
        failed = True
        try:
            result = run(extension.shell, cell)
            failed = False
        finally:
            extension.leave(entered, failed=failed)
        return result

    @no_var_expand
    @line_magic
    def gpushare(self, line: str) -> None:
        """Look at what is shared, and at your part in it.

        %gpushare status              notebooks, what they hold, who waits
        %gpushare lanes               the device's memory in detail
        %gpushare live                all of it while it happens, with controls for your own notebooks
        %gpushare live --static       a picture of all of it, which stays in the notebook
        %gpushare needs               what your cells declare, what they take, and what to write instead
        %gpushare release [NOTEBOOK]  give back what a notebook of yours declared and does not use
        %gpushare pause NOTEBOOK      pause what another notebook of yours runs; it keeps its memory
        %gpushare resume NOTEBOOK     let it run again
        %gpushare park [NOTEBOOK]     set a notebook's GPU memory aside, with all that is in it; its next cell has it back
        %gpushare unpark [NOTEBOOK]   put it back now, or as soon as there is room
        %gpushare rescue [FILE]       while its memory is set aside: save its tensors to a file, without the GPU
        %gpushare memory              what holds its memory: variables, results, the last error, pools
        %gpushare memory --free       let go of what the last error's frames hold
        %gpushare memory SIZE         what it gets when its kernel starts next, where that is fixed then (JAX)
        %gpushare notify on|off       tab title and browser notification when a cell that waited over 30 s starts or ends;
                                      `on --after 5min` sets how long
        %gpushare debug on|off        keep the frames of a failed cell for %debug, with the memory they hold
        %gpushare off, %gpushare on   no messages and no cooperation here; the device stays shared
        %gpushare doctor              what this kernel finds, and what is amiss
        """
        from gpushare_magics.extension import plain_interrupt  # noqa: PLC0415

        words = _words(line) or ["status"]
        command, rest = words[0], words[1:]
        if command not in COMMANDS or (rest and command not in _WITH_WORDS):
            raise UserError(_unknown(" ".join(words) if command in COMMANDS else command))
        with plain_interrupt():
            self._run(command, " ".join(rest) or None)

    def _run(self, command: str, notebook: str | None) -> None:
        from gpushare_magics import tables  # noqa: PLC0415

        output, session = self._extension.output, self._extension.session
        if command in ("off", "on"):
            self._switch(on=command == "on")
        elif command == "debug":
            output.show(self._keep_frames(notebook))
        elif (
            command == "rescue"
        ):  # while something is set aside this does not come here: the gate saves it
            raise UserError(parking_texts.NOTHING_ASIDE)
        elif command == "doctor":
            output.show(tables.doctor(session))
        elif command == "live":
            self._live(notebook)
        elif command == "notify":
            self._extension.notify(notebook or "")
        elif session is None:
            output.show(texts.NO_BROKER)
        elif command == "needs":
            output.show(tables.needs(session.needs(), self._extension.first_lines))
        elif command == "memory":
            self._memory(session, notebook)
        elif command == "release":
            output.show(texts.released_text(session.release(notebook), session.noun))
        elif command in ("pause", "resume", "park", "unpark"):
            output.show(_by_hand(session, command, notebook))
        else:
            table = tables.status if command == "status" else tables.lanes
            output.show(table(session.snapshot()))

    def _memory(self, session: Session, words: str | None) -> None:
        """Show what holds this notebook's memory, free what an error holds, or have the broker remember a size."""
        from gpushare_magics import holding  # noqa: PLC0415

        output, shell = self._extension.output, self._extension.shell
        if words is None:
            report = holding.report(session, shell)
            output.table(holding.text(report), holding.html(report))
        elif words == "--free":
            output.show(holding.free(session))
        elif words.startswith("--"):
            msg = f"%gpushare memory has no option {words}. Did you mean --free?"
            raise UserError(msg)
        else:
            output.show(self._remember(session, words))

    def _live(self, word: str | None) -> None:
        """Show all of it while it happens; with `--static` as something that needs neither this kernel nor a network later."""
        output = self._extension.output
        if word not in (None, "--static"):
            raise UserError(_LIVE_OR_STATIC)
        if word is None and not output.in_console:
            self._live_view()
        elif self._picture() and word is None:
            output.show(texts.LIVE_STANDS_STILL)

    def _picture(self) -> bool:
        """Show how it is now; False where there is no broker. Like the live view it needs no session."""
        from gpushare_widgets import static  # noqa: PLC0415

        from gpushare_kernel.client.line import line_from_here  # noqa: PLC0415 - only where somebody looks

        output = self._extension.output
        try:
            with line_from_here() as line:
                record = static.of_snapshot(line.snapshot())
        except NoBroker:
            if self._extension.session is not None:
                raise
            output.show(texts.NO_BROKER)
            return False
        output.publish_bundle(record._repr_mimebundle_())
        return True

    def _live_view(self) -> None:
        """Show the widget; its packages are imported here and nowhere else."""
        from IPython.display import display  # noqa: PLC0415

        try:
            from gpushare_widgets.live import LiveView  # noqa: PLC0415
        except ModuleNotFoundError as problem:
            if problem.name not in _WIDGETS:
                raise
            raise UserError(_NO_WIDGETS) from None
        display(LiveView())  # type: ignore[no-untyped-call]

    def _remember(self, session: Session, size: str) -> str:
        """Have the broker remember what this notebook gets when its kernel starts next."""
        session.wait_attached()  # only then is it known whether there is a GPU
        gpu = session.gpu
        if gpu is None:
            raise UserError(_NOT_FIXED)
        if size == "default":
            session.set_needs(0)
            return texts.RESTART_DEFAULT
        wanted = parse_size(size, whole=gpu.capacity)
        session.set_needs(wanted)
        return texts.restart_memory_text(wanted, session.noun)

    def _keep_frames(self, word: str | None) -> str:
        if word not in ("on", "off"):
            raise UserError(_ON_OR_OFF)
        self._extension.keep_frames = word == "on"
        return texts.FRAMES_KEPT if word == "on" else texts.FRAMES_CLEARED

    def _switch(self, *, on: bool) -> None:
        extension = self._extension
        extension.output.quiet = not on
        session: Session | None = extension.session
        if session is not None:
            session.cooperate(on=on)
        extension.output.show(texts.SWITCHED_ON if on else texts.SWITCHED_OFF)


_WITH_WORDS = (
    "release",
    "pause",
    "resume",
    "park",
    "unpark",
    "rescue",
    "memory",
    "debug",
    "live",
    "notify",
)
IN_A_TERMINAL = (
    *("start", "stop", "top", "policy", "drain", "evict", "announce", "reload", "audit"),
    *("run", "hosts", "replay", "realtime", "demo", "broker", "install", "uninstall"),
)
"""What only `jupyter gpushare` has."""
_HELP = ("help", "-h", "--help")
_WIDGETS = ("anywidget", "ipywidgets")
_NO_WIDGETS = "the live view needs anywidget, which is not installed for this kernel. Install it: pip install anywidget, and restart the kernel. %gpushare live --static needs nothing."
_LIVE_OR_STATIC = (
    "say %gpushare live, or %gpushare live --static for a picture that stays in the notebook."
)
_NOT_FIXED = "memory is fixed at a kernel's start on a GPU only, and this notebook has none. Declare it: %%gpulane 6GiB."
_ON_OR_OFF = "say which: %gpushare debug on, or %gpushare debug off."


def _by_hand(session: Session, command: str, notebook: str | None) -> str:
    """Set the memory of a notebook aside, or have it back; pause or resume another notebook: this one runs this cell."""
    if command == "park":
        return parking_texts.parked_text(session.park(notebook))
    if command == "unpark":
        return parking_texts.unparked_text(session.unpark(notebook))
    if notebook is None:
        here = "; this one is interrupted instead" if command == "pause" else ""
        msg = f"say which notebook: %gpushare {command} hw2. %gpushare status lists them{here}."
        raise UserError(msg)
    if command == "pause":
        return texts.paused_text(session.pause(notebook))
    return texts.resumed_text(session.resume(notebook))


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError:
        return line.split()


def _unknown(command: str) -> str:
    if command in _HELP:
        return "%gpushare? shows the commands, and %%gpulane? shows the options."
    if command in IN_A_TERMINAL:
        return f"%gpushare does not know {command!r}. In a terminal: jupyter gpushare {command}"
    near = difflib.get_close_matches(command, COMMANDS, 1)
    hint = f"Did you mean %gpushare {near[0]}?" if near else f"It knows {', '.join(COMMANDS)}."
    return f"%gpushare does not know {command!r}. {hint}"
