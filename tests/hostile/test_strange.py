"""A descriptor whose owner decides when a close is over: the broker waits for nobody."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpushare_kernel.core.errors import BadFrame
from gpushare_kernel.transport.strange import MOST_CLOSING
from gpushare_kernel.wire import messages as msg
from tests.broker.house import House
from tests.hostile.conftest import needs_root
from tests.hostile.slow_file import SlowFile

pytestmark = [pytest.mark.root, needs_root]


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[SlowFile]:
    """A file that is not closed before its owner says so."""
    try:
        with SlowFile(tmp_path / "slow") as made:
            yield made
    except OSError as problem:
        pytest.skip(f"no FUSE here: {problem}")


def test_nobody_holds_up_the_loop_by_a_close(tmp_path: Path, slow: SlowFile) -> None:
    """The hello is refused at once, others are answered while the close waits; at so many no descriptor is taken, until they are over."""
    with House(tmp_path) as house:
        opened = house.open()
        bind = msg.Bind(opened.session, opened.token)
        fd = os.open(slow.path, os.O_RDONLY)
        try:
            for _ in range(MOST_CLOSING):
                with pytest.raises(BadFrame, match="another kind of descriptor"):
                    house.call(bind, [fd])
                assert slow.waited_for.acquire(timeout=20)
                assert isinstance(house.call(msg.Observe()).body, msg.Ok)
            with pytest.raises(BadFrame, match="none came"):
                house.call(bind, [fd])
            slow.let_go()
            strange = house.listener._allowances.of(os.geteuid()).strange
            house.saw(lambda: strange.most == 1)
        finally:
            slow.let_go()
            os.close(fd)
        house.bind(opened)
        assert house.kernel(opened).key is not None
