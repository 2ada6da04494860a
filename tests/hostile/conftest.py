"""A real broker with a notebook of root's, and hostile users with uids of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks.hostile.crew import Mallory, crew
from gpushare_kernel.core.values import ProcessKey
from tests.faults.conftest import made_host
from tests.faults.host import Host, session_of
from tests.faults.notebook import Notebook

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root and real uids")


@dataclass
class Scene:
    """A victim that works, and people who do not mean well."""

    host: Host
    broker: ProcessKey
    ours: Notebook
    mallory: Mallory
    eve: Mallory
    oscar: Mallory

    @property
    def victim(self) -> dict[str, Any]:
        """What a thief knows of our notebook: all of it."""
        key = {"session": self.ours.session, "token": self.ours.token, "pid": self.ours.pid}
        secrets = ["secret-hw1", self.ours.token, f'"pid": {self.ours.pid},']
        return {**key, "name": "secret-hw1.ipynb", "job": "j1", "secrets": secrets}

    def unharmed(self) -> None:
        """Fail where anything has happened to our notebook or the broker."""
        assert self.host.broker == self.broker
        seen = self.host.snapshot()
        session = session_of(seen, self.ours)
        assert (session.user, session.name, session.pid) == (
            "root",
            "secret-hw1.ipynb",
            self.ours.pid,
        )
        assert session.state == "idle"
        assert {device.policy for device in seen.devices} == {"fair"}
        assert "42" in self.ours.run("%%gpulane 10MiB\n6 * 7")
        assert not self.host.log("error")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """A host without a broker yet."""
    with made_host(tmp_path, monkeypatch) as made:
        yield made


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """One for all tests of a file: whatever one leaves behind is a find of the next."""
    with pytest.MonkeyPatch.context() as patch:
        folder: Path = tmp_path_factory.mktemp("hostile")
        with made_host(folder, patch) as host:
            broker = host.start("--capacity", "1GiB")
            ours = host.notebook("secret-hw1.ipynb")
            with crew(3, host.places.socket) as users:
                yield Scene(host, broker, ours, *users)
