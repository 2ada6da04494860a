"""A notebook on a GPU for tests: a session, the broker that is played to it, and loops over the real torch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from gpushare_kernel.client import display
from gpushare_kernel.client.lanes import Lane
from gpushare_kernel.client.session import Session
from gpushare_kernel.core.values import GiB, MiB
from gpushare_kernel.wire.messages import (
    Announce,
    BrokerNotice,
    Budget,
    End,
    Granted,
    Submit,
    Yield,
)
from tests.client.fake_cuda import FakeCuda, torch
from tests.client.scripted_broker import Peer, ScriptedBroker, attached, report
from tests.client.test_session import in_thread, submit

New = Callable[[], Session]
GPU = attached("cuda", 78 * GiB, reserve=600 * MiB)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """The CUDA side of torch, played."""
    monkeypatch.delenv("GPUSHARE_ADAPTERS", raising=False)
    return FakeCuda(monkeypatch)


class Notebook:
    """A session on a GPU, the broker it talks to, and what it shows."""

    def __init__(self, session: Session, broker: ScriptedBroker, welcome: object = GPU) -> None:
        self.session = session
        self.shown: list[str] = []
        session.listen(lambda notice: self.shown.append(getattr(notice, "text", "")))
        session.start()
        self.peer: Peer = broker.accept(welcome)  # type: ignore[arg-type]
        session.wait_attached(20)
        assert session.gpu is not None
        self.gpu = session.gpu

    @property
    def counted(self) -> int:
        """Boundaries, as the broker reads them."""
        return self.peer.tally.read()

    def budget(self, limit: int | None) -> None:
        """Have the broker set a limit, and wait until the client has heard of it."""
        self.hear(Budget(limit))

    def hear(self, notice: BrokerNotice) -> None:
        """Have the broker say something, and wait until the client has heard it."""
        heard = threading.Event()
        listen = lambda _: heard.set()  # noqa: E731
        self.session.listen(listen)
        self.peer.notice(notice)
        self.peer.notice(Announce("after it"))
        assert heard.wait(20)
        self.session.unlisten(listen)

    def lane(self, slot: int = 1) -> Lane:
        """Enter a lane in this thread's context; the broker admits it."""
        lane = Lane(self.session, submit(cooperative=True))

        def admit() -> None:
            number, asked = self.peer.expect(Submit)
            self.peer.grant(number, asked, slot=slot)

        admitted = in_thread(admit)
        lane.__enter__()
        admitted.result(20)
        return lane

    def leave(self, lane: Lane) -> End:
        """Leave it; returns what the broker is told."""

        def answer() -> End:
            number, end = self.peer.expect(End)
            self.peer.reply(number, report(end.job))
            return end

        ending = in_thread(answer)
        lane.close()
        return ending.result(20)  # type: ignore[return-value]


@pytest.fixture
def notebook(cuda: FakeCuda, new_session: New, broker: ScriptedBroker) -> Iterator[Notebook]:
    """A session on a GPU in which torch was imported before."""
    yield Notebook(new_session(), broker)
    display.use(None)


class Block(torch.nn.Module):
    """Calls its parts by a helper, as torchvision's models do."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = torch.nn.Sequential(
            torch.nn.Linear(4, 4), torch.nn.Sequential(torch.nn.ReLU())
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._forward(x)

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.parts(self.parts(x))


def train(rounds: int, model: torch.nn.Module | None = None) -> None:
    """A training loop as students write it."""
    model = model or Block()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(rounds):
        optimizer.zero_grad()
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()


def infer(rounds: int, model: torch.nn.Module | None = None) -> None:
    """Inference, without gradients."""
    model = model or Block()
    with torch.no_grad():
        for _ in range(rounds):
            model(torch.ones(1, 4))


def yielded(notebook: Notebook) -> Yield:
    number, asked = notebook.peer.expect(Yield)
    notebook.peer.page.set(1, 0)
    notebook.peer.reply(number, Granted(asked.job, 1, 1, 0.0, 0, 0))
    return asked
