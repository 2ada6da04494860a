"""The extension in a real shell in this process: cells, errors, tables; the broker is played."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable

import pytest
from gpushare_magics.completion import COMMANDS
from gpushare_magics.lines import Output, WaitingLine
from gpushare_magics.magics import IN_A_TERMINAL
from gpushare_magics.row import Row
from IPython.core.interactiveshell import ExecutionResult, InteractiveShell
from msgspec.structs import replace

from gpushare_kernel.app.main import GpuShareApp
from gpushare_kernel.client import api
from gpushare_kernel.client.session import Session
from gpushare_kernel.core.errors import UserError
from gpushare_kernel.core.values import GiB
from gpushare_kernel.wire import cell_texts, texts
from gpushare_kernel.wire.messages import (
    CellEnded,
    CellStarted,
    DryRun,
    End,
    GetSnapshot,
    Release,
    ReleasedNow,
    Slowed,
    SnapshotReply,
    Submit,
    ToBroker,
)
from gpushare_kernel.wire.snapshot import (
    BrokerView,
    DeviceView,
    LaneView,
    QueueView,
    SessionView,
    Snapshot,
    UserView,
)
from tests.client.scripted_broker import Peer, ScriptedBroker, obliging

Capture = pytest.CaptureFixture[str]

SNAPSHOT = Snapshot(
    schema=1,
    broker=BrokerView(pid=1, version="0.1.0", uptime=7200.0),
    devices=(
        DeviceView(
            id="host0",
            kind="host",
            name="2 cores",
            capacity=8 * GiB,
            reserve=0,
            persistent=5 * GiB,
            lanes=(LaneView(1, GiB, "j1", ("j1", "j2")),),
            free=2 * GiB,
        ),
    ),
    sessions=(
        SessionView("s2", "A.B.", None, None, "busy", "exclusive", None, 75.0, jobs=("j2",)),
        SessionView(
            "s1", "ann", "hw1.ipynb", 7, "idle", None, 5 * GiB, 12.0, own=True, jobs=("j1",)
        ),
    ),
    queue=(QueueView("j3", "s1", "memory", 1, 60.0, needs=6 * GiB, waited=5.0),),
)


def play(peer: Peer, frame: ToBroker) -> None:
    """Admit all; know a little about the rest."""
    if isinstance(frame.body, Submit) and frame.body.dry_run:
        peer.reply(frame.id, DryRun(fits=True, persistent=GiB, ephemeral=GiB, free=8 * GiB))
    elif isinstance(frame.body, GetSnapshot):
        peer.reply(frame.id, SnapshotReply(SNAPSHOT))
    elif isinstance(frame.body, Release):
        peer.reply(frame.id, ReleasedNow(GiB, (f"{frame.body.notebook}.ipynb",)))
    else:
        obliging(peer, frame)


@pytest.fixture
def attached(
    monkeypatch: pytest.MonkeyPatch, broker: ScriptedBroker, kernel_environment: dict[str, str]
) -> ScriptedBroker:
    """A session, and a broker that admits all."""
    for name, value in kernel_environment.items():
        monkeypatch.setenv(name, value)
    broker.serve(play)
    return broker


@pytest.fixture
def run(attached: ScriptedBroker, shell: InteractiveShell) -> Callable[..., ExecutionResult]:
    """Run cells in a shell of ours."""
    shell.run_line_magic("load_ext", "gpushare_magics")
    assert api._session is not None
    api._session.wait_attached(20)
    return shell.run_cell


@pytest.fixture
def run_alone(
    shell: InteractiveShell, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., ExecutionResult]:
    """Run cells in a shell without a broker."""
    monkeypatch.delenv("GPUSHARE_TOKEN", raising=False)
    shell.run_line_magic("load_ext", "gpushare_magics")
    return shell.run_cell


Run = Callable[..., ExecutionResult]


def settle() -> None:
    """Wait until the broker has read what was sent: a question is answered after it."""
    assert api._session is not None
    api._session.snapshot()


def said(broker: ScriptedBroker) -> list[str]:
    """Return what the client said, questions aside."""
    settle()
    return [type(m).__name__ for m in broker.seen if not isinstance(m, GetSnapshot)]


def test_declared_cell(run: Run, attached: ScriptedBroker, capsys: Capture) -> None:
    """One job, no plain cell; the line afterwards is ready to paste."""
    result = run("%%gpulane 6GiB\nx = 20\nx + 1")
    assert result.result == 21
    assert said(attached) == ["Submit", "End"]
    assert capsys.readouterr().out.splitlines()[-1] == "used 5.2 GiB; next time: %%gpulane 6GiB"


def test_plain_cell_prints_nothing(run: Run, attached: ScriptedBroker, capsys: Capture) -> None:
    """A plain cell is told to the broker, and the user is told nothing."""
    run("x = 1")
    assert said(attached) == ["CellStarted", "CellEnded"]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "cell", ["1/0", "x =", "raise KeyboardInterrupt", "import asyncio\nawait asyncio.sleep(0)\n1/0", "raise SystemExit"]
)  # fmt: skip
@pytest.mark.parametrize("magic", ["", "%%gpulane 1GiB\n"])
def test_every_end_is_an_end(
    run: Run, attached: ScriptedBroker, capsys: Capture, cell: str, magic: str
) -> None:
    """Whatever ends a cell, its plain cell or its job is over, and the next one is clean."""
    result = run(magic + cell)
    assert not result.success
    begun = [m for m in said(attached) if m in ("Submit", "CellStarted")]
    over = [m for m in said(attached) if m in ("End", "CellEnded")]
    assert len(begun) == len(over)
    if magic == "" or "x =" not in cell:
        assert len(begun) == 1
    assert run("%%gpulane 1GiB\n7").result == 7
    assert said(attached)[-2:] == ["Submit", "End"]


@pytest.mark.parametrize("where", [(Session, "apply_budget"), (WaitingLine, "done"), (Row, "run")])
@pytest.mark.parametrize("above", ["", "%%time\n"])
def test_an_interrupt_as_it_is_granted_leaks_no_lane(
    run: Run,
    attached: ScriptedBroker,
    monkeypatch: pytest.MonkeyPatch,
    where: tuple[type, str],
    above: str,
) -> None:
    """Between the grant and its first line a cell may be interrupted anywhere: it has not run, and its job is over."""
    kind, method = where

    with monkeypatch.context() as once:

        def interrupted(*_: object) -> None:
            once.undo()
            raise KeyboardInterrupt

        once.setattr(kind, method, interrupted)
        run(f"{above}%%gpulane 1GiB\nran = 1")
    assert [m for m in said(attached) if m in ("Submit", "End")] == ["Submit", "End"]
    assert isinstance(run("ran").error_in_exec, NameError)
    assert run("%%gpulane 1GiB\n7").result == 7
    assert said(attached)[-2:] == ["Submit", "End"]


def test_traceback_has_no_frames_of_ours(run: Run, capsys: Capture) -> None:
    """An error in the cell points at the user's own line, with its right number."""
    run("# above\n%%gpulane 1GiB\n\ndef f():\n    return 1/0\nf()")
    shown = capsys.readouterr().out
    assert "line 5, in f()" in shown
    assert "line 6" in shown
    run("%%gpulane 1GiB\n1/0")
    shown = capsys.readouterr().out
    assert "      1 %%gpulane 1GiB\n----> 2 1/0\n" in shown
    assert "__import__" not in shown
    assert "gpushare_kernel" not in shown
    assert "extension.py" not in shown


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("%%gpulane --help", "%%gpulane? shows the options."),
        ("%%gpulane 2", "size '2' has no unit. Write 2GiB or 2MiB."),
        ("%%gpulane 1,5GB", "size '1,5GB' has a comma. Write 1.5GB."),
        ("%%gpulane -5GiB", "size '-5GiB' is negative. Write one such as 512MiB."),
        ("%%gpulane nan", "'nan' is not a size. Write a number with a unit: 512MiB, 2G, 1.5 GB or 25%."),
        ("%%gpulane 0GiB", "size '0GiB' is zero. Leave it out, or write one such as 512MiB."),
        ("%%gpulane 999999TiB", "size '999999TiB' is over 1024 TiB. Did you mean a smaller unit?"),
        ("%%gpulane 101%", "size '101%' must be over 0% and at most 100% of the device."),
        ("%%gpulane 1GiB -p 1GiB", "one size and its parts exclude each other. Give the size (6GiB), or -p and -e."),
        ("%%gpulane --weight nan", "a weight must be between 0.01 and 100, and nan is not. 1 is everybody's; 2 counts twice among your own work."),
        ("%%gpulane 1GiB --time -5min", "time '-5min' is negative. Write one such as 5min."),
        ("%%gpulane 1GiB --time 0", "time '0' must be over 0 seconds. Leave it out, or write one such as 5min."),
        ("%%gpulane --wait -1", "the time to wait must be 0 seconds or more, not -1. Leave it out to wait without limit."),
    ],
)  # fmt: skip
def test_nonsense_does_not_run(
    run: Run, attached: ScriptedBroker, capsys: Capture, line: str, words: str
) -> None:
    """A declaration that makes no sense is one line, and the cell has not run."""
    result = run(f"{line}\nprint('ran')")
    assert not result.success
    assert capsys.readouterr().out == f"gpushare: {words}\n"
    assert said(attached) == []


