"""A cell with packed models: `%%gpulane --pack digits=t1,wine=t2 --ratio 1.6`, and the cell has `bundle`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError

from gpushare_kernel.client.display import Interrupted
from gpushare_kernel.core.errors import BadDeclaration, UserError
from gpushare_kernel.core.sizes import format_size, parse_size
from gpushare_magics.pack_options import OPTIONS, as_in_line

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from gpushare_magics.args import Declaration
    from gpushare_magics.lines import Output
    from gpushare_magics.pack_options import Packing

NAME = "bundle"
"""What the notebook calls its packed models, in this cell and after it."""
EPHEMERAL = "512MiB"
"""What a cell with packed models is taken to hold beside them, where it does not say; and packing, for data and activations."""
INTERRUPTED = "Packing was interrupted: the rounds that were done are kept, and the same line goes on from them. The cell has not run."
NOT_OPENED = "Interrupted while the bundle was opened. The cell has not run."


class NotPackable(BadDeclaration, UsageError):
    """A line that names what cannot be packed; shown as all that is wrong with a line."""


class PackCell:
    """One cell that packs: checked at once, packed in a lane of its own, opened in the cell's."""

    def __init__(self, packing: Packing, shell: InteractiveShell, output: Output) -> None:
        self._packing, self._shell, self._output = packing, shell, output
        self._given = _given(packing, shell.user_ns)
        self._packed: Any = None
        self._report: Any = None

    @property
    def name(self) -> str:
        """What its packing is called in lists."""
        return f"packing {', '.join(self._given)}"

    @property
    def code(self) -> str:
        """What names this packing to whoever learns what it takes: models, variables, and how."""
        return repr(self._packing)

    @property
    def ephemeral(self) -> str:
        """What packing is taken to hold while it goes on, as a size."""
        from gpushare_kernel.nwv.resident import packing  # noqa: PLC0415 - torch, hardly ever

        said = self._packing
        size = packing(self._modules(), said.ratio or 1.0, said.bits)
        return f"{size + parse_size(EPHEMERAL)}B"

    def pack(self) -> None:
        """Pack the models, which may train them for a while, and show what came of it.

        Raises
        ------
        Interrupted
            Where an interrupt comes meanwhile.
        """
        from gpushare_kernel import nwv  # noqa: PLC0415 - torch, hardly ever
        from gpushare_kernel.nwv.resident import scratch  # noqa: PLC0415

        said = {name: getattr(self._packing, name) for name in OPTIONS}
        try:
            result = nwv.pack(self._given, **{k: v for k, v in said.items() if v is not None})
        except KeyboardInterrupt:
            raise Interrupted(INTERRUPTED) from None
        except UserError as problem:
            problem.args = (as_in_line(str(problem)),)
            raise
        self._packed = result.packed
        self._report = result.report.with_scratch(scratch(result.packed, self._modules()))
        if not self._output.quiet:
            self._output.table(str(self._report), self._report._repr_html_())

    def declared(self, declaration: Declaration) -> Declaration:
        """Return the line with what the bundle takes as what the notebook keeps, where the line does not say that itself."""
        if declaration.size is not None or declaration.persistent is not None:
            return declaration
        from gpushare_kernel.nwv.resident import needs  # noqa: PLC0415

        size = needs(self._packed, self._modules())
        return replace(declaration, persistent=f"{size}B", ephemeral=declaration.ephemeral or EPHEMERAL)  # fmt: skip

    def open(self) -> None:
        """Have the notebook's `bundle`, and say what its models take beside it."""
        from gpushare_kernel.nwv.bundle import Bundle  # noqa: PLC0415

        modules = self._modules()
        try:
            bundle = Bundle(self._packed, modules)
        except KeyboardInterrupt:
            raise Interrupted(NOT_OPENED) from None
        bundle.packing, self._packed = self._report, None
        self._shell.user_ns[NAME] = bundle
        kept = sum(one.nbytes for m in modules.values() for one in m.parameters() if one.device == bundle.device)  # fmt: skip
        if kept and not self._output.quiet:
            names = ", ".join(variable for _, variable in self._packing.models)
            self._output.show(f"{names} still hold {format_size(kept)} of weights beside the bundle. Give it back: del {names}")  # fmt: skip

    def _modules(self) -> dict[str, Any]:
        from gpushare_kernel import nwv  # noqa: PLC0415 - torch, hardly ever

        return {name: one.model if isinstance(one, nwv.Task) else one for name, one in self._given.items()}  # fmt: skip


def _given(packing: Packing, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tasks and modules that a line names.

    Raises
    ------
    NotPackable
        Where a name is no variable, or a variable is neither.
    """
    found = {}
    for name, variable in packing.models:
        if variable not in variables:
            msg = f"%%gpulane --pack {name}={variable}: there is no variable {variable}. Run the cell that makes it first."
            raise NotPackable(msg)
        found[name] = variables[variable]
        if not _is_packable(found[name]):
            msg = f"%%gpulane --pack {name}={variable}: {variable} must be a gpushare.nwv.Task or a torch module, and is a {type(found[name]).__name__}. Write {variable} = gpushare.nwv.Task(model, train, validate)."
            raise NotPackable(msg)
    return found


def _is_packable(thing: Any) -> bool:
    torch = sys.modules.get("torch")  # whoever has a module or a task has imported it
    if torch is None:
        return False
    from gpushare_kernel import nwv  # noqa: PLC0415

    return isinstance(thing, torch.nn.Module | nwv.Task)
