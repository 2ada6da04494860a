"""`jupyter gpushare`: the entry point and its commands."""

from __future__ import annotations

import os
import sys

from gpushare_kernel.app.base import NO_BROKER, Command, complain
from gpushare_kernel.core.errors import BrokerUnavailable, GpushareError


class GpuShareApp(Command):
    """Dispatches to the commands."""

    name = "jupyter-gpushare"
    description = "Share one device between many Jupyter notebooks."
    examples = """
    jupyter gpushare demo                          # see it work
    jupyter gpushare install --sys-prefix          # Python notebooks of this environment take part
    jupyter gpushare status --json                 # what goes on, for programs
    jupyter gpushare run 6GiB -- python train.py   # a script takes turns with the notebooks
    """
    subcommands = {  # noqa: RUF012  traitlets reads it from the class
        "start": (
            "gpushare_kernel.app.start.StartApp",
            "start this host's broker in the background",
        ),
        "stop": ("gpushare_kernel.app.stop.StopApp", "resume everybody and end the broker"),
        "status": (
            "gpushare_kernel.app.status.StatusApp",
            "who shares the device, who waits, and why",
        ),
        "top": (
            "gpushare_kernel.app.top.TopApp",
            "the same while it happens: memory, turns, shares, the queue",
        ),
        "pause": (
            "gpushare_kernel.app.pause.PauseApp",
            "pause what a notebook of yours runs on the device; it keeps its memory",
        ),
        "resume": ("gpushare_kernel.app.pause.ResumeApp", "let it run again"),
        "park": (
            "gpushare_kernel.app.pause.ParkApp",
            "set a notebook's GPU memory aside with all that is in it; its next cell has it back",
        ),
        "unpark": (
            "gpushare_kernel.app.pause.UnparkApp",
            "put it back now, or as soon as there is room",
        ),
        "policy": (
            "gpushare_kernel.app.policy.PolicyApp",
            "who comes next on each device, and another policy, live",
        ),
        "drain": (
            "gpushare_kernel.app.admin.DrainApp",
            "begin or end a maintenance: what runs goes on, nothing new begins",
        ),
        "evict": (
            "gpushare_kernel.app.admin.EvictApp",
            "have a user's or a notebook's GPU memory given back, nothing lost",
        ),
        "announce": (
            "gpushare_kernel.app.admin.AnnounceApp",
            "tell every notebook something",
        ),
        "reload": (
            "gpushare_kernel.app.admin.ReloadApp",
            "read the configuration of groups and administrators again",
        ),
        "audit": ("gpushare_kernel.app.admin.AuditApp", "what administrators did"),
        "run": (
            "gpushare_kernel.app.run.RunApp",
            "run any command so that it shares the device too",
        ),
        "hosts": (
            "gpushare_kernel.app.hosts.HostsApp",
            "what a gateway sees of its hosts, and where a kernel would go",
        ),
        "replay": (
            "gpushare_kernel.app.replay.ReplayApp",
            "replay a trace or a recording under other policies",
        ),
        "realtime": (
            "gpushare_kernel.app.realtime.RealtimeApp",
            "prove the deadlines of a set of tasks, or see them simulated",
        ),
        "demo": (
            "gpushare_kernel.app.demo.command.DemoApp",
            "run three notebooks that share this machine",
        ),
        "broker": ("gpushare_kernel.app.start.ForegroundApp", "run the broker in the foreground"),
        "doctor": (
            "gpushare_kernel.app.doctor.DoctorApp",
            "say what is well, and what to do where it is not",
        ),
        "install": (
            "gpushare_kernel.app.install.InstallApp",
            "make Jupyter start Python kernels as shared ones",
        ),
        "uninstall": ("gpushare_kernel.app.install.UninstallApp", "take that back"),
    }

    def start(self) -> None:
        """Run the command, or say which there are."""
        super().start()
        self.print_help()
        self.exit(1)


def main(argv: list[str] | None = None) -> None:
    """Run the command line; errors are one line on stderr. Where nobody reads what it prints it ends without a word."""
    try:
        try:
            _run(argv)
        finally:
            sys.stdout.flush()  # here: at the interpreter's end it would be complained of
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


def _run(argv: list[str] | None) -> None:
    try:
        GpuShareApp.launch_instance(argv)
    except BrokerUnavailable as problem:
        complain(problem)
        raise SystemExit(NO_BROKER) from None
    except BrokenPipeError:
        raise
    except (GpushareError, OSError) as problem:
        complain(problem)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        complain("interrupted")
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
