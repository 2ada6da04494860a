"""The provisioner against real kernels and a scripted broker."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import zmq.asyncio
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning import KernelProvisionerFactory

from gpushare_kernel import kernel_session, procfs
from gpushare_kernel.client import start
from gpushare_kernel.core.errors import NoBroker, Refused
from gpushare_kernel.transport.channel import connect
from gpushare_kernel.wire.messages import Bind, Close, Exempt, Failure, Ok, Open, Opened, Restart
from tests.procs import eventually

PATIENCE = 30


def usual(body):
    """Answer as a broker does that has no objections."""
    return Opened("s-1", "token-1") if isinstance(body, Open) else Ok()


@pytest.fixture(autouse=True)
def _ours_by_default(monkeypatch):
    monkeypatch.setenv("JUPYTER_DEFAULT_PROVISIONER_NAME", "gpushare")
    KernelProvisionerFactory.clear_instance()
    yield
    KernelProvisionerFactory.clear_instance()


@pytest.fixture
def never_starts(monkeypatch):
    """Finding a broker works; starting one is noted and does not happen."""
    calls = []
    called = threading.Event()

    def ensure(places, timeout=10, args=()):
        try:
            connect(places.socket, timeout).close()
        except NoBroker:
            calls.append(places)
            called.set()
            raise

    monkeypatch.setattr("gpushare_kernel.provisioner.start_again", ensure)
    monkeypatch.setattr("gpushare_kernel.kernel_session.start_again", ensure)
    return calls, called


def managed(**kwargs) -> AsyncKernelManager:
    return AsyncKernelManager(kernel_name="python3", **kwargs)


async def run_cell(manager, code: str) -> str:
    """Run `code` in the kernel and return what it printed."""
    client = manager.client()
    client.start_channels()
    printed = []

    def keep(message):
        if message["msg_type"] == "stream":
            printed.append(message["content"]["text"])

    try:
        await client.wait_for_ready(timeout=PATIENCE)
        reply = await client.execute_interactive(code, timeout=PATIENCE, output_hook=keep)
        assert reply["content"]["status"] == "ok", reply["content"]
    finally:
        client.stop_channels()
    return "".join(printed)


async def shows(client, request: str, text: str) -> None:
    """Wait until the cell `request` has printed `text`; a kernel that starts logs to the same stream."""
    while True:
        message = await client.get_iopub_msg(timeout=PATIENCE)
        ours = message["parent_header"].get("msg_id") == request
        if ours and message["msg_type"] == "stream" and text in message["content"]["text"]:
            return


def started(test, **kwargs):
    """Run `test(manager)` with a started kernel, and end the kernel."""

    async def body():
        manager = managed(**kwargs)
        await manager.start_kernel()
        try:
            return await test(manager)
        finally:
            await manager.shutdown_kernel(now=True)

    return asyncio.run(body())


def run_python(code: str) -> None:
    """Run `code` in a process of its own; it must end well and complain of nothing."""
    done = subprocess.run(
        [sys.executable, "-c", code], timeout=PATIENCE, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def open_descriptors() -> set[str]:
    links = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            links.add(f"{entry.name} {entry.readlink()}")
        except FileNotFoundError:
            continue
    return {link for link in links if "gpushare-words" in link}


def test_a_kernel_gets_its_session_and_the_broker_its_process(broker):
    """Open before the launch, Bind with the kernel's own pidfd after it, Close at its end; the page is closed with it."""
    before = open_descriptors()

    async def test(manager):
        names = "TOKEN", "SESSION", "SOCKET"
        asked = ", ".join(f"os.environ['GPUSHARE_{name}']" for name in names)
        printed = await run_cell(manager, f"import os; print({asked})")
        assert printed.split() == ["token-1", "s-1", str(broker.path)]
        assert len(open_descriptors() - before) == 1
        return manager.provisioner.pid

    pid = started(test)
    assert broker.kinds()[:2] == ["Open", "Bind"]
    assert broker.kinds()[-1] == "Close"
    (bind,) = [asked for asked in broker.asked if isinstance(asked.body, Bind)]
    assert bind.pid == pid
    assert broker.bodies(Close) == [Close("s-1", "token-1")]
    assert open_descriptors() == before


