"""`%%gpulane --pack`: what the line says, what is declared to the broker, and the bundle that the cell has. Packing itself is played."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from gpushare_magics.args import Declaration, next_line, parse
from gpushare_magics.pack_options import Packing
from IPython.core.interactiveshell import ExecutionResult, InteractiveShell

from gpushare_kernel import nwv
from gpushare_kernel.client import api
from gpushare_kernel.client.shown import Report
from gpushare_kernel.core.errors import BadDeclaration, UserError
from gpushare_kernel.core.values import MiB
from gpushare_kernel.nwv.bundle import Bundle
from gpushare_kernel.wire.messages import End, Submit
from tests.client.scripted_broker import ScriptedBroker, obliging
from tests.nwv.bundles import made, nets

Run = Callable[[str], ExecutionResult]
Capture = pytest.CaptureFixture[str]
LINE = "%%gpulane --pack digits=t1,wine=net --ratio 4 --bits 8 --max-drop 0.03"


@dataclass
class Task:
    """As much of a task as the magic sees."""

    model: torch.nn.Module


class Packer:
    """Plays `nwv.pack`: says what it was asked for, and packs without training."""

    def __init__(self) -> None:
        self.asked: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self.error: BaseException | None = None
        self.result: Any = None

    def __call__(self, given: dict[str, Any], **said: Any) -> Any:
        self.asked.append((given, said))
        if self.error is not None:
            raise self.error
        one = made({name: getattr(thing, "model", thing) for name, thing in given.items()}, bits=8)

        class Shown:
            def with_scratch(self, scratch: int) -> Shown:
                self.scratch = scratch
                return self

            def __str__(self) -> str:
                return f"Packed 2 models, scratch {self.scratch}"

            def _repr_html_(self) -> str:
                return "<p>Packed 2 models"

        @dataclass
        class Result:
            packed: Any
            report: Any

        self.result = Result(one.packed, Shown())
        self.plain = one.plain
        return self.result


@pytest.fixture
def packer(monkeypatch: pytest.MonkeyPatch) -> Packer:
    """Packing, played."""
    played = Packer()
    monkeypatch.setitem(vars(nwv), "pack", played)
    monkeypatch.setitem(vars(nwv), "Task", Task)
    return played


def test_two_nets_are_packed_in_earnest(shell: InteractiveShell, capsys: Capture) -> None:
    """Nothing is played: bare modules are merged without training, that is said, and the bundle computes what was packed."""
    assert shell.extension_manager is not None
    shell.extension_manager.load_extension("gpushare_magics")
    torch.manual_seed(0)
    shell.user_ns.update({name: torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8)) for name in ("n1", "n2")}, seen=[], x=torch.randn(3, 32))  # fmt: skip
    done = shell.run_cell("%%gpulane --pack a=n1,b=n2 --ratio 1.2\nseen += [bundle['a'](x), bundle['b'](x), bundle['a'].unpacked()(x)]")  # fmt: skip
    out = capsys.readouterr().out
    assert done.success, out
    first, second, again = shell.user_ns["seen"]
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert first.shape == second.shape == (3, 8)
    assert "times larger, all bytes counted" in out  # with the scratch of nets so small
    assert "scratch" in out


class Wrapped(torch.nn.Module):
    """A module that calls a part of it `model`, as many do."""

    def __init__(self) -> None:
        super().__init__()
        self.model = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU())
        self.head = torch.nn.Linear(64, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.model(x))
        return found


def test_a_module_with_a_part_called_model_is_no_task(
    shell: InteractiveShell, capsys: Capture
) -> None:
    """It was packed whole, and then its part was opened in its place."""
    assert shell.extension_manager is not None
    shell.extension_manager.load_extension("gpushare_magics")
    shell.user_ns.update(n1=Wrapped(), n2=Wrapped(), seen=[], x=torch.randn(3, 32))
    done = shell.run_cell("%%gpulane --pack a=n1,b=n2 --ratio 1.2\nseen.append(bundle['a'](x))")
    assert done.success, capsys.readouterr().out
    assert shell.user_ns["seen"][0].shape == (3, 32)


@pytest.fixture
def broker_that_admits(monkeypatch: pytest.MonkeyPatch, broker: ScriptedBroker, kernel_environment: dict[str, str]) -> ScriptedBroker:  # fmt: skip
    """A session, and a broker that admits all."""
    for name, value in kernel_environment.items():
        monkeypatch.setenv(name, value)
    broker.serve(obliging)
    return broker


@pytest.fixture
def run(shell: InteractiveShell, packer: Packer) -> Run:
    """Run cells in a shell that has a task and a module, and no broker."""
    assert shell.extension_manager is not None
    shell.extension_manager.load_extension("gpushare_magics")
    models = nets(2)
    shell.user_ns.update(t1=Task(models["net0"]), net=models["net1"], seen=[], x=torch.ones(1, 1, 8, 8), number=3)  # fmt: skip
    return lambda cell: shell.run_cell(cell, store_history=False)


def test_a_line_is_read() -> None:
    """Names with their variables; a variable alone is a name, too."""
    assert parse("2GiB --pack digits=t1,wine=t2 --ratio 4 --bits=8 --max-drop 0.03") == Declaration(
        size="2GiB", pack=Packing((("digits", "t1"), ("wine", "t2")), 4.0, 8, 0.03)
    )
    assert parse("--pack t1,t2 --ratio 1.5").pack == Packing((("t1", "t1"), ("t2", "t2")), 1.5)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("--ratio 4", r"--ratio says how models are packed, and the line packs none\. Write .*--pack"),
        ("--max-drop 1", "--max-drop says how"),
        ("--pack a=b,,c=d", "'' is none"),
        ("--pack digits=a.b", r"name=variable with commas and no spaces between, and 'digits=a\.b' is none"),
        ("--pack a=b --bits 8", r"--pack needs --ratio: how many times less memory .*Write for example --ratio 1\.6"),
        ("--pack a=b,a=c", r"a is there twice \(b, c\)"),
        ("--pack a=b --ratio much", r"--ratio is a number of 1 or more .*, not 'much'"),
        ("--pack a=b --ratio 0.5", "not '0.5'"),
        ("--pack a=b --ratio 2 --max-drop nan", "--max-drop is a number of 0 or more"),
        ("--pack a=b --ratio 2 --bits 5", "--bits is 8 or 4 .*, not '5'"),
        ("--pack a=b --class RT --period 1s --deadline 1s --model net --input x", "--pack and --class RT exclude each other"),
        ("--pack a=b --dry-run", "--pack and --dry-run exclude each other"),
    ],
)  # fmt: skip
def test_a_line_that_makes_no_sense_is_refused(text: str, says: str) -> None:
    """The rule, what was written, what to write."""
    with pytest.raises(BadDeclaration, match=says):
        parse(text)


def test_the_line_for_next_time_packs_again() -> None:
    """All of what was written."""
    said = next_line(parse("2GiB --pack a=b,c=d --ratio 4 --bits 8"), Report("j1", *(0,) * 10))  # type: ignore[arg-type]
    assert said.endswith("--pack a=b,c=d --ratio 4 --bits 8")
    assert parse(said.removeprefix("%%gpulane")).pack is not None


def test_a_cell_has_its_bundle(run: Run, shell: InteractiveShell, packer: Packer, capsys: Capture) -> None:  # fmt: skip
    """As packed, by the names in the line; it stays afterwards, and what came of it is shown."""
    assert run(f"{LINE}\nseen += [bundle['digits'](x), bundle['wine'](x)]").success
    given, said = packer.asked[0]
    assert given == {"digits": shell.user_ns["t1"], "wine": shell.user_ns["net"]}
    assert said == {"ratio": 4.0, "bits": 8, "max_drop": 0.03}
    x = shell.user_ns["x"]
    for name, answer in zip(("digits", "wine"), shell.user_ns["seen"], strict=True):
        with torch.no_grad():
            assert torch.equal(answer, packer.plain[name](x))
    assert isinstance(shell.user_ns["bundle"], Bundle)
    out = capsys.readouterr().out
    assert f"Packed 2 models, scratch {shell.user_ns['bundle'].sizes().scratch}" in out
    assert "t1, net still hold" in out


def test_what_is_not_said_is_left_to_pack(run: Run, packer: Packer) -> None:
    """No option is invented."""
    assert run("%%gpulane --pack t1 --ratio 2\nseen.append(1)").success
    assert packer.asked[0][1] == {"ratio": 2.0}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--pack digits=gone", "--pack digits=gone: there is no variable gone. Run the cell that makes it first."),
        ("--pack t1,digits=number", "number must be a gpushare.nwv.Task or a torch module, and is a int"),
    ],
)  # fmt: skip
def test_what_cannot_be_packed_does_not_run(  # noqa: PLR0917
    run: Run, shell: InteractiveShell, packer: Packer, capsys: Capture, line: str, says: str
) -> None:
    """It is said before anything waits, and nothing of the cell has run."""
    assert not run(f"%%gpulane {line} --ratio 2\nseen.append(1)").success
    out = capsys.readouterr()
    assert says in out.out + out.err
    assert "gpushare: %%gpulane --pack" in out.out + out.err
    assert "UsageError" not in out.out + out.err
    assert shell.user_ns["seen"] == []
    assert packer.asked == []


def test_an_interrupt_while_packing_says_what_was_interrupted(run: Run, shell: InteractiveShell, packer: Packer, capsys: Capture) -> None:  # fmt: skip
    """Nobody was in a queue."""
    packer.error = KeyboardInterrupt()
    assert not run(f"{LINE}\nseen.append(1)").success
    out = capsys.readouterr().out
    assert "Packing was interrupted: the rounds that were done are kept" in out
    assert "queue" not in out
    assert shell.user_ns["seen"] == []


def test_an_interrupt_while_it_is_opened_too(run: Run, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:  # fmt: skip
    """The cell has its lane by then."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Bundle, "__init__", interrupted)
    assert not run(f"{LINE}\nseen.append(1)").success
    out = capsys.readouterr().out
    assert "Interrupted while the bundle was opened" in out
    assert "queue" not in out