def test_sizes_go_out(run: Run, attached: ScriptedBroker) -> None:
    """Percentages are of the device; without a size the broker decides."""
    for line in ("25%", "6 GiB", "", "-p 2GiB -e 1GiB --weight 2 --name job"):
        run(f"%%gpulane {line}\n1")
    settle()
    submits = [m for m in attached.seen if isinstance(m, Submit)]
    assert [s.size for s in submits] == [2 * GiB, 6 * GiB, None, None]
    assert [s.name for s in submits] == ["hw1.ipynb"] * 3 + ["job"]
    assert (submits[3].persistent, submits[3].ephemeral, submits[3].weight) == (2 * GiB, GiB, 2.0)


def test_cell_that_asks_for_its_lane_is_cooperative(run: Run, attached: ScriptedBroker) -> None:
    """`current_lane()` in the cell is the lane of the cell; only such a cell has boundaries."""
    run("%%gpulane 1GiB\nimport gpushare_kernel as g\nlane = g.current_lane()\nlane.step()")
    result = run("%%gpulane 1GiB\nlane.open")
    assert result.result is False
    settle()
    assert [m.cooperative for m in attached.seen if isinstance(m, Submit)] == [True, False]
    assert [m.boundaries for m in attached.seen if isinstance(m, End)] == [1, 0]


