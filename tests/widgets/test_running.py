"""Whether a cell runs: asked in a real kernel, from a cell, and from what is none."""

from __future__ import annotations

from tests.faults.conftest import host
from tests.faults.host import Host

__all__ = ["host"]

OPEN = """
from gpushare_widgets.running import Running
made, said = [], []
def opened(comm, message):
    if not made:
        made.append(Running(lambda: None))
    said.append(bool(made[0]))
get_ipython().kernel.comm_manager.register_target("asks", opened)
"""


def test_what_is_made_outside_a_cell_follows_the_next_ones(host: Host) -> None:
    """Made by a widget's callback no cell runs; made by a cell one does; in both a cell that is over is over."""
    host.start("--capacity", "1GiB")
    notebook = host.notebook("hw1.ipynb")

    def asks() -> None:
        """Have the kernel asked outside a cell; it answers to one after the other."""
        session, shell = notebook.client.session, notebook.client.shell_channel
        comm = {"target_name": "asks", "data": {}, "comm_id": session.msg_id}
        shell.send(session.msg("comm_open", comm))

    notebook.run(OPEN)
    asks()
    assert notebook.run("print(said, bool(made[0]))") == ["[False] True"]
    asks()
    assert notebook.run("print(said)") == ["[False, False]"]
    notebook.run("made[0].close(); made[0] = Running(lambda: None); said = [bool(made[0])]")
    asks()
    assert notebook.run("print(said)") == ["[True, False]"]
    notebook.close()
