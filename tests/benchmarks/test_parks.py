"""The rows about parking, as far as they go without a GPU: sizes, the broker's log, the ballast, turns, and the cells themselves."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import io
import logging
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from gpushare_magics.args import parse

from benchmarks.common import NotMeasured, Options
from benchmarks.gpu import parks
from benchmarks.gpu.ballast import STEP, excess
from benchmarks.gpu.parks import Move
from benchmarks.gpu.row import house
from benchmarks.gpu_parked_cell import run as cell
from benchmarks.gpu_parked_rounds import run as rounds
from benchmarks.gpu_two_endless import run as endless
from benchmarks.gpu_two_endless.turns import Point, alone, begins, between, parts, start
from benchmarks.gpu_warm import run as warm
from gpushare_kernel.broker import warm as warm_tier
from gpushare_kernel.broker.logs import JsonFormatter
from gpushare_kernel.broker.moves import MARGIN, Moves
from gpushare_kernel.client.line import Line
from gpushare_kernel.core.parking import AMORTISED
from gpushare_kernel.core.sizes import parse_size
from gpushare_kernel.core.values import GiB, MiB, MoveStatus
from gpushare_kernel.devices.base import TORCH_CONTEXT, MoveOutcome
from gpushare_kernel.wire.aside import CameBack, WentAside

H200, HOST = 139 * GiB, int(0.8 * 120 * GiB)
PLAIN = 256 * MiB
"""What a plain cell may take at once."""


@pytest.mark.parametrize("row", [rounds, cell, endless, warm])
def test_a_cpu_has_nothing_to_park(row):
    """Said with the reason, before anything is started."""
    with pytest.raises(NotMeasured, match="no device memory"):
        row.measure(Options(quick=True, device="host"))


class TestSizes:
    """How much each holds, and what the ballast leaves."""

    def test_what_can_be_afforded_is_what_it_costs(self):
        """One is the other backwards."""
        assert parks.cost(parks.affordable(30.0)) == pytest.approx(30.0)
        assert parks.affordable(0.5) == 0

    @pytest.mark.parametrize("context", [520 * MiB, 680 * MiB])
    @pytest.mark.parametrize("seconds", [rounds.A_CELL, 1000.0])
    def test_two_of_three_fit_and_a_restore_beside_one(self, context, seconds):
        """Whatever a context really takes: enough pressure, and room for what has to be free in fact and on paper."""
        sizes = rounds.planned(H200, HOST, seconds)
        holds = sizes.size + 64 * MiB + context
        assert 3 * holds / sizes.leave >= rounds.LEAST_RATIO
        assert 2 * holds + max(PLAIN, MARGIN) + 256 * MiB <= sizes.leave <= H200

    def test_what_binds_is_said(self):
        """Time on a large machine; the wish where nothing binds; else the memory that is short."""
        assert rounds.planned(H200, HOST).bound == "the row's time"
        assert rounds.planned(H200, 400 * GiB, 1000.0).size == 60 * GiB
        assert rounds.planned(H200, 20 * GiB, 1000.0).bound == "the host's memory"
        assert rounds.planned(16 * GiB, HOST, 1000.0).bound == "the GPU's memory"

    def test_ten_rounds_fit_the_row(self):
        """Thirty cells, each with a park and a restore at the first guess."""
        sizes = rounds.planned(H200, HOST)
        assert 30 * parks.cost(sizes.size + rounds.CONTEXT) <= 140

    def test_too_little_is_not_measured(self):
        """With what there was too little of."""
        with pytest.raises(NotMeasured, match="the host's memory leaves"):
            rounds.planned(H200, 3 * GiB)

    @pytest.mark.parametrize("plan", [endless.FULL, endless.QUICK])
    def test_one_training_fits_and_two_do_not(self, plan):
        """On paper and in fact, with the smallest context that was seen and the one that is reckoned with."""
        sizes = endless.planned(H200, HOST, plan)
        for context in (TORCH_CONTEXT, endless.CONTEXT):
            one = sizes.size + endless.KEPT + context
            assert one + endless.BESIDE + MARGIN <= sizes.leave
            assert 2 * (one + endless.BESIDE) > sizes.leave
        turns = (AMORTISED + 1) * parks.cost(sizes.size + endless.CONTEXT) * plan.turns
        assert turns <= plan.longest

    def test_managed_memory_is_paged_and_asked_for_within_what_is_free(self):
        """Both trainings are more than there is; each alone is less, both contexts there."""
        sizes = endless.planned(H200, HOST, endless.FULL)
        room = sizes.leave - 2 * endless.CONTEXT
        assert sizes.size + 256 * MiB < room < 2 * sizes.size

    def test_the_other_notebook_leaves_less_than_what_is_parked(self):
        """So nothing comes back while it has the GPU; on a small GPU there is nothing to measure."""
        assert H200 - cell.to_take(H200) + cell.UNUSED < cell.SIZE + MARGIN
        with pytest.raises(NotMeasured, match="free on the GPU"):
            cell.to_take(5 * GiB)

    def test_the_ballast_takes_whole_steps(self):
        """And nothing where less is free than is to be left."""
        assert excess(10 * STEP + 5, 3 * STEP) == 7 * STEP
        assert excess(STEP, 3 * STEP) == 0

    def test_a_declaration_is_one_that_the_magic_takes(self):
        """No size of it is zero."""
        said = parse(parks.declared(3 * GiB + 1, PLAIN).removeprefix("%%gpulane"))
        assert said.persistent is not None
        assert parse_size(said.persistent) == 3 * GiB + MiB
        assert parse(parks.declared(0, PLAIN).removeprefix("%%gpulane")).persistent is None


@contextlib.contextmanager
def log_of(module: str) -> Iterator[io.StringIO]:
    """Have what a module of the broker's logs, as its log has it."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger(f"gpushare_kernel.broker.{module}")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield stream
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def logged(*outcomes: tuple[str, MoveOutcome]) -> str:
    """Return the broker's log of moves."""
    with log_of("moves") as stream:
        for session, outcome in outcomes:
            Moves._note(SimpleNamespace(id=session), outcome)
    return stream.getvalue()


