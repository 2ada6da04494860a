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
_SHARED_UID = frozenset(
    {
        "simple",
        "jupyterhub.spawner.SimpleLocalProcessSpawner",
        "docker",
        "dockerspawner.DockerSpawner",
        "dockerspawner.SwarmSpawner",
        "kubespawner.KubeSpawner",
    }
)


@dataclass(frozen=True, slots=True)
class Unread:
    """What is computed where a literal would be read; `code` is how it is written."""

    code: str


@dataclass(frozen=True, slots=True)
class Culler:
    """Somebody who ends what is idle. `seconds` of idleness; None where it is told by what cannot be read."""

    what: str
    source: str
    seconds: float | None
    tljh: bool = False


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
    spawner = values.get("JupyterHub.spawner_class")
    if isinstance(spawner, str):
        found.shared_uid = spawner in _SHARED_UID
    elif spawner is None and found.shared_uid is None and values:
        found.shared_uid = False  # JupyterHub's own default: local processes, each as its user
    for service in _sequence(values.get("JupyterHub.services")):
        command = _sequence(service.get("command")) if isinstance(service, Mapping) else ()
        words = [word if isinstance(word, str) else "" for word in command]
        if any(name in word for word in words for name in _CULLER):
            seconds = _option(words, "--timeout", CULLER_TIMEOUT)
            found.cullers.append(Culler("JupyterHub stops idle servers", str(path), seconds))
    for name in ("Spawner.mem_limit", "SystemdSpawner.mem_limit", "DockerSpawner.mem_limit"):
        limit = values.get(name)
        if isinstance(limit, int | str) and limit:
            found.limits.append(Limit(limit, f"c.{name} in {path}"))
    for name, value in values.items():
        if name.endswith("Spawner.environment") and name != "Spawner.environment":
            known = value.code if isinstance(value, Unread) else value
            if not isinstance(known, str | Mapping) or VARIABLE not in known:
                found.replaced.append((name, path))
    for word in _sequence(values.get("Spawner.args")):
        if isinstance(word, str) and "cull_idle_timeout=" in word:
            seconds = _number(word.partition("=")[2])
            if seconds:
                found.cullers.append(
                    Culler("Servers end idle kernels", f"{word} in {path}", seconds)
                )


def _option(words: Sequence[str], name: str, default: float) -> float | None:
    for word, value in zip(words, [*words[1:], ""], strict=True):
        if word.startswith(f"{name}="):
            return _number(word.partition("=")[2])
        if word == name:
            return _number(value)
    return default


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
        values[name] = [*_sequence(values.get(name)), *_sequence(more)]


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
            pairs = [(_literal(k), _literal(v)) for k, v in zip(keys, values, strict=True) if k]
            return {k: v for k, v in pairs if isinstance(k, str)}
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        pass
    try:  # 60 * 60
        return _product(node)
    except ValueError:
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


def _sequence(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else ()


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
