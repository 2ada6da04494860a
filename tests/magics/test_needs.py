"""A real kernel at a real broker: what a cell took is what it gets the next time it declares nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from gpushare_magics.cells import Cells

from gpushare_kernel.core.sizes import format_size, parse_size
from gpushare_kernel.core.values import MiB
from tests.broker.house import House
from tests.magics.conftest import Kernel, text_of

New = Callable[[dict[str, str]], Kernel]
BODY = "kept = b'x' * (200 << 20)\npassing = b'y' * (300 << 20); del passing"


@pytest.fixture
def at_home(tmp_path: Path, new_kernel: New) -> Iterator[Kernel]:
    """A kernel of a session whose broker decides by itself; its device is played, its memory is the host's."""
    with House(tmp_path) as house:
        opened = house.open("hw1.ipynb")
        kernel = new_kernel(
            {
                "GPUSHARE_TOKEN": opened.token,
                "GPUSHARE_SESSION": opened.session,
                "GPUSHARE_SOCKET": str(house.path),
                "JPY_SESSION_NAME": "/home/ann/hw1.ipynb",
            }
        )
        provisioner = kernel.manager.provisioner
        assert provisioner is not None
        house.bind(opened, provisioner.pid)  # type: ignore[attr-defined]
        yield kernel


def test_the_second_run_takes_what_the_first_took_and_says_so(at_home: Kernel) -> None:
    """Declared once, then not: the same code with another comment is the same code. One that fails teaches nothing."""
    after = at_home.run(f"%%gpulane 2GiB --time 5min\n{BODY}")[-1]
    size = after.partition("next time: %%gpulane ")[2].split()[0]
    row = at_home.run("%gpushare needs")[-1]
    assert (
        f"declare {format_size(parse_size(size))} instead of 2.0" in row
    )  # one advice, in both places
    assert f": %%gpulane {size} " in row
    lines = at_home.run(f"# again\n%%gpulane\n{BODY}  # as before")
    said = re.fullmatch(r"Takes (.*) of memory, learned from 1 run of this code\.", lines[0])
    assert said, lines
    # 200 MiB to keep and 300 beside it, a quarter more of each; the interpreter takes a little too.
    assert 600 * MiB < parse_size(said[1]) < 800 * MiB
    assert lines[-1].startswith("used ")
    dry = at_home.run(f"%%gpulane --dry-run\n{BODY}")
    assert "learned from 2 runs)" in dry[0]
    _, head, row = at_home.run("%gpushare needs")
    assert head.split() == ["code", "of", "runs", "declared", "learned", "last", "run", "advice"]
    assert re.match(r"kept = b'x' \* \(200 << 20\) +hw1\.ipynb +2 +- +", row)
    assert row.endswith("nothing to declare: it takes what was learned")
    at_home.run("%%gpulane\n1/0")
    assert not any(line.startswith("Takes") for line in at_home.run("%%gpulane\n1/0"))
    stacked = at_home.run("%%gpulane\n%%time\n1/0")
    assert not any(line.startswith("Takes") for line in stacked)
    assert not any(line.startswith("Takes") for line in at_home.run("%%gpulane\n%%time\n1/0"))
    at_home.run("%%gpulane\n%%time\nNone")
    assert at_home.run("%%gpulane\n%%time\nNone")[0].startswith("Takes")


@pytest.mark.parametrize("body", ["import time\nprint('in', flush=True); time.sleep(60)", "import asyncio\nprint('in', flush=True)\nwhile True: await asyncio.sleep(0.05)"])  # fmt: skip
def test_an_interrupted_run_teaches_nothing(at_home: Kernel, body: str) -> None:
    """How short it was says nothing of the next, in a cell with await either."""
    message = at_home.start(f"%%gpulane 1GiB\n{body}")
    for out in at_home.outputs(message):
        if text_of(out) == ["in"]:
            at_home.manager.interrupt_kernel()
    assert at_home.run("%gpushare needs")[0].startswith("Nothing is learned yet.")


def test_a_cell_whose_next_statement_does_not_compile_teaches_nothing(at_home: Kernel) -> None:
    """IPython compiles statement by statement: what comes there, an interrupt too, comes before the execution to it."""
    lines = at_home.run("%%gpulane 1GiB\nprint('ran')\nreturn")
    assert "ran" in lines
    assert "SyntaxError: 'return' outside function" in "\n".join(lines)
    assert at_home.run("%gpushare needs")[0].startswith("Nothing is learned yet.")


@pytest.mark.parametrize("where", ["error_in_exec", "error_before_exec"])
def test_an_interrupt_in_or_between_statements_is_one(where: str) -> None:
    """Whichever of the two IPython says."""
    ended: list[BaseException | None] = []

    def note(error: BaseException | None) -> Callable[[], None]:
        ended.append(error)
        return lambda: None

    cells, info = Cells(lambda: None, note), SimpleNamespace(raw_cell="1\n2")
    cells.pre_run_cell(info)
    errors = {"error_in_exec": None, "error_before_exec": None, where: KeyboardInterrupt()}
    cells.post_run_cell(SimpleNamespace(info=info, **errors))
    assert [type(error) for error in ended] == [KeyboardInterrupt]


def test_a_cancelled_cell_did_not_come_to_its_end() -> None:
    """IPython has no result for it: it counts as interrupted."""
    ended: list[BaseException | None] = []

    def note(error: BaseException | None) -> Callable[[], None]:
        ended.append(error)
        return lambda: None

    cells = Cells(lambda: None, note)
    cells.pre_run_cell(SimpleNamespace(raw_cell="await forever()"))
    cells.post_run_cell(None)
    assert [type(error) for error in ended] == [KeyboardInterrupt]