@pytest.mark.parametrize(
    ("size", "says"),
    [
        ("6Gib6", "is not a size"),
        ("6", "has no unit"),
        ("6GiB -p 2GiB", "exclude each other"),
        ("--weight 0", "weight"),
        ("--time soon", "soon"),
    ],
)
def test_a_line_that_is_wrong_is_so_before_anything_is_packed(run: Run, packer: Packer, capsys: Capture, size: str, says: str) -> None:  # fmt: skip
    """Packing may take minutes."""
    assert not run(f"%%gpulane {size} --pack t1 --ratio 2\nseen.append(1)").success
    assert says in capsys.readouterr().out
    assert packer.asked == []


def test_a_bundle_can_be_saved_and_has_its_report(run: Run, shell: InteractiveShell, packer: Packer, tmp_path: Path) -> None:  # fmt: skip
    """What packing gave is in the notebook, without a second copy of the weights."""
    assert run(f"{LINE}\nbundle.save('{tmp_path / 'b.safetensors'}')").success
    assert shell.user_ns["bundle"].packing is packer.result.report
    again = Bundle(nwv.Packed.load(tmp_path / "b.safetensors"), nets_named(shell), device="cpu")
    x = shell.user_ns["x"]
    for name in again:
        assert torch.equal(again[name](x), shell.user_ns["bundle"][name](x))


