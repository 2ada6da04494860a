"""What JupyterHub and its servers are configured to do, as far as that can be read without running it.

A configuration file is Python: only what is assigned as a literal is read, and what is computed is left alone. TLJH's is YAML.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpushare_kernel.hub.servers import VARIABLE

TLJH = Path("/opt/tljh")
PLAIN = tuple(
    Path(folder) / "jupyterhub_config.py"
    for folder in ("/etc/jupyterhub", "/srv/jupyterhub", "/opt/jupyterhub/etc/jupyterhub")
)
_CULLER = ("jupyterhub_idle_culler", "jupyterhub-idle-culler", "cull_idle_servers.py")
CULLER_TIMEOUT = 600.0
"""Seconds, where neither jupyterhub-idle-culler nor TLJH is told another."""
_SHARED_UID = frozenset({"simple", "docker", "docker-swarm", "kubespawner"})
"""Spawners by the names that the hub has for them, and by their classes."""
_SHARED_CLASSES = frozenset(
    {"SimpleLocalProcessSpawner", "DockerSpawner", "SwarmSpawner", "KubeSpawner"}
)
_SHOWN = 60
_MORE = "**"
"""The key of what is computed in a dictionary: `{**more}`."""
_PROGRAM = 3
"""Words of a command among which its program is: an interpreter, -m and the module."""


@dataclass(frozen=True, slots=True)
class Unread:
    """What is computed where a literal would be read; `code` is how it is written."""

    code: str


@dataclass(frozen=True, slots=True)
class Culler:
    """Somebody who ends what is idle. `seconds` of idleness; None where it is told by what cannot be read. `always`: of age, idle or not."""

    what: str
    source: str
    seconds: float | None
    tljh: bool = False
    always: bool = False


@dataclass(frozen=True, slots=True)
class Limit:
    """How much memory of the host one person's server may have, in words or bytes."""

    size: int | str
    source: str


@dataclass(slots=True)
class Settings:
    """What was found. `shared_uid`: the spawner runs everybody as one account (None: not told)."""

    cullers: list[Culler] = field(default_factory=list)
    limits: list[Limit] = field(default_factory=list)
    shared_uid: bool | None = None
    #: Which spawner's environment replaces the one of all spawners (`LocalProcessSpawner.environment`), and in which file.
    replaced: list[tuple[str, Path]] = field(default_factory=list)
    #: What could not be read, and why.
    unread: list[str] = field(default_factory=list)


def read(hubs: Sequence[Path], tljh: Path = TLJH, servers: Sequence[Path] = ()) -> Settings:
    """Read the configuration files of hubs, of TLJH where it is there, and of notebook servers."""
    found = Settings()
    if (tljh / "config").is_dir():
        _read_tljh(tljh / "config" / "config.yaml", found)
    for path in hubs:
        values = _python(path, found)
        _read_hub(path, values, found)
        _read_server(str(path), values, found)
    for path in servers:
        values = _json(path, found) if path.suffix == ".json" else _python(path, found)
        _read_server(str(path), values, found)
    return found


# --- TLJH ---------------------------------------------------------------------------------------------


def _read_tljh(path: Path, found: Settings) -> None:
    found.shared_uid = False
    config: Any = {}
    if path.exists():
        try:
            import yaml  # noqa: PLC0415 - TLJH has it, others need none

            config = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except ImportError:
            found.unread.append(
                f"{path}: it is YAML, and this Python has no pyyaml. Run: pip install pyyaml"
            )
            return
        except (OSError, yaml.YAMLError) as problem:
            found.unread.append(f"{path}: {' '.join(str(problem).split())}")
            return
    culls = _below(config, "services", "cull")
    if culls.get("enabled", True):
        seconds = _number(culls.get("timeout", CULLER_TIMEOUT))
        found.cullers.append(Culler("TLJH stops idle servers", str(path), seconds, tljh=True))
    memory = _below(config, "limits").get("memory")
    if memory:
        found.limits.append(Limit(memory, f"limits.memory in {path}"))


def _below(config: Any, *names: str) -> Mapping[str, Any]:
    for name in names:
        config = config.get(name) if isinstance(config, Mapping) else None
    return config if isinstance(config, Mapping) else {}


# --- jupyterhub_config.py -----------------------------------------------------------------------------------


