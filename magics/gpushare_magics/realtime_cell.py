"""A cell with a deadline: `%%gpulane --class RT --period 33ms --deadline 30ms --model net --input frame`."""

from __future__ import annotations

import ast
import base64
import contextlib
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError

from gpushare_kernel.core.errors import BadDeclaration, UserError

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from gpushare_magics.args import Declaration
    from gpushare_magics.lines import Output

NAME = "pipe"
"""What the cell calls its pipeline, where it names model and input."""


class NoDeadline(BadDeclaration, UsageError):
    """A cell that cannot have the deadline that its line declares; shown as all that is wrong with a line."""


def check(declaration: Declaration, variables: Mapping[str, Any], body: str) -> None:
    """Refuse a cell that cannot have its deadline, before anything waits.

    Raises
    ------
    NoDeadline
        Where a name is no variable, or the cell does not open exactly one pipeline itself.
    """
    given = declaration.realtime
    assert given is not None  # noqa: S101 - for the type checker
    if given.model is None:
        found = _opened(body)
        if found != 1:
            msg = (
                f"%%gpulane --class RT: the cell must open exactly one gpushare.realtime.Pipeline, and opens {found}. "
                "Or name your model and an example of its input: --model net --input frame."
            )
            raise NoDeadline(msg)
        return
    for option, name in (("--model", given.model), ("--input", given.input)):
        if name not in variables:
            msg = f"%%gpulane {option} {name}: there is no variable of that name. Run the cell that makes it first."
            raise NoDeadline(msg)


def _opened(body: str) -> int:
    """Count the calls of `Pipeline`, those of best effort aside; a text that is no Python yet is IPython's to complain of."""
    try:
        tree = ast.parse(body)
    except SyntaxError:
        return body.count("Pipeline(")
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    called = [call.func for call in calls if not _is_best_effort(call)]
    names = (one.attr if isinstance(one, ast.Attribute) else getattr(one, "id", "") for one in called)  # fmt: skip
    return sum(name == "Pipeline" for name in names)


def _is_best_effort(call: ast.Call) -> bool:
    """Tell whether a call says `class_="BE"`: such a pipeline has no deadline, whatever the line says."""
    said = (one.value for one in call.keywords if one.arg == "class_")
    return any(isinstance(one, ast.Constant) and str(one.value).upper() == "BE" for one in said)


class RealTimeCell:
    """One running cell with a deadline."""

    def __init__(self, declaration: Declaration, shell: InteractiveShell, output: Output) -> None:
        self._declaration, self._shell, self._output = declaration, shell, output
        self._stack = contextlib.ExitStack()
        #: What the line says, and what the cell opened under it.
        self._declared: Any = None

    def enter(self) -> None:
        """Open the pipeline, or have the one that the cell opens be what the line says."""
        from gpushare_kernel.realtime.pipeline import Pipeline, declared  # noqa: PLC0415

        declaration, given = self._declaration, self._declaration.realtime
        assert given is not None  # noqa: S101 - for the type checker
        names = self._shell.user_ns
        self._declared = self._stack.enter_context(
            declared(given.period, given.deadline, declaration.weight, declaration.name)
        )
        if given.model is not None and given.input is not None:
            names[NAME] = Pipeline(names[given.model], names[given.input])

    def leave(self, *, failed: bool) -> None:
        """Close what was opened, and show what became of it."""
        mine, self._declared = self._declared, None
        if mine is None:
            return
        self._stack.close()
        for pipe in mine.opened:
            pipe.close(
                wait=not failed
            )  # it stays in the notebook: pipe.report() has every response
            if not self._output.quiet:
                report = pipe.report()
                table = report.table()
                self._output.table(table.text(), table.html())
                if report.done and not self._output.in_console:
                    self._draw(report)

    def _draw(self, report: Any) -> None:
        """Show how long the responses were, where there is matplotlib."""
        picture = io.BytesIO()
        with contextlib.suppress(UserError):
            report.plot().savefig(picture, format="png", dpi=96)
            png = base64.b64encode(picture.getvalue()).decode()
            self._output.publish_bundle(
                {"image/png": png, "text/plain": f"Responses of {report.name}"}
            )
