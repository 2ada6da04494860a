"""A kernel's argv for clients that know no provisioners: open a session, bind it to this process, become the kernel.

    python -m gpushare_kernel.app.launcher -f CONNECTION_FILE
    python -m gpushare_kernel.app.launcher -- PROGRAM ...       any other kernel's own argv

The session follows this process: exec keeps the pid. Where our provisioner started us, it has done
all of that; below a command that holds memory for all it starts there is nothing to do. Without a broker the kernel starts as it is, with one line.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from gpushare_kernel.core.errors import GpushareError
from gpushare_kernel.kernel_session import (
    STARTER,
    find_broker,
    granted,
    notebook_name,
    open_session,
    without_session,
)
from gpushare_kernel.transport.places import places


def main() -> None:
    """Become an IPython kernel, or the program that was named, shared where a broker is."""
    env = dict(os.environ)
    if env.get(STARTER) != str(os.getppid()) and not granted(env):
        env = launched_environment(env)
    words = sys.argv[1:]
    if words[:1] == ["--"]:
        os.execvpe(words[1], words[1:], env)  # noqa: S606  what the kernelspec says
    command = [sys.executable, "-m", "ipykernel_launcher", *words]
    os.execve(command[0], command, env)  # noqa: S606  our own interpreter


def launched_environment(env: Mapping[str, str]) -> dict[str, str]:
    """Open a session for this process; return the environment of its kernel."""
    bare = without_session(env)
    name = notebook_name(bare) or "gpushare"
    try:
        where = places()
        find_broker(where)
        session = open_session(
            where,
            name,
            kernel_id=env.get("KERNEL_ID", ""),
            language=env.get("KERNEL_LANGUAGE", "python"),
            weight=1.0,
            env=env,
        )
        session.bind(os.getpid())
    except (GpushareError, OSError) as problem:
        sys.stderr.write(
            f"gpushare: this kernel shares nothing: {' '.join(str(problem).split())}\n"
        )
        return bare
    if session.remark:
        sys.stderr.write(f"gpushare: {session.remark}\n")
    return session.joined(bare)


if __name__ == "__main__":
    main()
