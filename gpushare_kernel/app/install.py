"""`jupyter gpushare install` and `uninstall`: for one person, one environment, or a hub."""

from __future__ import annotations

import os
import pwd
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from jupyter_client.kernelspec import KernelSpecManager
from jupyter_core.paths import jupyter_data_dir
from traitlets import Bool, List, Unicode

from gpushare_kernel.app import hub_advice, hub_install, kernelspecs, unit
from gpushare_kernel.app.base import BrokerCommand, Command, say
from gpushare_kernel.core.errors import BadDeclaration
from gpushare_kernel.hub import culling, servers, snippet
from gpushare_kernel.hub.settings import TLJH
from gpushare_kernel.interpreters import STARTUP_FILE
from gpushare_kernel.transport.options import merged, options_of, words_of
from gpushare_kernel.transport.places import SYSTEM_RUNTIME

_ROOT_NEEDED = "install and uninstall --hub write into /etc: run them as root (sudo {command})."


class _Placed(Command):
    """A command that acts on a place."""

    user = Bool(False, config=True, help="For you, in every environment.")  # noqa: FBT003  traitlets
    sys_prefix = Bool(False, config=True, help="For everybody who uses this environment.")  # noqa: FBT003
    hub = Bool(False, config=True, help="For everybody on this host: a system broker, and JupyterHub.")  # noqa: FBT003  # fmt: skip
    root = Unicode("/", config=True, help="Where the host's files are: for images. With --hub.")
    hub_config = List(
        Unicode(),
        config=True,
        help="The hub's jupyterhub_config.py, where it is not found; several times for several.",
    )
    flags = {  # noqa: RUF012  traitlets reads it from the class
        **Command.flags,
        "user": ({"_Placed": {"user": True}}, "For you, in every environment."),
        "sys-prefix": (
            {"_Placed": {"sys_prefix": True}},
            "For everybody who uses this environment.",
        ),
        "hub": (
            {"_Placed": {"hub": True}},
            "For everybody on this host: a system broker, and JupyterHub.",
        ),
    }
    aliases = {  # noqa: RUF012
        **Command.aliases,
        "root": "_Placed.root",
        "hub-config": "_Placed.hub_config",
    }

    def chosen(self) -> list[Path]:
        """Return the folders for kernelspecs that were asked for."""
        places = [(self.user, user_kernels()), (self.sys_prefix, environment_kernels())]
        return [place for wanted, place in places if wanted]

    def hubs(self) -> list[Path]:
        """Return the configuration files of the hubs here: those named, else those of hubs that run, else where they usually are."""
        named = [Path(path).absolute() for path in self.hub_config]
        return named or hub_advice.hubs_here(Path(self.root))

    def check_root(self) -> None:
        """Refuse what could not be written."""
        if os.geteuid() != 0 and self.root == "/":
            raise BadDeclaration(_ROOT_NEEDED.format(command=shlex.join(sys.argv)))