def test_a_kernels_environment_names_its_device(broker):
    """Where the provisioner's own setting does not."""

    async def body():
        manager = managed()
        await manager.start_kernel(env={**os.environ, "GPUSHARE_DEVICE": "1"})
        await manager.shutdown_kernel(now=True)

    asyncio.run(body())
    assert [opened.device for opened in broker.bodies(Open)] == ["1"]


def test_a_session_is_named_after_its_notebook(broker):
    """The last part of the notebook's path, as jupyter_server passes it; without one the kernel's name."""

    async def body():
        for path in ("/home/ann/course/hw2.ipynb", "/home/ann/", ""):
            manager = managed()
            await manager.start_kernel(env={**os.environ, "JPY_SESSION_NAME": path})
            await manager.shutdown_kernel(now=True)

    asyncio.run(body())
    assert [opened.name for opened in broker.bodies(Open)] == ["hw2.ipynb", "python3", "python3"]


def test_a_restart_keeps_the_session_and_changes_the_token(broker):
    """One Open, then Restart with the old token; the new token reaches the new process."""

    async def test(manager):
        await manager.restart_kernel(now=True)
        printed = await run_cell(manager, "import os; print(os.environ['GPUSHARE_TOKEN'])")
        assert printed.strip() == "token-1-again"
        assert not broker.bodies(Close)

    started(test)
    assert len(broker.bodies(Open)) == 1
    assert broker.bodies(Restart) == [Restart("s-1", "token-1")]
    assert broker.bodies(Close) == [Close("s-1", "token-1-again")]


def test_a_forgotten_session_is_opened_anew(broker):
    """A broker that lost its ledger does not stop a restart."""

    async def test(manager):
        broker.answer = lambda body: (
            Failure("BadToken", "unknown session.")
            if isinstance(body, Restart)
            else Opened("s-2", "token-2")
            if isinstance(body, Open)
            else Ok()
        )
        await manager.restart_kernel(now=True)
        assert manager.provisioner._session.session == "s-2"

    started(test)


def test_a_session_opened_anew_needs_what_it_needed(broker):
    """The provisioner keeps what the broker told it at the last start."""
    usual = broker.answer

    async def test(manager):
        manager.provisioner._session.needs = 2**33
        broker.answer = lambda body: (
            Failure("BadToken", "unknown session.") if isinstance(body, Restart) else usual(body)
        )
        await manager.restart_kernel(now=True)
        assert [body.needs for body in broker.bodies(Open)] == [0, 2**33]

    started(test)


def test_a_refused_start_leaves_nothing(refusing, runtime):
    """No process, no cached port, no connection file, and the broker's own words as the error."""

    async def body():
        manager = managed()
        with pytest.raises(Refused, match="no kernel fits here"):
            await manager.start_kernel()
        assert not manager.has_kernel
        assert not manager.provisioner.ports_cached

    asyncio.run(body())
    assert refusing.kinds() == ["Open"]
    assert not list(runtime.parent.glob("jupyter/*.json"))


def test_a_refused_bind_ends_the_process_and_the_session(broker):
    """jupyter_client calls no cleanup then: the launched process is ended, ports and session given back; a retry works."""
    pids = []

    def answer(body):
        if isinstance(body, Bind):
            return Failure("NotYours", "that process belongs to somebody else.")
        return Opened("s-1", "token-1") if isinstance(body, Open) else Ok()

    async def body():
        manager = managed()
        broker.answer = answer
        with pytest.raises(Exception, match="belongs to somebody else"):
            await manager.start_kernel()
        pids.extend(asked.pid for asked in broker.asked if asked.pid)
        assert not manager.provisioner.has_process
        assert not manager.provisioner.ports_cached
        assert broker.kinds() == ["Open", "Bind", "Close"]
        broker.answer = lambda body: Opened("s-2", "t") if isinstance(body, Open) else Ok()
        await manager.start_kernel()
        try:
            assert await run_cell(manager, "print('up')") == "up\n"
        finally:
            await manager.shutdown_kernel(now=True)

    asyncio.run(body())
    assert procfs.process_key(pids[0]) is None