def nets_named(shell: InteractiveShell) -> dict[str, torch.nn.Module]:
    """The modules, by the names in the line."""
    return {"digits": shell.user_ns["t1"].model, "wine": shell.user_ns["net"]}


def test_packing_that_fails_is_the_cells_error(run: Run, shell: InteractiveShell, packer: Packer, capsys: Capture) -> None:  # fmt: skip
    """The cell has not run, and there is no bundle."""
    packer.error = UserError(
        "wine loses 4 points, and max_drop is 0.03. Write ratio=1.6, max_drop=0.05 or bits=8."
    )
    assert not run(f"{LINE}\nseen.append(1)").success
    out = capsys.readouterr().out
    assert (
        "wine loses 4 points, and --max-drop is 0.03. Write --ratio 1.6, --max-drop 0.05 or --bits 8."
        in out
    )  # as the line has them
    assert shell.user_ns["seen"] == []
    assert "bundle" not in shell.user_ns


@pytest.mark.parametrize(
    ("size", "persistent", "ephemeral", "whole"),
    [
        ("", None, 512 * MiB, None),
        ("-e 1MiB", None, MiB, None),
        ("-p 64MiB -e 1MiB", 64 * MiB, MiB, None),
        ("64MiB", 0, 0, 64 * MiB),
    ],
)
def test_what_the_bundle_takes_is_declared(  # noqa: PLR0917
    broker_that_admits: ScriptedBroker, run: Run, shell: InteractiveShell, size: str, persistent: int | None, ephemeral: int, whole: int | None
) -> None:  # fmt: skip
    """Packing has a lane of its own, over before the cell's is asked for; that one keeps the bundle, unless the line says otherwise."""
    assert api._session is not None
    api._session.wait_attached(20)
    assert run(f"%%gpulane {size} --pack digits=t1,wine=net --ratio 2\nseen.append(bundle.sizes().total)").success  # fmt: skip
    told = [one for one in broker_that_admits.seen if isinstance(one, Submit | End)]
    packing, packed, cell, _ = told
    assert isinstance(packing, Submit)
    assert (packing.name, packing.size, packing.persistent) == ("packing digits, wine", None, 0)
    weights = 4 * sum(one.numel() for model in nets_named(shell).values() for one in model.parameters())  # fmt: skip
    assert packing.ephemeral is not None
    assert 8 * weights < packing.ephemeral - 512 * MiB < 30 * weights
    assert packing.code
    assert isinstance(packed, End)
    assert isinstance(cell, Submit)
    total = shell.user_ns["seen"][0]
    if whole is None:
        assert (cell.persistent, cell.ephemeral) == (total if persistent is None else persistent, ephemeral)  # fmt: skip
    assert cell.size == whole
