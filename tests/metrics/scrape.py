"""Metrics as Prometheus reads them: asked over HTTP, parsed by Prometheus' own parser."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import urllib.request
from collections.abc import Callable
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.faults.host import Host
from tests.procs import eventually

Samples = dict[str, list[tuple[dict[str, str], float]]]


def offered(host: Host) -> str:
    """Return where the broker that lives now offers its metrics."""
    said = [line for line in host.log() if line["message"] == "metrics are offered"]
    return str(said[-1]["at"])


def read(where: str) -> str:
    """Return what is said at a URL, or at a Unix socket's path."""
    if where.startswith("http"):
        with urllib.request.urlopen(where, timeout=20) as answer:
            return str(answer.read().decode())
    with contextlib.closing(http.client.HTTPConnection("localhost")) as connection:
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(20)
        connection.sock.connect(where)
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        assert answer.status == 200
        return answer.read().decode()


def samples(text: str) -> Samples:
    """Return every sample by its name."""
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def families(text: str) -> set[str]:
    """Return the names of all metrics, as a query begins with them: a histogram's without its parts."""
    found = set()
    for family in text_string_to_metric_families(text):
        found.add(f"{family.name}_total" if family.type == "counter" else family.name)
    return found


def value(seen: Samples, name: str, **labels: str) -> float:
    """Return the one sample of that name and those labels; the sum, where there are several."""
    fitting = [v for had, v in seen.get(name, []) if labels.items() <= had.items()]
    assert fitting, f"no {name} with {labels}"
    return sum(fitting)


def until(where: str, holds: Callable[[Samples], object], seconds: float = 30) -> Samples:
    """Return the first scrape of which something holds."""
    last: list[Samples] = []

    def look() -> bool:
        try:
            last.append(samples(read(where)))
        except (OSError, http.client.HTTPException):  # it ends in the middle of a word
            return False
        return bool(holds(last[-1]))

    eventually(look, seconds)
    return last[-1]


def dashboard() -> dict:
    """Return the dashboard that is shipped."""
    path = Path(__file__).parents[2] / "etc/grafana/gpushare.json"
    return json.loads(path.read_text(encoding="utf-8"))