def test_a_failed_launch_closes_the_session(broker, tmp_path):
    """A kernelspec whose program is missing costs no session."""

    async def body():
        manager = managed()
        manager.kernel_spec.argv = [str(tmp_path / "missing"), "-f", "{connection_file}"]
        with pytest.raises(FileNotFoundError):
            await manager.start_kernel()

    asyncio.run(body())
    assert broker.kinds() == ["Open", "Close"]


@pytest.mark.parametrize("policy", ["start", "degrade"])
def test_without_a_broker_a_kernel_starts_bare_and_says_so_once(
    runtime, never_starts, policy, caplog, monkeypatch
):
    """Degraded kernels work, share nothing, inherit no outer session, and cost one line in the log however often they restart."""
    monkeypatch.setenv("GPUSHARE_TOKEN", "the outer notebook's")
    monkeypatch.setattr("gpushare_kernel.provisioner.GpuShareProvisioner.on_missing_broker", policy)
    logger = logging.getLogger("gpushare-test")

    async def test(manager):
        await manager.restart_kernel(now=True)
        return await run_cell(manager, "import os; print('GPUSHARE_TOKEN' in os.environ)")

    with caplog.at_level(logging.WARNING, logger="gpushare-test"):
        assert started(test, log=logger) == "False\n"
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1
    assert "shares nothing" in lines[0]
    assert bool(never_starts[0]) == (policy == "start")


def test_fail_refuses_a_start_without_a_broker(runtime, monkeypatch):
    """`on_missing_broker = fail` names the socket and the next step."""
    monkeypatch.setattr("gpushare_kernel.provisioner.GpuShareProvisioner.on_missing_broker", "fail")

    async def body():
        manager = managed()
        with pytest.raises(NoBroker, match=r"broker\.sock.*jupyter gpushare start"):
            await manager.start_kernel()
        assert not manager.has_kernel

    asyncio.run(body())


def test_an_interrupt_goes_to_a_kernel_that_runs(broker):
    """Before the signal the broker resumes the kernel; a paused one would not notice it."""

    async def test(manager):
        pid = manager.provisioner.pid
        client = manager.client()
        client.start_channels()
        await client.wait_for_ready(timeout=PATIENCE)
        broker.answer = lambda body: os.kill(pid, signal.SIGCONT) or Ok()
        request = client.execute("import time; print('in', flush=True); time.sleep(600)")
        await shows(client, request, "in")
        broker.pause(pid)
        await manager.interrupt_kernel()
        reply = await client.get_shell_msg(timeout=PATIENCE)
        while reply["parent_header"].get("msg_id") != request:
            reply = await client.get_shell_msg(timeout=PATIENCE)
        assert reply["content"]["ename"] == "KeyboardInterrupt"
        client.stop_channels()

    started(test)
    exempted = broker.bodies(Exempt)[0]
    assert (exempted.session, exempted.token) == ("s-1", "token-1")
    assert exempted.seconds > 0


def test_a_paused_kernel_shuts_down_politely_without_a_broker(broker, never_starts):
    """A broker that is gone neither blocks a shutdown nor leaves the kernel stopped: it ends by itself, unkilled."""

    async def test(manager):
        client = manager.client()
        client.start_channels()
        await client.wait_for_ready(timeout=PATIENCE)
        client.stop_channels()
        process = manager.provisioner.process
        broker.pause(process.pid)
        broker.leave()
        manager.provisioner._session.broker = (
            None  # the scripted one is this process, which lives on
        )
        await manager.shutdown_kernel()
        return process.returncode

    assert started(test) == 0


def test_a_kernel_is_left_to_a_broker_that_is_only_slow(broker, never_starts):
    """It lives, so whom it paused is its own to resume: a signal is not late, and the tree is not continued."""

    async def test(manager):
        provisioner = manager.provisioner
        process = provisioner.process
        broker.pause(process.pid)
        broker.silent.set()
        await provisioner.send_signal(signal.SIGINT)
        state = procfs.state(process.pid)
        await manager.shutdown_kernel(now=True)
        return state, process.returncode

    assert started(test) == ("T", -signal.SIGKILL)