def test_stacked_magics(run: Run, attached: ScriptedBroker, capsys: Capture) -> None:
    """Above and below other magics %%gpulane is one job, ended before the cell is."""
    for between in ("", "\n", " \n\n"):
        before = len(said(attached))
        assert run(f"%%gpulane 1GiB\n{between}%%time\n40 + 2").result == 42
        assert said(attached)[before:] == ["Submit", "End"]
    attached._peers[0].seen.clear()
    assert run("%%time\n%%gpulane 1GiB\n40 + 3").result == 43
    assert said(attached) == ["CellStarted", "Submit", "End", "CellEnded"]
    assert run("%%capture seen\n%%gpulane 1GiB\nprint('inside')").success
    assert said(attached)[4:] == ["CellStarted", "Submit", "End", "CellEnded"]


def test_stacked_error_comes_out(run: Run, attached: ScriptedBroker, capsys: Capture) -> None:
    """An error under two magics is the user's, and the job is over."""
    assert isinstance(run("%%gpulane 1GiB\n%%time\n1/0").error_in_exec, ZeroDivisionError)
    shown = capsys.readouterr().out
    assert "ZeroDivisionError" in shown
    assert "gpushare_magics" not in shown, "frames of ours are not the user's business"
    assert said(attached) == ["Submit", "End"]


def test_called_as_a_magic(run: Run, shell: InteractiveShell, attached: ScriptedBroker) -> None:
    """`run_cell_magic` from code runs the body in the user's namespace."""
    run("get_ipython().run_cell_magic('gpulane', '1GiB', 'made = 5')")
    assert shell.user_ns["made"] == 5
    assert said(attached) == ["CellStarted", "Submit", "End", "CellEnded"]


def test_nested_and_empty_cells(run: Run, attached: ScriptedBroker) -> None:
    """A cell that runs cells is one cell; an empty cell is none."""
    run("get_ipython().run_cell('y = 1'); get_ipython().run_cell(''); get_ipython().run_cell('1+')")
    run("   ")
    assert said(attached) == ["CellStarted", "CellEnded"]


def test_silent_execution_leaves_too(run: Run, attached: ScriptedBroker) -> None:
    """A silent execution has no cell events; its lane is left all the same."""
    run("%%gpulane 1GiB\n1", silent=True)
    assert said(attached) == ["Submit", "End"]