def _read_hub(path: Path, values: Mapping[str, Any], found: Settings) -> None:
    _read_spawner(values, found)
    for service in _parts(values.get("JupyterHub.services")):
        if isinstance(service, Mapping):
            _read_service(path, service.get("command", service.get(_MORE)), found)
        else:
            found.unread.append(_unread("JupyterHub.services", path, service))
    for name, value in values.items():
        owner, _, trait = name.partition(".")
        if not owner.endswith("Spawner"):
            continue
        if trait == "mem_limit" and isinstance(value, int | str) and value:
            found.limits.append(Limit(value, f"c.{name} in {path}"))
        elif trait == "mem_limit" and isinstance(value, Unread):
            found.unread.append(_unread(name, path, value))
        elif trait == "args":
            _read_arguments(name, path, _parts(value), found)
        elif trait == "environment" and owner != "Spawner":
            known = value.code if isinstance(value, Unread) else value
            if not isinstance(known, str | Mapping) or VARIABLE not in known:
                found.replaced.append((name, path))


def _read_spawner(values: Mapping[str, Any], found: Settings) -> None:
    spawner = values.get("JupyterHub.spawner_class")
    if isinstance(spawner, Unread):  # an imported class; who is not known may be anything
        found.shared_uid = True if _class_of(spawner.code) in _SHARED_CLASSES else None
    elif isinstance(spawner, str):
        found.shared_uid = spawner in _SHARED_UID or _class_of(spawner) in _SHARED_CLASSES
    elif spawner is None and found.shared_uid is None and values:
        found.shared_uid = False  # JupyterHub's own default: local processes, each as its user


def _class_of(name: str) -> str:
    return name.rpartition(".")[2]


def _read_service(path: Path, command: Any, found: Settings) -> None:
    words, name = _parts(command), "JupyterHub.services"
    at = next((n for n, word in enumerate(words) if _names_culler(word)), None)
    if at is None:
        found.unread += [_unread(name, path, word) for word in _programs(words)]
        return
    more = (command,) if isinstance(command, Unread) else words[at + 1 :]
    seconds = _option(more, "--timeout", CULLER_TIMEOUT)
    found.cullers.append(Culler("JupyterHub stops idle servers", str(path), seconds))
    age = _option(more, "--max-age", 0.0)
    if age:
        what = "JupyterHub stops servers, idle or not,"
        found.cullers.append(Culler(what, str(path), age, always=True))
    elif age is None and seconds is not None:
        found.unread.append(_unread(name, path, "--max-age of the culler"))


def _names_culler(word: Any) -> bool:
    text = word.code if isinstance(word, Unread) else str(word)
    return any(name in text for name in _CULLER)


def _programs(words: Sequence[Any]) -> Iterator[Unread]:
    """Yield what of a command may be its program, and cannot be read. An interpreter's path says nothing."""
    first = words[:_PROGRAM]
    for at, word in enumerate(first):
        runs_what_follows = at == 0 and any(isinstance(one, str) for one in first[1:])
        is_value = at > 0 and str(first[at - 1]).startswith("--")
        if isinstance(word, Unread) and not runs_what_follows and not is_value:
            yield word


def _read_arguments(name: str, path: Path, words: Sequence[Any], found: Settings) -> None:
    """What servers are started with: options that end something."""
    for word, after in zip(words, [*words[1:], ""][: len(words)], strict=True):
        text = word.code.strip("fFrR'\"") if isinstance(word, Unread) else str(word)
        what = next((what for trait, what in _SERVER_CULLERS.items() if trait.partition(".")[2] in text), "")  # fmt: skip
        if what:
            given = text.partition("=")[2] if "=" in text else after
            seconds = None if isinstance(word, Unread) else _number(given)
            if seconds != 0:
                found.cullers.append(Culler(what, f"{text[:_SHOWN]} in {path}", seconds))
        elif isinstance(word, Unread) and not _is_option(text):
            found.unread.append(_unread(name, path, word))


def _option(words: Sequence[Any], name: str, default: float) -> float | None:
    """Return an option's value; None where it, or a word that may be it, cannot be read."""
    for word, value in zip(words, [*words[1:], ""][: len(words)], strict=True):
        if isinstance(word, str) and word.startswith(f"{name}="):
            return _number(word.partition("=")[2])
        if word == name:
            return _number(value)
    may_be = [word.code for word in words if isinstance(word, Unread)]
    return None if any(name in code or not _is_option(code) for code in may_be) else default


