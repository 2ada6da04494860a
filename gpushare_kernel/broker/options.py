"""What a broker is told when it starts, checked: every value that is wrong is refused with its rule."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from gpushare_kernel import __version__
from gpushare_kernel.broker.adoption import Foreign
from gpushare_kernel.broker.exporter import MOST_NAMED, NAMED
from gpushare_kernel.broker.hardware import AUTO, Parking
from gpushare_kernel.broker.metrics_address import parse_address
from gpushare_kernel.broker.overdraft import Over
from gpushare_kernel.core.errors import BadDeclaration, BadSize
from gpushare_kernel.core.policies import POLICIES, policy_named
from gpushare_kernel.core.sizes import parse_size
from gpushare_kernel.wire.recording import SUFFIX

LEAST = 0.01
"""A turn shorter than this (seconds) would be spent on its own end; less of a core is nothing to share."""


def parser() -> argparse.ArgumentParser:
    """Return the options of a broker."""
    found = argparse.ArgumentParser(prog="jupyter gpushare broker", description=__doc__)
    found.add_argument("--ready-fd", type=int, help=argparse.SUPPRESS)
    found.add_argument(
        "--service",
        action="store_true",
        help="run for a service manager, which starts it again after a crash: the guardian only resumes",
    )
    # By the guardian, after a crash: what was chosen live still holds.
    found.add_argument("--again", action="store_true", help=argparse.SUPPRESS)
    found.add_argument(
        "--idle-exit",
        type=_seconds,
        metavar="S",
        help="exit after S seconds without notebooks (0: never)",
    )
    found.add_argument(
        "--capacity", metavar="SIZE", help="memory to share (default: what is free now)"
    )
    found.add_argument(
        "--compute",
        type=_positive,
        metavar="CORES",
        help="cores to share (default: all we may use)",
    )
    found.add_argument(
        "--device",
        default=AUTO,
        metavar="WHICH",
        help="auto (GPUs, else the CPU), host, cuda, or GPUs by number or UUID: 0,1 (default auto)",
    )
    found.add_argument(
        "--foreign",
        choices=[one.value for one in Foreign],
        help="GPU processes of known users that nobody opened a session for: adopt them (default of a "
        "system broker) or ignore them",
    )
    found.add_argument(
        "--over",
        choices=[one.value for one in Over],
        help="whoever holds more than it was granted, and was paused for it in vain while others wait: tell only "
        "(default), or end its process",
    )
    found.add_argument(
        "--parking",
        choices=[one.value for one in Parking],
        help="whether GPU memory of idle notebooks, with all that is in it, goes to the host's memory while others wait for it: "
        "off (default), cold (by the driver's checkpoint), or warm (quiet torch notebooks move their own tensors first, which is quicker)",
    )
    found.add_argument(
        "--turn", type=_positive, default=0.1, metavar="S", help="length of a turn (default 0.1)"
    )
    found.add_argument(
        "--policy",
        type=_policy,
        default="fair",
        metavar="NAME",
        help=f"who comes next: {', '.join(POLICIES)} (default fair)",
    )
    found.add_argument(
        "--record",
        type=_file,
        metavar="FILE",
        help="write down every event, to be replayed (jupyter gpushare replay FILE.jsonl); only you can read it",
    )
    found.add_argument(
        "--arena",
        type=_size,
        metavar="SIZE",
        help="memory of the host into which GPU memory of idle notebooks may be set aside, in all (default: a quarter of it; 0: none)",
    )
    found.add_argument(
        "--arena-user",
        type=_size,
        metavar="SIZE",
        help="how much of it one user's notebooks may have (default: half)",
    )
    found.add_argument(
        "--hub-api",
        type=_hub,
        metavar="URL",
        help="the API of the JupyterHub (http://127.0.0.1:8081/hub/api) that tells who somebody is where many people share a uid",
    )
    found.add_argument(
        "--hub-uids",
        type=_uids,
        metavar="UIDS",
        help="the uids that many people share, with commas between (default: all)",
    )
    found.add_argument(
        "--config",
        type=_path,
        metavar="FILE",
        help="groups, caps, budgets and administrators (docs/admin/groups.md); a system broker reads /etc/gpushare/gpushare.toml where there is one",
    )
    found.add_argument(
        "--metrics",
        type=_address,
        metavar="WHERE",
        help="offer metrics to Prometheus at 127.0.0.1:9469 or unix:/run/gpushare/metrics.sock (needs the extra: metrics)",
    )
    found.add_argument(
        "--metrics-users",
        type=_named,
        metavar="N",
        help=f"how many people have a series of their own, those who use most; the others are one (default {NAMED}, at most {MOST_NAMED})",
    )
    found.add_argument(
        "--metrics-names",
        choices=["initials", "names"],
        help="what people are called there: initials, as everybody sees them (default), or names (default on a Unix socket)",
    )
    found.add_argument("--foreground", action="store_true", help="log to the terminal too")
    found.add_argument("--version", action="version", version=__version__)
    return found


def _address(text: str) -> str:
    """Where metrics are offered; kept as it was written, for a broker that is started again."""
    try:
        parse_address(text)
    except BadDeclaration as problem:
        raise argparse.ArgumentTypeError(str(problem)) from None
    return text


def _named(text: str) -> int:
    if not text.isdecimal() or int(text) > MOST_NAMED:
        msg = f"{text} is no number from 0 to {MOST_NAMED}"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def _policy(text: str) -> str:
    try:
        return policy_named(text).name
    except BadDeclaration as problem:
        raise argparse.ArgumentTypeError(str(problem)) from None


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        msg = f"{text} is no number of seconds: give 0 or more"
        raise argparse.ArgumentTypeError(msg)
    return value


def _size(text: str) -> str:
    """A size, or 0; kept as it was written, for a broker that is started again."""
    try:
        size_of(text)
    except BadSize as problem:
        raise argparse.ArgumentTypeError(str(problem)) from None
    return text


def size_of(text: str | None) -> int | None:
    """Return the bytes of a size, of which 0 is one here; None where nothing was said."""
    return None if text is None else 0 if text.strip() == "0" else parse_size(text)


def _hub(text: str) -> str:
    from gpushare_kernel.hub.identity import checked_api  # noqa: PLC0415  few brokers ask a hub

    try:
        return checked_api(text)
    except BadDeclaration as problem:
        raise argparse.ArgumentTypeError(str(problem)) from None


def _uids(text: str) -> str:
    """Uids; kept as they were written, for a broker that is started again."""
    if not all(uid.isdecimal() for uid in text.split(",")):
        msg = f"{text} are no uids: give numbers with commas between, such as 1000"
        raise argparse.ArgumentTypeError(msg)
    return text


def _positive(text: str) -> float:
    value = float(text)
    if not LEAST <= value < math.inf:
        msg = f"{text} is too little or no number: give {LEAST:g} or more"
        raise argparse.ArgumentTypeError(msg)
    return value


def _file(text: str) -> Path:
    """A file to record into; the broker works in another folder than whoever starts it."""
    path = Path(text).absolute()
    if path.suffix != SUFFIX:
        msg = f"{text} is to end in {SUFFIX}, by which replay knows a recording"
        raise argparse.ArgumentTypeError(msg)
    return path


def _path(text: str) -> Path:
    """A file; the broker works in another folder than whoever starts it."""
    return Path(text).absolute()