def test_cells_in_threads(run: Run, attached: ScriptedBroker) -> None:
    """Subshells run cells at the same time: each leaves its own lane."""
    both = threading.Barrier(2)
    cell = "%%gpulane 1GiB --name {0}\nboth.wait(20)\nseen[{0}] = __import__('gpushare_kernel').current_lane().name"
    seen: dict[int, str] = {}
    InteractiveShell.instance().push({"both": both, "seen": seen})
    shell = InteractiveShell.instance()
    extension_cells = _cells()
    infos = [_Info(cell.format(n)) for n in range(2)]

    def subshell(info: _Info) -> None:
        extension_cells.pre_run_cell(info)
        exec(shell.transform_cell(info.raw_cell), shell.user_ns)
        extension_cells.post_run_cell(_Result(info))

    threads = [threading.Thread(target=subshell, args=(info,)) for info in infos]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert seen == {0: "0", 1: "1"}
    assert sorted(said(attached)) == ["End", "End", "Submit", "Submit"]
    assert not extension_cells.running


class _Info:
    def __init__(self, raw_cell: str) -> None:
        self.raw_cell = raw_cell


class _Result:
    error_in_exec: BaseException | None = None
    error_before_exec: BaseException | None = None

    def __init__(self, info: _Info) -> None:
        self.info = info


def _cells() -> object:
    from gpushare_magics import extension

    return extension.active().cells


def test_dry_run(run: Run, attached: ScriptedBroker, capsys: Capture) -> None:
    """--dry-run says what would happen, and the cell does not run."""
    assert run("%%gpulane 2GiB --dry-run\nprint('ran')").success
    assert capsys.readouterr().out == (
        "It would run at once: needs 2.0 GiB of memory (1.0 GiB to keep, 1.0 GiB while it runs), 8.0 free.\n"
    )
    assert said(attached) == ["Submit"]


def test_status(run: Run, capsys: Capture) -> None:
    """Own notebooks first; what others hide stays hidden."""
    run("%gpushare status")
    assert capsys.readouterr().out == (
        "2 cores (host0): 8.0 GiB of memory, 2.0 GiB free\n"
        "\n"
        "notebook   state           keeps    device time\n"
        "hw1.ipynb  idle            5.0 GiB  12 s\n"
        "(of A.B.)  busy, in turns  -        1 min\n"
        "\n"
        "waiting    for     needs    ahead  since  about\n"
        "hw1.ipynb  memory  6.0 GiB  1      5 s    1 min to go\n"
    )


def test_lanes_and_release(run: Run, capsys: Capture) -> None:
    """The device's memory in detail, by the names of notebooks, and giving some back."""
    run("%gpushare lanes")
    assert capsys.readouterr().out == (
        "2 cores (host0): 8.0 GiB of memory, 2.0 GiB free\n"
        "kept 5.0 GiB, reserved 0 B\n"
        "lane  size     in use by  members\n"
        "1     1.0 GiB  hw1.ipynb  hw1.ipynb, (of A.B.)\n"
    )
    run("%gpushare live --static")
    out = capsys.readouterr().out
    assert out.startswith("2 cores (host0): shares 8.0 GiB of memory, 2.0 GiB free, policy fair\n[")
    assert "As of 20" in out
    run("%gpushare release hw2")
    assert capsys.readouterr().out == "Released 1.0 GiB of memory: hw2.ipynb.\n"


def test_pause_and_resume_need_another_notebook(run: Run, capsys: Capture) -> None:
    """This one runs the cell that asks."""
    for command in ("pause", "resume"):
        assert not run(f"%gpushare {command}").success
        out = capsys.readouterr().out
        assert f"say which notebook: %gpushare {command} hw2." in out
        assert ("this one is interrupted instead" in out) is (command == "pause")