class InstallApp(_Placed, BrokerCommand):
    """Writes what is needed."""

    name = "jupyter-gpushare-install"
    description = """Make Jupyter start kernels as shared ones: --user, --sys-prefix for this environment, or --hub for everybody on this host.

    --hub writes a service for the system broker (with the options of `start`) and has JupyterHub's servers share. It prints what
    it writes, and with --dry-run it only prints. Run again, the broker keeps the options that are not given anew (--anew: it does not). --hub-api says where the hub tells who somebody is: only where all its servers
    run as one account."""
    not_done = "Nothing was written."
    dry_run = Bool(False, config=True, help="Print what would be written, and write nothing.")  # noqa: FBT003
    anew = Bool(False, config=True, help="With --hub: the broker has the options given now, and none that it had.")  # noqa: FBT003  # fmt: skip
    flags = {  # noqa: RUF012
        **_Placed.flags,
        "dry-run": (
            {"InstallApp": {"dry_run": True}},
            "Print what would be written, and write nothing.",
        ),
        "anew": (
            {"InstallApp": {"anew": True}},
            "With --hub: the broker has the options given now, and none that it had.",
        ),
    }
    # The broker's last: `--config` is its file of groups here.
    aliases = {**_Placed.aliases, **BrokerCommand.aliases}  # noqa: RUF012

    def start(self) -> None:
        """Write it, and say what to do next."""
        if sum((self.user, self.sys_prefix, self.hub)) != 1:
            msg = "install needs one place. Say --user (you, everywhere), --sys-prefix (this environment) or --hub (everybody on this host)."
            raise BadDeclaration(msg)
        arguments = self.broker_arguments()
        if self.hub:
            self._check_settings()
            self._install_hub(arguments)
            return
        if arguments or self.hub_config or self.anew or self.root != "/":
            msg = "options of the broker, --anew, --hub-api, --hub-config and --root go with --hub: a broker of your own is started as you say to jupyter gpushare start."
            raise BadDeclaration(msg)
        self._install_kernelspecs(self.chosen()[0])

    def _check_settings(self) -> None:
        """Refuse a file that is not there: the service would not start."""
        if self.settings is None:
            return
        path = Path(self.settings).absolute()
        if not (Path(self.root) / path.relative_to("/")).is_file():
            msg = f"--config: there is no file {path}. {self.not_done}"
            raise BadDeclaration(msg)

    def _install_kernelspecs(self, kernels: Path) -> None:
        if self.dry_run:
            for name in (kernelspecs.NATIVE, kernelspecs.LAUNCHED):
                say(f"{kernels / name / 'kernel.json'} would be written.")
            return
        for line in kernelspecs.install(kernels):
            say(line)
        used = Path(KernelSpecManager().find_kernel_specs().get(kernelspecs.NATIVE, ""))
        if used != kernels / kernelspecs.NATIVE:
            if not kernelspecs.shares(used):
                say(_not_yet(used, "--user" if self.user else "--sys-prefix"))
                self.exit(1)
            say(f"Jupyter here prefers {used}, which shares too.")
        say("Running servers keep their kernels; new kernels share.")

    def _with_those_before(self, asked: Sequence[str]) -> list[str]:
        """Return the options of the installation that is there, but for those asked for otherwise, and say which stay: none is lost in silence."""
        try:
            text = (Path(self.root) / unit.PLACE.relative_to("/")).read_text(encoding="utf-8")
        except FileNotFoundError:
            return list(asked)
        before, anew = options_of(unit.arguments_of(text)), options_of(asked)
        kept = words_of({name: value for name, value in before.items() if name not in anew})
        if not kept:
            return list(asked)
        if self.anew:
            say(f"Without what the broker had before: {shlex.join(kept)}")
            return list(asked)
        say(f"The broker keeps {shlex.join(kept)} (--anew: it does not).")
        arguments = merged(words_of(before), asked)
        self.check_arguments(arguments)
        return arguments

    def _install_hub(self, asked: Sequence[str]) -> None:
        arguments = self._with_those_before(asked)
        hubs = self.hubs()
        startup = Path(sys.prefix) / STARTUP_FILE
        planned = hub_install.plan(
            Path(self.root), sys.executable, startup, arguments, hubs, named=bool(self.hub_config)
        )
        if self.dry_run:
            for one in planned.files:
                say(f"--- {one.path}: {one.why}\n{one.text}")
            for path in planned.blocks:
                say(f"--- {path}: would load {snippet.PLACE}, by three lines at its end")
            say(
                f"--- {hub_install.NOTE}: what uninstall takes back\n{hub_install.note_of(planned)}"
            )
            for path, text in (
                kernelspecs.planned(environment_kernels()) if self.root == "/" else ()
            ):
                say(f"--- {path}: a kernel that shares\n{text}")
        else:
            self.check_root()
            for line in hub_install.write(planned):
                say(line)
            if self.root == "/":
                for line in kernelspecs.install(environment_kernels()):
                    say(line)
        self._advise(planned, hubs)

    def _advise(self, planned: hub_install.Plan, found_hubs: Sequence[Path]) -> None:
        hubs = list(dict.fromkeys([*found_hubs, *planned.blocks]))
        tljh = any(str(one.path).startswith(str(TLJH)) for one in planned.files)
        if not tljh and not hubs:
            say(
                f'No configuration of a JupyterHub was found. Add to yours: load_subconfig("{snippet.PLACE}"), or name it: --hub-config FILE.'
            )
        here = self.root == "/"
        found = hub_advice.look([planned.at(path) for path in hubs], planned.at(TLJH), here=here)
        if found.shared_uid and not self.hub_api:
            say(
                "This hub's servers all run as one account: to tell people apart, add --hub-api URL (JUPYTERHUB_API_URL in a server's terminal)."
            )
        for text in (*hub_advice.replaced(found), *culling.sentences(found)):
            say(text)
        waits = servers.without_text(servers.servers()) if here and not found.replaced else ""
        if waits:
            say(waits)
        restart = "tljh-config reload hub" if tljh else "systemctl restart jupyterhub (or however yours is started; by its defaults that ends everybody's notebooks: docs/admin/jupyterhub.md)"  # fmt: skip
        say("Next, as root:")
        say(f"  systemctl daemon-reload && systemctl enable --now {unit.NAME}")
        say(f"  {restart}")
        if self.dry_run:
            say("Nothing was written.")