class TestMoves:
    """What the broker wrote down."""

    def test_they_are_read_from_its_own_log(self):
        """As it writes it; other lines, and lines cut off, are passed over."""
        text = logged(
            ("a", MoveOutcome(MoveStatus.DONE, 4 * GiB, 2.0)),
            ("a", MoveOutcome(MoveStatus.NOT_NOW, took=0.1, why="no room")),
            ("a", MoveOutcome(MoveStatus.DONE, took=1.0)),
            ("b", MoveOutcome(MoveStatus.LOST, why="it is gone")),
        )
        found = parks.moves_of(f'{{"message": "listening"}}\n{text}{{"mess')
        assert [move.status for move in found] == ["done", "not-now", "done", "lost"]
        assert found[0] == Move("a", "done", 4 * GiB, 2.0, "")
        assert parks.rates(found) == ([2.0 * GiB], [4.0 * GiB])
        assert parks.sizes(found) == {"a": 4 * GiB}
        figures = {figure.name: figure for figure in parks.figures(found)}
        assert figures["moves_put_off"].values == [1.0]
        assert not figures["moves_lost"].met

    def test_a_restore_brings_back_what_was_parked_last(self):
        """Of its own session; one that nobody saw parked tells no rate."""
        found = [
            Move("a", "done", 100, 1.0, ""),
            Move("b", "done", 300, 1.0, ""),
            Move("c", "done", 0, 1.0, ""),
            Move("a", "done", 0, 0.5, ""),
            Move("b", "done", 0, 0.5, ""),
        ]
        assert parks.rates(found) == ([100.0, 300.0], [200.0, 600.0])

    def test_a_row_in_which_nothing_moved_is_missed(self):
        """It has shown nothing about parking."""
        assert [figure.name for figure in parks.figures([]) if not figure.met] == ["parks", "restores"]  # fmt: skip


class TestWarm:
    """What clients told the broker of their copies."""

    def test_rates_are_read_from_its_own_log(self):
        """Of whole moves of that size only; a size that nobody moved has none, and misses."""
        kernel = SimpleNamespace(id="a", aside=0, lines=[SimpleNamespace(hears=lambda _: True)])
        tier = warm_tier.Warm()
        answers = [WentAside(1, 4 * GiB, "", 0.1), CameBack(2, "", 0.2), WentAside(3, 2 * GiB, "", 0.1), WentAside(4, 0, "busy")]  # fmt: skip

        async def told(*_):
            return answers.pop(0)

        tier._ask = told

        async def moves():
            assert await tier.set_aside(kernel, 12 * GiB) == 4 * GiB
            assert await tier.put_back(kernel, 1.0) == ""
            assert await tier.set_aside(kernel, 12 * GiB) == 2 * GiB
            assert await tier.set_aside(kernel, 12 * GiB) == 0

        with log_of("warm") as stream:
            asyncio.run(moves())
        figures = {one.name: one for one in warm._rates(stream.getvalue(), (4, 12))}
        assert figures["copy_out_4GiB"].values == [4 * GiB / 0.1 / 1e9]
        assert figures["copy_back_4GiB"].values == [4 * GiB / 0.2 / 1e9]
        assert not figures["copy_out_12GiB"].met


