"""`jupyter gpushare install` and `uninstall`: kernelspecs, not a shell variable."""

from __future__ import annotations

import sys
from pathlib import Path

from jupyter_client.kernelspec import KernelSpecManager
from jupyter_core.paths import jupyter_data_dir
from traitlets import Bool

from gpushare_kernel.app import kernelspecs
from gpushare_kernel.app.base import Command, say
from gpushare_kernel.core.errors import BadDeclaration


class _Placed(Command):
    """A command that acts on a place for kernelspecs."""

    user = Bool(False, config=True, help="For you, in every environment.")  # noqa: FBT003  traitlets
    sys_prefix = Bool(False, config=True, help="For everybody who uses this environment.")  # noqa: FBT003
    flags = {  # noqa: RUF012  traitlets reads it from the class
        **Command.flags,
        "user": ({"_Placed": {"user": True}}, "For you, in every environment."),
        "sys-prefix": (
            {"_Placed": {"sys_prefix": True}},
            "For everybody who uses this environment.",
        ),
    }

    def chosen(self) -> list[Path]:
        """Return the folders that were asked for."""
        places = [(self.user, user_kernels()), (self.sys_prefix, environment_kernels())]
        return [place for wanted, place in places if wanted]


class InstallApp(_Placed):
    """Writes the kernelspecs."""

    name = "jupyter-gpushare-install"
    description = "Make Jupyter start Python kernels as shared ones: --user, or --sys-prefix for this environment."

    def start(self) -> None:
        """Write them, and say so where Jupyter would look elsewhere first."""
        chosen = self.chosen()
        if len(chosen) != 1:
            msg = "install needs one place. Say --user (you, everywhere) or --sys-prefix (this environment)."
            raise BadDeclaration(msg)
        for line in kernelspecs.install(chosen[0]):
            say(line)
        used = Path(KernelSpecManager().find_kernel_specs().get(kernelspecs.NATIVE, ""))
        if used != chosen[0] / kernelspecs.NATIVE:
            say(f"But Jupyter here prefers {used}: use the other place (--user or --sys-prefix).")
        say("Running servers keep their kernels; new kernels share.")


class UninstallApp(_Placed):
    """Takes the kernelspecs back."""

    name = "jupyter-gpushare-uninstall"
    description = "Take back what install wrote: at --user, at --sys-prefix, or wherever it is."

    def start(self) -> None:
        """Take them back, and say what was done."""
        folders = self.chosen() or [user_kernels(), environment_kernels()]
        done = [line for folder in folders for line in kernelspecs.uninstall(folder)]
        for line in done or ["Nothing of ours is installed there."]:
            say(line)


def user_kernels() -> Path:
    """Return where a user's kernelspecs are."""
    return Path(jupyter_data_dir()) / "kernels"


def environment_kernels() -> Path:
    """Return where this environment's kernelspecs are."""
    return Path(sys.prefix) / "share" / "jupyter" / "kernels"