def _not_yet(used: Path, given: str) -> str:
    """Return what to do where Jupyter prefers another python3 than the one written: there is one place that it takes."""
    said = f"Kernels do NOT share yet: Jupyter here prefers {used}."
    places = {"--user": user_kernels(), "--sys-prefix": environment_kernels()}
    right = next(
        (name for name, kernels in places.items() if used == kernels / kernelspecs.NATIVE), ""
    )
    if not right or right == given:
        return f"{said} Remove that one, or set {servers.VARIABLE}={servers.OURS}."
    return f"{said} Run: jupyter gpushare uninstall {given}; jupyter gpushare install {right}"


class UninstallApp(_Placed):
    """Takes it back."""

    name = "jupyter-gpushare-uninstall"
    description = (
        "Take back what install wrote: at --user, at --sys-prefix, of --hub, or wherever it is."
    )

    def start(self) -> None:
        """Take it back, say what was done, and what others have set that would stop kernels."""
        everywhere = not (self.user or self.sys_prefix or self.hub)
        folders = [user_kernels(), environment_kernels()] if everywhere else self.chosen()
        if self.hub and self.root == "/":
            folders = list(dict.fromkeys([*folders, environment_kernels()]))
        done = [line for folder in folders for line in kernelspecs.uninstall(folder)]
        if self.hub or (everywhere and os.geteuid() == 0):
            if self.hub:
                self.check_root()
            done += self._uninstall_hub()
        for line in done or ["Nothing of ours is installed there."]:
            say(line)
        self._warn(servers_too=self.root == "/" and (self.hub or everywhere))

    def _uninstall_hub(self) -> list[str]:
        root = Path(self.root)
        was_there = (root / unit.PLACE.relative_to("/")).exists()
        done = hub_install.take_back(root, self.hubs())
        if was_there and self.root == "/":
            gone = "" if not (SYSTEM_RUNTIME / "broker.sock").exists() else f"systemctl disable --now {unit.NAME}; "  # fmt: skip
            done.append(
                f"Next, as root: {gone}systemctl daemon-reload; then restart the hub: its servers keep the variable until they are restarted."
            )
        return done

    def _warn(self, *, servers_too: bool) -> None:
        """A variable that is left over would stop every kernel, once the package is gone."""
        homes = [Path.home()]
        if os.geteuid() == 0:
            homes += [Path(one.pw_dir) for one in pwd.getpwall() if one.pw_dir.startswith("/home/")]
        left = list(snippet.left_over(Path(self.root), homes, self.hubs()))
        if os.environ.get(servers.VARIABLE) == servers.OURS:
            left.append("this shell's environment")
        for place in left:
            say(
                f"{servers.VARIABLE}={servers.OURS} is still set by {place}. Take it out: without the package every kernel started from there would fail."
            )
        running = [one.name for one in servers.servers() if one.shares] if servers_too else []
        if running:
            count = "1 server still has it" if len(running) == 1 else f"{len(running)} servers still have it"  # fmt: skip
            say(
                f"{count} until restarted: {', '.join(running)}. Restart before the package is removed."
            )


def user_kernels() -> Path:
    """Return where a user's kernelspecs are."""
    return Path(jupyter_data_dir()) / "kernels"


def environment_kernels() -> Path:
    """Return where this environment's kernelspecs are."""
    return Path(sys.prefix) / "share" / "jupyter" / "kernels"