def test_the_last_resort_leaves_other_sessions_alone(broker, never_starts):
    """A kernel below the kernel has a starter of its own; plain children are continued with their root."""

    async def test(manager):
        await run_cell(
            manager,
            "import os, subprocess\n"
            "plain = subprocess.Popen(['sleep', '600'])\n"
            "other = subprocess.Popen(['sleep', '601'], env={**os.environ, 'GPUSHARE_SESSION': 's-other'})",
        )
        provisioner = manager.provisioner

        def words(pid: int) -> bytes:
            return Path(f"/proc/{pid}/cmdline").read_bytes()

        children = procfs.children(provisioner.pid)
        eventually(lambda: all(map(words, children)))  # none for a moment, while it becomes sleep
        plain, other = sorted(children, key=words)
        for pid in (plain, other, provisioner.pid):
            broker.pause(pid)
        assert provisioner._session.resume(provisioner.pid)
        states = [procfs.state(pid) for pid in (provisioner.pid, plain, other)]
        os.kill(other, signal.SIGKILL)
        os.kill(plain, signal.SIGKILL)
        return states

    root, plain, other = started(test)
    assert root != "T"
    assert plain != "T"
    assert other == "T"


def test_the_last_resort_undoes_the_driver_s_locks(broker, never_starts, tmp_path, monkeypatch):
    """Where there is a driver: by a program of its own (no CUDA in the server), told pids and start times."""
    told = tmp_path / "told"
    script = f"import pathlib, sys; pathlib.Path({str(told)!r}).write_text(' '.join(sys.argv[1:]))"
    monkeypatch.setattr(kernel_session, "_NVIDIA", tmp_path)
    monkeypatch.setattr(kernel_session, "_UNLOCKING", (sys.executable, "-c", script))
    for name in [name for name in sys.modules if name.partition(".")[0] == "cuda"]:
        monkeypatch.delitem(sys.modules, name)  # another test's: whoever loads it here is seen

    async def test(manager):
        await run_cell(manager, "import subprocess; p = subprocess.Popen(['sleep', '600'])")
        provisioner = manager.provisioner
        keys = procfs.tree(provisioner.pid)
        broker.pause(provisioner.pid)
        assert provisioner._session.resume(provisioner.pid)
        assert provisioner._session.undoing.wait(PATIENCE) == 0
        return " ".join(f"{key.pid} {key.start_time}" for key in keys)

    expected = started(test)
    assert told.read_text() == expected
    assert len(expected.split()) == 4
    assert "cuda" not in {name.partition(".")[0] for name in sys.modules}


def test_poll_resumes_a_paused_kernel_whose_broker_is_gone(broker, never_starts):
    """Broker and guardian gone: the next poll continues the whole tree and starts a broker in the background."""
    calls, called = never_starts

    async def test(manager):
        await run_cell(manager, "import subprocess; p = subprocess.Popen(['sleep', '600'])")
        provisioner = manager.provisioner
        (child,) = procfs.children(provisioner.pid)
        for pid in (child, provisioner.pid):
            broker.pause(pid)
        await provisioner.poll()
        assert procfs.state(child) == "T"
        broker.leave()
        provisioner._session.broker = None  # the scripted broker is this process, which lives on
        provisioner._looked = 0
        assert await provisioner.poll() is None
        assert await run_cell(manager, "print('runs')") == "runs\n"
        assert procfs.state(child) != "T"
        assert await asyncio.to_thread(called.wait, PATIENCE)
        provisioner._reviving.join()

    started(test)
    assert len(calls) == 1


def test_poll_leaves_alone_what_the_broker_did_not_stop(broker, never_starts):
    """A kernel stopped by its user (a debugger, Ctrl-Z) stays stopped when the broker goes."""

    async def test(manager):
        provisioner = manager.provisioner
        provisioner._session.broker = provisioner._session.page_of = None
        os.kill(provisioner.pid, signal.SIGSTOP)
        eventually(lambda: procfs.state(provisioner.pid) == "T")
        broker.leave()
        await provisioner.poll()
        assert procfs.state(provisioner.pid) == "T"
        os.kill(provisioner.pid, signal.SIGCONT)

    started(test)


def test_an_early_cleanup_does_not_end_the_session(broker):
    """Voila calls cleanup while its kernels start. A living kernel keeps its session, and a restart its id."""

    async def test(manager):
        await manager.provisioner.cleanup(restart=False)
        await manager.provisioner.cleanup(restart=False)
        assert await run_cell(manager, "print(1)") == "1\n"
        assert not broker.bodies(Close)
        await manager.restart_kernel(now=True)
        assert len(broker.bodies(Restart)) == 1

    started(test)
    assert len(broker.bodies(Close)) == 1