class TestBallast:
    """A session that holds memory, without our client."""

    def test_it_is_a_session_that_nobody_parks(self, tmp_path: Path):
        """A restore holds it still like others; a stranger would ask for twice the room. It ends by its file."""
        script = tmp_path / "ballast.py"
        script.write_text(
            "import pathlib, sys, time\nprint('ready', 5, 7, flush=True)\n"
            "while not pathlib.Path(sys.argv[2]).exists(): time.sleep(0.02)\n"
        )
        with house() as stage, stage.broker("--device", "host", *parks.COLD):
            with parks.ballast(stage, 5, script) as took, Line(stage.places) as line:
                assert took == (5, 7)
                (session,) = line.snapshot().sessions
                assert (session.name, session.state) == ("ballast", "bare")
            with Line(stage.places) as line:
                assert not line.snapshot().sessions
            with pytest.raises(NotMeasured, match="does not park"):
                parks.check_parks(stage)

    def test_one_that_does_not_start_says_why(self, tmp_path: Path):
        """And nothing is left of it."""
        script = tmp_path / "ballast.py"
        script.write_text("print('cuInit answers 100')")
        with (
            house() as stage,
            stage.broker("--device", "host"),
            pytest.raises(AssertionError, match="cuInit answers 100"),
            parks.ballast(stage, 5, script),
        ):
            pytest.fail("it did start")

    def test_it_is_ended_where_it_does_not_listen(self, monkeypatch: pytest.MonkeyPatch):
        """However long it could go on."""
        monkeypatch.setattr(parks, "_END_LIMIT", 0.1)
        process = subprocess.Popen(["sleep", "600"], stdout=subprocess.PIPE, text=True)
        parks._end(process)
        assert process.returncode == -15


def points(*counts: tuple[int, int]) -> list[Point]:
    return [Point(float(second), pair) for second, pair in enumerate(counts)]


class TestTurns:
    """Who had the GPU when."""

    SEEN = points(
        (0, 0),
        (0, 0),
        (5, 0),
        (10, 0),
        (10, 0),
        (10, 4),
        (10, 8),
        (10, 8),
        (15, 8),
        (20, 8),
        (20, 12),
    )

    def test_a_round_begins_where_the_first_goes_on(self):
        """From one beginning to the next both had one turn; the time in which nobody runs is in the rounds."""
        assert begins(self.SEEN) == [1, 7]
        assert between(self.SEEN[1], self.SEEN[7]) == [10, 8]
        assert start(self.SEEN) == self.SEEN[1]

    def test_where_nothing_is_done_there_is_no_round(self):
        """And no first moment."""
        still = points((0, 0), (0, 0))
        assert begins(still) == []
        assert start(still) is None
        assert alone(still) == 0.0
        assert parts([0, 0]) == [0.0, 0.0]

    def test_both_at_the_same_time_are_no_turns(self):
        """The two would fit side by side: then nothing is alternated."""
        assert begins(points((0, 0), (1, 1), (2, 2))) == []

    def test_the_first_turn_says_what_one_does_alone(self):
        """Waiting before and after it is not in it."""
        assert alone(self.SEEN) == 5.0

    def test_figures_are_of_whole_rounds(self):
        """The unequal rest counts only in the shares at the window's end."""
        paged = endless.Seen([1.0, 1.0], [None, None])
        found = {
            f.name: f for f in endless._of_turns(self.SEEN, paged, endless.Plan(9.0, 20.0, 2, 1.0))
        }
        assert found["total"].values == [3.0]
        assert found["total_of_paging"].values == [1.5]
        assert found["error_of_shares"].values == pytest.approx([50 - 100 * 8 / 18])
        assert found["shares_at_the_window_s_end"].values == [62.5, 37.5]
        assert found["whole_rounds"].values == [1.0]

    def test_it_ends_with_a_whole_round_or_at_the_longest(self):
        """Never before the window."""
        assert not endless._enough(self.SEEN[:1], endless.Plan(0.0, 0.0, 2, 1.0))
        assert endless._enough(self.SEEN, endless.Plan(6.0, 20.0, 2, 1.0))
        assert not endless._enough(self.SEEN, endless.Plan(7.0, 20.0, 2, 1.0))
        assert endless._enough(self.SEEN, endless.Plan(7.0, 9.0, 2, 1.0))


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch")
class TestCells:
    """The cells of the rows with torch, on the CPU."""

    @pytest.fixture
    def cells(self):
        made = importlib.import_module("benchmarks.gpu.park_cells")
        yield made
        made.held.clear()

    def test_the_hash_sees_every_change(self, cells, monkeypatch):
        """One word, and two that change places; it is the same for the same data."""
        monkeypatch.setattr(cells, "CHUNK", 1000)
        cells.build(PLAIN // 256, 7, "cpu")
        known, every = cells.digest(), cells.sha()
        assert sum(tensor.nbytes for tensor in cells.held) == PLAIN // 256
        assert cells.turn("cpu")["digest"] == known
        one, other = cells.held[3][1234].item(), cells.held[3][1235].item()
        cells.held[3][1234], cells.held[3][1235] = other, one
        assert cells.digest() != known
        assert [a == b for a, b in zip(cells.sha(), every, strict=True)].count(False) == 1
        cells.held[3][1234], cells.held[3][1235] = one, other
        assert (cells.digest(), cells.sha()) == (known, every)
        cells.held[7][-1] += 1
        assert cells.digest() != known
