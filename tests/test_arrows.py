"""Which room may import which: docs and design say it, this holds it. A broken arrow is mended in the tree, not here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

ROOMS = {
    "gpushare_kernel.core.values": "values",
    "gpushare_kernel.core.errors": "errors",
    "gpushare_kernel.core.sizes": "sizes",
    "gpushare_kernel.core": "core",
    "gpushare_kernel.wire.texts": "texts",
    "gpushare_kernel.wire.cell_texts": "texts",
    "gpushare_kernel.wire.need_texts": "texts",
    "gpushare_kernel.wire.parking_texts": "texts",
    "gpushare_kernel.wire.admin_texts": "texts",
    "gpushare_kernel.wire.bar_texts": "texts",
    "gpushare_kernel.wire": "wire",
    "gpushare_kernel.transport": "transport",
    "gpushare_kernel.devices": "devices",
    "gpushare_kernel.broker": "broker",
    "gpushare_kernel.client": "client",
    "gpushare_kernel.replay": "replay",
    "gpushare_kernel.hub.identity": "identity",
    "gpushare_kernel.hub.activity": "hub_service",
    "gpushare_kernel.hub.server": "server",
    "gpushare_kernel.hub.bar_feed": "server",
    "gpushare_kernel.realtime": "pipelines",
    **{
        f"gpushare_kernel.realtime.{name}": "realtime"
        for name in (
            "model",
            "taskset",
            "work",
            "search",
            "proof",
            "answers",
            "refusal",
            "releases",
            "configurations",
            "allocation",
            "response",
            "analysis",
            "simulation",
        )
    },
    "gpushare_kernel.provisioner": "provisioner",
    "gpushare_kernel.kernel_session": "provisioner",
    "gpushare_kernel.interpreters": "provisioner",
    "gpushare_kernel.hub.placement": "placement",
    "gpushare_kernel.hub": "hub",
    "gpushare_kernel.procfs": "procfs",
    "gpushare_kernel.nwv": "nwv",
    "gpushare_kernel.shown": "shown",
    "gpushare_kernel.app": "app",
    "gpushare_kernel": "package",
    "gpushare_magics": "magics",
    "gpushare_widgets": "widgets",
}
"""Module -> room; the longest name that fits counts."""

LOWEST = {"values", "errors"}
ALL = set(ROOMS.values())
ARROWS: dict[str, set[str]] = {
    "values": set(),
    "errors": set(),
    "sizes": LOWEST,
    "core": LOWEST | {"sizes"},
    "procfs": {"values"},
    "shown": {"errors"},
    "wire": LOWEST | {"texts"},
    "texts": LOWEST | {"sizes", "wire"},
    "devices": LOWEST | {"procfs"},
    "transport": LOWEST | {"wire", "procfs"},
    # Texts are of the wire's room: what the broker says unasked (`Announce`) is a sentence from there.
    "broker": LOWEST
    | {"sizes", "core", "wire", "texts", "transport", "devices", "procfs", "package", "identity"},
    # Who vouches for people is asked by a protocol of the broker's; only its daemon knows that it is a hub.
    "identity": LOWEST | {"wire"},
    "hub_service": LOWEST | {"sizes", "client", "transport", "wire", "procfs"},
    "client": LOWEST | {"sizes", "wire", "texts", "transport", "procfs", "package"},
    # What pages are shown is asked as any client asks; the words are the wire's.
    "server": LOWEST | {"client", "texts", "hub"},
    "provisioner": LOWEST | {"client", "transport", "wire", "procfs", "package"},
    # Which of several hosts: pure, for a gateway and for a replay of many hosts.
    "placement": LOWEST | {"sizes"},
    "hub": LOWEST
    | {"sizes", "placement", "client", "provisioner", "transport", "wire", "procfs", "package"},
    "replay": LOWEST | {"sizes", "core", "wire", "placement"},
    # The analysis of deadlines is pure; what runs them is a room of its own in the same folder.
    "realtime": LOWEST,
    "pipelines": LOWEST | {"realtime", "sizes", "client", "wire", "shown"},
    "nwv": LOWEST | {"sizes", "shown", "client", "transport", "wire"},
    "magics": LOWEST | {"sizes", "client", "texts", "package", "widgets", "pipelines", "nwv"},
    "widgets": {"client", "package"},
    "package": LOWEST | {"client", "pipelines", "nwv"},
    "app": ALL,
}
"""Room -> the rooms it may import. Everything may import its own room. `package` is gpushare_kernel/__init__.py:
the version, and names that are loaded when somebody asks for them."""

LAZY = {("magics", "widgets"), ("magics", "pipelines"), ("magics", "nwv"), ("broker", "identity")}
"""Arrows for imports inside functions only: every kernel start imports the room they come from."""

IMPURE = frozenset(
    [
        "asyncio",
        "socket",
        "threading",
        "multiprocessing",
        "concurrent",
        "subprocess",
        "select",
        "selectors",
        "signal",
        "mmap",
        "os",
        "time",
        "random",
        "logging",
        "sqlite3",
        "pathlib",
        "ctypes",
        "datetime",
        "uuid",
        "secrets",
        "io",
        "torch",
        "cupy",
        "jax",
        "numpy",
    ]
)
"""What core must not import: it takes time and chance from events, and does nothing by itself."""
CORE_MAY = frozenset(
    [
        "__future__",
        "abc",
        "bisect",
        "collections",
        "difflib",
        "dataclasses",
        "enum",
        "functools",
        "heapq",
        "itertools",
        "math",
        "operator",
        "re",
        "types",
        "typing",
        "sortedcontainers",
    ]
)
ONLY = {
    "pynvml": "gpushare_kernel/devices/nvml.py",
    "prometheus_client": "gpushare_kernel/broker/metrics.py",
    "sqlite3": "gpushare_kernel/broker/ledger.py",
    "paramiko": "gpushare_kernel/hub/ssh.py",
    "gateway_provisioners": "gpushare_kernel/hub/distributed.py",
}
"""Modules that exactly one file of ours imports."""
OWED: dict[str, str] = {}
"""Arrows that are broken today and owed by their room; whoever mends one takes it out here (the test insists)."""


@dataclass(frozen=True)
class Import:
    """One import of one file. `lazy`: inside a function, so only when that runs."""

    path: Path
    line: int
    name: str
    lazy: bool

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line} imports {self.name}"


def sources() -> list[Path]:
    """Every file that is packaged."""
    found = [
        *(ROOT / "gpushare_kernel").rglob("*.py"),
        *(ROOT / "magics").rglob("*.py"),
        *(ROOT / "widgets").rglob("*.py"),
    ]
    return sorted(path for path in found if "__pycache__" not in path.parts)


def module_of(path: Path) -> str:
    """The dotted name of a file."""
    base = (
        ROOT
        if path.is_relative_to(ROOT / "gpushare_kernel")
        else ROOT / path.relative_to(ROOT).parts[0]
    )
    parts = path.relative_to(base).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str | None:
    """The room of a module; None where it is not ours."""
    best = max(
        (known for known in ROOMS if module == known or module.startswith(known + ".")),
        key=len,
        default=None,
    )
    return None if best is None else ROOMS[best]


def imports_of(path: Path, source: str | None = None) -> Iterator[Import]:
    """Every import of a file, also those inside functions, under TYPE_CHECKING, and by importlib."""
    tree = ast.parse(path.read_text(encoding="utf-8") if source is None else source)
    lazy = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for inner in ast.walk(node)
        if inner is not node
    }
    package = module_of(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = [_deepest(base, alias.name) for alias in node.names]
        elif isinstance(node, ast.Call) and _is_import_call(node):
            names = [node.args[0].value]  # type: ignore[attr-defined]
        for name in names:
            yield Import(path, node.lineno, name, id(node) in lazy)  # type: ignore[attr-defined]


def _deepest(base: str, name: str) -> str:
    """`from gpushare_kernel import procfs` imports a module, `from gpushare_kernel import lane` a name of the package."""
    if base in ROOMS or base.startswith(("gpushare_kernel", "gpushare_magics", "gpushare_widgets")):
        full = f"{base}.{name}"
        for folder in (ROOT, ROOT / "magics", ROOT / "widgets"):
            place = folder.joinpath(*full.split("."))
            if place.with_suffix(".py").exists() or place.is_dir():
                return full
    return base


def _is_import_call(node: ast.Call) -> bool:
    called = (
        node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    )
    return (
        called in {"import_module", "__import__"}
        and bool(node.args)
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
    )


def broken_by(one: Import) -> str | None:
    """The rule that an import breaks, in words; None where it breaks none."""
    room, target = room_of(module_of(one.path)), room_of(one.name)
    if room is None:
        return "this file is in no room: put it into ROOMS"
    if target is None:
        return _broken_outside(room, one)
    if (room, target) in LAZY and not one.lazy:
        return f"{room} imports {target} inside functions only"
    if target == room or target in ARROWS[room]:
        return None
    if room == "core" or target in {"values", "errors", "sizes"}:
        return f"{room} may import {', '.join(sorted(ARROWS[room])) or 'nothing of ours'}"
    return f"{room} -> {target} is no arrow; {room} may import {', '.join(sorted(ARROWS[room])) or 'nothing of ours'}"


def _broken_outside(room: str, one: Import) -> str | None:
    top = one.name.partition(".")[0]
    if room in {"core", *LOWEST, "sizes", "placement"}:
        if top in IMPURE:
            return f"core is pure: no {top}; time and chance come in events, what is to be done goes out as an instruction"
        if top not in CORE_MAY and (room, top) != ("placement", "zlib"):
            return f"core imports nothing but {', '.join(sorted(CORE_MAY))}"
    if top in ONLY and one.path != ROOT / ONLY[top]:
        return f"{top} is imported by {ONLY[top]} only"
    return None


def _case(path: Path) -> object:
    name = str(path.relative_to(ROOT))
    marks = [pytest.mark.xfail(strict=True, reason=OWED[name])] if name in OWED else []
    return pytest.param(path, id=name, marks=marks)


@pytest.mark.parametrize("path", [_case(path) for path in sources()])
def test_every_import_follows_an_arrow(path: Path) -> None:
    """File, line and rule of each that does not."""
    broken = [f"{one}: {rule}" for one in imports_of(path) if (rule := broken_by(one))]
    assert not broken, "\n" + "\n".join(broken)


def test_there_is_something_to_hold() -> None:
    """All three packages are walked, and every room has a file."""
    rooms = {room_of(module_of(path)) for path in sources()}
    assert None not in rooms
    assert rooms >= ALL, ALL - rooms


@pytest.mark.parametrize(
    ("file", "source", "rule"),
    [
        ("gpushare_kernel/core/x.py", "import time", "core is pure: no time"),
        ("gpushare_kernel/core/x.py", "def f():\n    from os import path", "core is pure: no os"),
        ("gpushare_kernel/core/x.py", "import msgspec", "core imports nothing but"),
        ("gpushare_kernel/core/x.py", "from gpushare_kernel.wire import messages", "core may import"),
        ("gpushare_kernel/core/values.py", "from gpushare_kernel.core import lanes", "values -> core is no arrow"),
        ("gpushare_kernel/wire/x.py", "from gpushare_kernel.transport import frames", "wire -> transport is no arrow"),
        ("gpushare_kernel/wire/x.py", "from gpushare_kernel.core.scheduler import Scheduler", "wire -> core is no arrow"),
        ("gpushare_kernel/transport/x.py", "from ..broker import desk", "transport -> broker is no arrow"),
        ("gpushare_kernel/client/x.py", "from gpushare_kernel.broker.desk import Desk", "client -> broker is no arrow"),
        ("gpushare_kernel/client/x.py", "import importlib\nimportlib.import_module('gpushare_kernel.devices.host')", "client -> devices"),
        ("gpushare_kernel/broker/x.py", "from gpushare_kernel import client", "broker -> client is no arrow"),
        ("gpushare_kernel/devices/x.py", "from gpushare_kernel.core.lanes import Lane", "devices -> core is no arrow"),
        ("gpushare_kernel/devices/x.py", "import pynvml", "pynvml is imported by gpushare_kernel/devices/nvml.py only"),
        ("magics/gpushare_magics/x.py", "from gpushare_kernel.provisioner import GpuShareProvisioner", "magics -> provisioner"),
        ("magics/gpushare_magics/x.py", "from gpushare_kernel.transport import places", "magics -> transport"),
        ("magics/gpushare_magics/x.py", "from gpushare_widgets import static", "magics imports widgets inside functions only"),
        ("widgets/gpushare_widgets/x.py", "from gpushare_kernel.core.values import GiB", "widgets may import client"),
    ],
)  # fmt: skip
def test_a_broken_arrow_is_found(file: str, source: str, rule: str) -> None:
    """The holder itself is held: each kind of import, at its line."""
    found = [(one, broken_by(one)) for one in imports_of(ROOT / file, source)]
    broken = [(one, said) for one, said in found if said]
    assert broken, f"{source!r} in {file} passes"
    assert rule in str(broken[0][1])
    assert str(broken[0][0]).startswith(f"{file}:{source.count(chr(10)) + 1} imports ")