def _is_option(code: str) -> bool:
    """Say whether this is a string that begins with another option: `f'--port={p}'`."""
    return code.lstrip("fFrR").lstrip("'\"").startswith("--")


def _unread(name: str, path: Path, value: Any) -> str:
    code = value.code if isinstance(value, Unread) else str(value)
    return f"c.{name} in {path}: {code[:_SHOWN]}"


# --- servers --------------------------------------------------------------------------------------------------


_SERVER_CULLERS = {
    "MappingKernelManager.cull_idle_timeout": "Servers end idle kernels",
    "AsyncMappingKernelManager.cull_idle_timeout": "Servers end idle kernels",
    "ServerApp.shutdown_no_activity_timeout": "Servers without kernels end",
    "NotebookApp.shutdown_no_activity_timeout": "Servers without kernels end",
}


def _read_server(source: str, values: Mapping[str, Any], found: Settings) -> None:
    for name, what in _SERVER_CULLERS.items():
        if name in values:
            seconds = _number(values[name])
            if seconds != 0:
                found.cullers.append(Culler(what, f"{name} in {source}", seconds))


# --- reading ----------------------------------------------------------------------------------------------------


def _python(path: Path, found: Settings) -> dict[str, Any]:
    """Return what is assigned to `c.Class.trait`: literals, and what is `Unread` of them."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, SyntaxError, ValueError) as problem:
        found.unread.append(f"{path}: {' '.join(str(problem).split())}")
        return {}
    values: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in filter(None, map(_trait, node.targets)):
                values[target] = _literal(node.value)
        elif isinstance(node, ast.AugAssign):
            _add(values, _trait(node.target), _literal(node.value))
        else:
            match node:
                case ast.Call(func=ast.Attribute(value=to, attr="append"), args=[more]):
                    _add(values, _trait(to), [_literal(more)])
                case ast.Call(func=ast.Attribute(value=to, attr="extend"), args=[more]):
                    _add(values, _trait(to), _literal(more))
    return values


def _add(values: dict[str, Any], name: str | None, more: Any) -> None:
    if name is not None:
        values[name] = [*_parts(values.get(name)), *_parts(more)]


def _trait(node: ast.AST) -> str | None:
    """Return `Class.trait` of `c.Class.trait`."""
    match node:
        case ast.Attribute(value=ast.Attribute(value=ast.Name(id="c"), attr=owner), attr=name):
            return f"{owner}.{name}"
    return None


def _literal(node: ast.expr) -> Any:
    """Return what a literal says; what is none, and such parts of lists and dictionaries, are `Unread`."""
    match node:
        case ast.List(elts=parts) | ast.Tuple(elts=parts):
            return [_literal(part) for part in parts]
        case ast.Dict(keys=keys, values=values):
            pairs = [
                (_literal(k) if k else _MORE, _literal(v))
                for k, v in zip(keys, values, strict=True)
            ]
            return {k: v for k, v in pairs if isinstance(k, str)}
        case ast.Call():
            return _called(node)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        pass
    try:  # 60 * 60
        return _product(node)
    except ValueError:
        return Unread(ast.unparse(node))


def _called(node: ast.Call) -> Any:
    """Return what `dict(a=1)` and `"a b".split()` say, as they are often written."""
    match node:
        case ast.Call(func=ast.Name(id="dict"), args=[], keywords=named):
            if all(one.arg for one in named):
                return {one.arg: _literal(one.value) for one in named}
        case ast.Call(func=ast.Attribute(value=ast.Constant(value=str() as words), attr="split")):
            if not node.args and not node.keywords:
                return words.split()
    return Unread(ast.unparse(node))


def _product(node: ast.expr) -> float:
    match node:
        case ast.Constant(value=int() | float() as value):
            return value
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _product(left) * _product(right)
    raise ValueError


def _json(path: Path, found: Settings) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as problem:
        found.unread.append(f"{path}: {' '.join(str(problem).split())}")
        return {}
    return dict(_flat(config))


def _flat(config: Any) -> Iterator[tuple[str, Any]]:
    for owner, traits in config.items() if isinstance(config, Mapping) else ():
        for name, value in traits.items() if isinstance(traits, Mapping) else ():
            yield f"{owner}.{name}", value


def _parts(value: Any) -> Sequence[Any]:
    """Return a list's parts; what is none, or cannot be read, stands for itself."""
    return value if isinstance(value, list) else () if value is None else (value,)


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