def test_cleanup_twice_closes_once(broker):
    """Idempotent: a second cleanup asks nobody, and the same manager can start a kernel again."""

    async def body():
        with zmq.asyncio.Context() as context:
            manager = managed(context=context)
            for _ in range(2):
                await manager.start_kernel()
                await manager.shutdown_kernel(now=True)
                await manager.provisioner.cleanup(restart=False)

    asyncio.run(body())
    assert [kind for kind in broker.kinds() if kind != "Exempt"] == ["Open", "Bind", "Close"] * 2


def test_methods_work_across_event_loops(broker):
    """The blocking manager inside a running loop runs each call in another thread's loop."""
    code = """if True:
        import asyncio, subprocess
        from jupyter_client.manager import KernelManager
        from jupyter_core.utils import ensure_event_loop
        def end(manager):
            manager.shutdown_kernel(now=True)
            ensure_event_loop().close()  # or the collector does, and may complain of its sockets
        async def body():
            manager = KernelManager(kernel_name="python3")
            manager.start_kernel(stderr=subprocess.DEVNULL)
            manager.interrupt_kernel()
            await asyncio.to_thread(end, manager)
        asyncio.run(body())
    """
    run_python(code)
    assert broker.kinds() == ["Open", "Bind", "Exempt", "Exempt", "Exempt", "Close"]


def test_the_loop_runs_on_while_the_broker_takes_its_time(broker):
    """A broker that is slow to answer holds back its own kernel, not the server."""
    asked, answer = threading.Event(), threading.Event()

    def slow(body):
        if isinstance(body, Open):
            asked.set()
            answer.wait(PATIENCE)
        return usual(body)

    async def body():
        broker.answer = slow
        manager = managed()
        starting = asyncio.create_task(manager.start_kernel())
        assert await asyncio.to_thread(asked.wait, PATIENCE)
        assert not starting.done()
        answer.set()
        await starting
        await manager.shutdown_kernel(now=True)

    asyncio.run(body())


def test_a_cancelled_start_closes_the_session_it_was_about_to_get(broker):
    """A start given up while the broker thinks about it leaves no session behind."""
    asked, answer = threading.Event(), threading.Event()

    def slow(body):
        if isinstance(body, Open):
            asked.set()
            answer.wait(PATIENCE)
        return usual(body)

    async def body():
        manager = managed()
        starting = asyncio.create_task(manager.start_kernel())
        assert await asyncio.to_thread(asked.wait, PATIENCE)
        starting.cancel()
        answer.set()
        with pytest.raises(asyncio.CancelledError):
            await starting

    broker.answer = slow
    asyncio.run(body())
    assert broker.kinds() == ["Open", "Close"]


def test_a_session_can_be_handed_over(broker):
    """get/load_provisioner_info carry the session and its token, so another server can restart and close it."""

    async def test(manager):
        info = await manager.provisioner.get_provisioner_info()
        factory = KernelProvisionerFactory.instance()
        other = factory.create_provisioner_instance("k", manager.kernel_spec, parent=managed())
        await other.load_provisioner_info(info)
        assert other._session.token == "token-1"
        await other.cleanup(restart=False)

    started(test)
    assert broker.bodies(Close)[0] == Close("s-1", "token-1")


def test_kernels_end_in_atexit_hooks(broker):
    """nbclient ends its kernels when the interpreter does; threads cannot be started any more then."""
    code = """if True:
        import atexit, subprocess
        from jupyter_client.manager import KernelManager
        manager = KernelManager(kernel_name="python3")
        manager.start_kernel(stderr=subprocess.DEVNULL)
        atexit.register(manager.shutdown_kernel, now=True)
    """
    run_python(code)
    assert broker.kinds()[-1] == "Close"
    pid = next(asked.pid for asked in broker.asked if asked.pid)
    assert procfs.process_key(pid) is None


def test_ensure_broker_has_the_agreed_shape():
    """What `never_starts` replaces exists as the provisioner calls it."""
    assert callable(start.ensure_broker)
