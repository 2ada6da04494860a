"""The starter's own presence in the session it holds memory for."""

from __future__ import annotations

import os

import pytest

from gpushare_kernel.app.holding import Holding
from gpushare_kernel.core.values import SessionId
from gpushare_kernel.kernel_session import KernelSession
from gpushare_kernel.transport.words import WordPage
from gpushare_kernel.wire.messages import Announce, Attached, Welcome


@pytest.fixture
def holding(where):
    made = Holding(KernelSession(where, SessionId("s1"), "token"))
    yield made
    made.end()


def test_on_a_gpu_the_starter_looks_after_no_framework(holding):
    """It is outside: no adapters, no budget, nothing held of its own, whatever it weighs."""
    page = WordPage.create()
    attached = Attached(SessionId("s1"), "GPU-1", "cuda", "H100", 2**36, 0.1, 2**29)
    client = holding._session
    client.came_up(Welcome(1, 1, "0.1.0", attached), [os.dup(page.fd)])
    page.close()
    assert client.gpu is None
    assert client.noun == "GPU memory"
    assert (client.memory.now(), client.memory.peak(), client.attach().persistent) == (0, 0, 0)


def test_what_the_broker_says_is_said_of_the_command(holding, capsys):
    """On stderr, in a line of ours: stdout is the command's."""
    holding._session._tell(Announce("This notebook holds 7.4 GiB."))
    assert capsys.readouterr() == ("", "gpushare: This command holds 7.4 GiB.\n")
