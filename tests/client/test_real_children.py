"""Children of a real kernel at a real broker: forked, started, nested, killed."""

from __future__ import annotations

from gpushare_kernel import procfs
from gpushare_kernel.core.values import MiB, ProcessKey
from gpushare_kernel.wire.snapshot import Snapshot
from tests.faults.conftest import host
from tests.faults.host import Host, kill, session_of, stopped
from tests.faults.notebook import Notebook
from tests.procs import eventually

__all__ = ["host"]

FORK = """%%gpulane 50MiB --name outer
import multiprocessing, os, time
import gpushare_kernel as gpushare
fork = multiprocessing.get_context("fork")
come = fork.Event()
go = os.path.join(os.environ["GPUSHARE_RUNTIME_DIR"], "go")

def child():
    assert gpushare.current_lane() is None
    with gpushare.lane(ephemeral="20MiB", name="forked") as lane:
        come.set() if lane.shared else None
        while not os.path.exists(go): time.sleep(0.01)

process = fork.Process(target=child)
process.start()
print("child", process.pid, come.wait(30), flush=True)
process.join()
print("ended", process.exitcode, gpushare.current_lane().shared, flush=True)
"""

SCRIPT = """
import subprocess, sys
code = '''
import gpushare_kernel as gpushare, sys
with gpushare.lane(ephemeral="30MiB", name="script") as lane:
    print("script", lane.shared, flush=True)
    sys.stdin.readline()
print("left", lane.report is not None, flush=True)
'''
script = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
print(script.stdout.readline(), script.pid)
"""

NESTED = """
from jupyter_client.manager import KernelManager
inner = KernelManager(kernel_name="python3")
inner.start_kernel()
client = inner.client()
client.start_channels()
client.wait_for_ready(60)
print("inner", inner.provisioner.pid, flush=True)
"""


def jobs_of(seen: Snapshot, notebook: Notebook) -> int:
    """Return how many jobs a notebook's session has."""
    return len(session_of(seen, notebook).jobs)


def test_forked_with_a_lane_open(host: Host) -> None:
    """A forked child has no lane but its own, in its parent's session; each ends once, the parent's stays open."""
    host.start("--capacity", "1GiB")
    notebook = host.notebook()
    outputs = notebook.outputs(notebook.start(FORK))
    pid, came = notebook.read_until(outputs, "child").split()[1:]
    assert came == "True"
    seen = host.snapshot()
    assert jobs_of(seen, notebook) == 2
    assert len(seen.sessions) == 1
    assert sum(lane.size for lane in seen.devices[0].lanes) >= 20 * MiB
    assert procfs.is_descendant(int(pid), notebook.pid)
    (host.places.runtime / "go").touch()
    assert notebook.read_until(outputs, "ended") == "ended 0 True"
    assert any(line.startswith("used ") for line in outputs)
    host.until(lambda seen: jobs_of(seen, notebook) == 0)


def test_forked_child_killed(host: Host) -> None:
    """A child that is killed in its lane loses it; the parent's job goes on and ends by itself."""
    host.start("--capacity", "1GiB")
    notebook = host.notebook()
    outputs = notebook.outputs(notebook.start(FORK))
    pid = int(notebook.read_until(outputs, "child").split()[1])
    assert jobs_of(host.snapshot(), notebook) == 2
    kill(_key(pid))
    assert notebook.read_until(outputs, "ended") == "ended -9 True"
    assert any(line.startswith("used ") for line in outputs)
    host.until(lambda seen: jobs_of(seen, notebook) == 0 and not seen.devices[0].lanes)


def test_script_attaches_to_its_notebook(host: Host) -> None:
    """A script started in a cell has lanes in the notebook's session, charged to it."""
    host.start("--capacity", "1GiB")
    notebook = host.notebook()
    assert notebook.run(SCRIPT)[0] == "script True"
    seen = host.snapshot()
    assert [s.id for s in seen.sessions] == [notebook.session]
    assert jobs_of(seen, notebook) == 1
    assert [lane.size for lane in seen.devices[0].lanes] == [30 * MiB]
    ended = notebook.run("script.stdin.close(); print(script.stdout.read(), script.wait())")
    assert ended == ["left True", " 0"]
    host.until(lambda seen: jobs_of(seen, notebook) == 0)


def test_nested_kernel_is_a_session_of_its_own(host: Host) -> None:
    """A kernel started in a notebook has its own turns and account: pausing the outer one never stops it."""
    host.start("--compute", "1", "--turn", "1", "--capacity", "1GiB")
    outer = host.notebook("outer.ipynb")
    inner = _key(int(outer.run(NESTED)[-1].split()[1]))
    (nested,) = host.until(lambda seen: [s for s in seen.sessions if s.pid == inner.pid])
    assert nested.id != outer.session
    outputs = outer.outputs(
        outer.start(
            "client.execute('while True: pass')\nprint('both', flush=True)\nwhile True: pass"
        )
    )
    outer.read_until(outputs, "both")
    for paused, running in ((outer.key, inner), (inner, outer.key), (outer.key, inner)):
        eventually(
            lambda paused=paused, running=running: stopped(paused.pid) and not stopped(running.pid)
        )
    before = session_of(host.snapshot(), outer).device_time
    eventually(lambda: stopped(outer.pid))
    host.until(lambda seen: session_of(seen, outer).device_time > before)
    kill(outer.key)
    # ipykernel ends with whoever started it; until then it is still its own session.
    eventually(lambda: not procfs.alive(inner))
    host.until(lambda seen: all(s.pid is None for s in seen.sessions))


def _key(pid: int) -> ProcessKey:
    key = procfs.process_key(pid)
    assert key is not None
    return key