def test_live_without_anywidget(run: Run, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line says what to install, and what does without."""
    monkeypatch.setattr(Output, "in_console", False)
    monkeypatch.setitem(sys.modules, "anywidget", None)
    monkeypatch.delitem(sys.modules, "gpushare_widgets.live", raising=False)
    assert not run("%gpushare live").success
    out = capsys.readouterr().out
    assert "the live view needs anywidget, which is not installed for this kernel." in out
    assert "pip install anywidget" in out
    assert not run("%gpushare live now").success
    assert "say %gpushare live, or %gpushare live --static" in capsys.readouterr().out


def test_live_in_a_terminal(run: Run, capsys: Capture) -> None:
    """The picture, and that it will not change; nobody is promised a notification that cannot be shown."""
    run("%gpushare live")
    out = capsys.readouterr().out
    assert out.startswith("2 cores (host0): shares 8.0 GiB of memory")
    assert out.splitlines()[-1] == texts.LIVE_STANDS_STILL
    assert not run("%gpushare notify on").success
    assert cell_texts.NOBODY_TO_NOTIFY in capsys.readouterr().out


@pytest.mark.parametrize("command", ["live", "live --static"])
def test_live_needs_no_session(
    attached: ScriptedBroker,
    run_alone: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
    command: str,
) -> None:
    """A plain IPython beside the broker sees what goes on; where there is none, that is said."""
    assert api._session is None
    run_alone(f"%gpushare {command}")
    assert capsys.readouterr().out.startswith("2 cores (host0): shares 8.0 GiB of memory")
    monkeypatch.setenv("GPUSHARE_SOCKET", f"{attached.path.parent}/gone/broker.sock")
    run_alone(f"%gpushare {command}")
    assert capsys.readouterr().out == f"{texts.NO_BROKER}\n"


def test_notify_says_what_it_needs(
    run: Run, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without anywidget, and where it is not understood, one line says what to do."""
    monkeypatch.setattr(Output, "in_console", False)
    monkeypatch.setitem(sys.modules, "anywidget", None)
    monkeypatch.delitem(sys.modules, "gpushare_widgets.notify", raising=False)
    assert not run("%gpushare notify on").success
    assert "notifications need anywidget" in capsys.readouterr().out
    for line, words in (
        ("notify", "say %gpushare notify on"),
        ("notify maybe", "say %gpushare notify on"),
        ("notify on --after -3", "time '-3' is negative"),
    ):
        assert not run(f"%gpushare {line}").success
        assert words in capsys.readouterr().out
    assert run("%gpushare notify off").success
    assert capsys.readouterr().out.startswith("Nobody is told")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("stats", "%gpushare does not know 'stats'. Did you mean %gpushare status?"),
        ("xyzzy", "%gpushare does not know 'xyzzy'. It knows status, lanes, live, needs, release, pause, resume, park, unpark, rescue, memory, notify, debug, off, on, doctor."),
        ("policy", "%gpushare does not know 'policy'. In a terminal: jupyter gpushare policy"),
        ("policy srtf", "%gpushare does not know 'policy'. In a terminal: jupyter gpushare policy"),
        ("drain now", "%gpushare does not know 'drain'. In a terminal: jupyter gpushare drain"),
        ("help", "gpushare: %gpushare? shows the commands, and %%gpulane? shows the options."),
        ("--help", "gpushare: %gpushare? shows the commands, and %%gpulane? shows the options."),
        ("memory --fre", "%gpushare memory has no option --fre. Did you mean --free?"),
        ("status now", "%gpushare does not know 'status now'. Did you mean %gpushare status?"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("attached")
def test_mistyped_command(run: Run, capsys: Capture, command: str, words: str) -> None:
    """A command that is none is answered with the nearest one."""
    assert not run(f"%gpushare {command}").success
    assert words in capsys.readouterr().out


def test_every_command_is_known_here_or_in_a_terminal() -> None:
    """Whoever types one that only terminals have is sent there."""
    assert {*COMMANDS, *IN_A_TERMINAL} >= {*GpuShareApp().subcommands}
    assert not {*COMMANDS} & {*IN_A_TERMINAL}


def test_off_is_silent_and_shares_on(run: Run, attached: ScriptedBroker, capsys: Capture) -> None:
    """After `off` nothing is said and no boundary is met, but what is declared still is."""
    run("%gpushare off")
    capsys.readouterr()
    run("%%gpulane 1GiB\nimport gpushare_kernel as g\ng.current_lane().step()\nNone")
    assert capsys.readouterr().out == ""
    settle()
    (submit,) = [m for m in attached.seen if isinstance(m, Submit)]
    assert not submit.cooperative
    run("%gpushare on")
    assert capsys.readouterr().out == f"{texts.SWITCHED_ON}\n"
    run("%%gpulane 1GiB\nNone")
    assert capsys.readouterr().out.startswith("used")


def test_slowed_cell_says_so(
    run: Run, attached: ScriptedBroker, shell: InteractiveShell, capsys: Capture
) -> None:
    """While a cell runs it is told that it shares; between cells nothing is printed."""
    heard = threading.Event()
    assert api._session is not None
    api._session.listen(lambda _: heard.set())
    (peer,) = attached._peers
    shell.push({"tell": lambda: (peer.notice(Slowed(people=3, fraction=0.25)), heard.wait(20))})
    run("_ = tell()")
    assert capsys.readouterr().out == "Shared with 3 people: about 1/4 speed\n"
    heard.clear()
    peer.notice(Slowed(people=3, fraction=0.25))
    assert heard.wait(20)
    assert capsys.readouterr().out == ""


def test_without_a_broker(run_alone: Run, capsys: Capture) -> None:
    """In a plain kernel the cell runs as it is, after one line; nonsense is refused all the same."""
    assert run_alone("%%gpulane 25%\n6 * 7").result == 42
    assert capsys.readouterr().out.splitlines()[0] == texts.NO_BROKER
    assert not run_alone("%%gpulane 2\n1").success
    run_alone("%gpushare status")
    assert texts.NO_BROKER in capsys.readouterr().out


def test_doctor(run: Run, run_doctor_lines: Callable[[], list[str]]) -> None:
    """The doctor names what it found, one line a check."""
    names = [line[:14].strip() for line in run_doctor_lines()]
    assert names == ["gpushare", "startup file", "session", "socket", "broker", "device", "memory here"]  # fmt: skip


def test_doctor_says_the_limits_of_ones_group(
    run_doctor_lines: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One's own, of all accounts that an administrator sees."""
    users = (UserView("bob", 1.0, 0.0, "g", kernels=9), UserView("ann", 1.0, 0.0, "g", parked=GiB, own=True))  # fmt: skip
    monkeypatch.setattr(sys.modules[__name__], "SNAPSHOT", replace(SNAPSHOT, users=users))
    assert run_doctor_lines()[-1] == "your limits   ann (g): 1.0 GiB set aside at most."


@pytest.fixture
def run_doctor_lines(run: Run, capsys: Capture) -> Callable[[], list[str]]:
    """Run the doctor and return its lines."""

    def lines() -> list[str]:
        capsys.readouterr()
        run("%gpushare doctor")
        return capsys.readouterr().out.splitlines()

    return lines


def test_unload_takes_everything_back(run: Run, shell: InteractiveShell, capsys: Capture) -> None:
    """After unloading the shell is as it was, and a rewritten cell that is run again says why it fails."""
    shell.run_line_magic("unload_ext", "gpushare_magics")
    assert shell.find_cell_magic("gpulane") is None
    assert shell.find_line_magic("gpushare") is None
    assert not [f for f in shell.input_transformers_cleanup if "gpushare" in str(f.__module__)]
    result = run("__import__('gpushare_magics').enter('1GiB')")
    assert isinstance(result.error_in_exec, UserError)
    run("%load_ext gpushare_magics")
    assert run("%%gpulane 1GiB\n3").result == 3


def test_help_and_lists_know_the_magic(run: Run, shell: InteractiveShell) -> None:
    """The magic is listed, and its help shows the options."""
    assert "gpulane" in shell.magics_manager.lsmagic()["cell"]
    assert "--wait SECONDS" in shell.find_cell_magic("gpulane").__doc__


def test_cell_events_have_their_numbers(run: Run, attached: ScriptedBroker) -> None:
    """The end of a plain cell carries the number of its start."""
    run("1")
    run("2")
    settle()
    started = [m.cell for m in attached.seen if isinstance(m, CellStarted)]
    ended = [m.cell for m in attached.seen if isinstance(m, CellEnded)]
    assert started == ended
    assert len(set(started)) == 2


@pytest.mark.parametrize("kind", ["DeviceError", "BrokerUnavailable", "InternalError", "BadSize"])
def test_no_error_of_ours_shows_our_frames(kind: str, shell: InteractiveShell, capsys: Capture) -> None:  # fmt: skip
    """Also out of a plain cell, where nothing of ours catches it."""
    shell.run_cell(f"from gpushare_kernel.core import errors\nraise errors.{kind}('the GPU is gone. Restart the kernel.')")  # fmt: skip
    shown = capsys.readouterr()
    assert (shown.out + shown.err).strip() == "gpushare: the GPU is gone. Restart the kernel."
