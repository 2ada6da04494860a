"""The dashboard: valid by Grafana's own schema, every query by Prometheus' own grammar, and about metrics that there are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import promql_parser
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from gpushare_kernel.broker.families import COUNTER, FAMILIES, HISTOGRAM
from tests.faults.host import Host
from tests.metrics.scrape import dashboard, families, offered, read, samples
from tests.metrics.test_metrics import ROOM

_WIDE = re.compile(r"\$__rate_interval")


def queries() -> list[str]:
    """Every query of every panel."""
    return [
        target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", [])
    ]


def selectors(query: str) -> Iterator[tuple[str, set[str]]]:
    """Yield each metric of a query, and the labels it is chosen or grouped by."""
    text = _WIDE.sub("5m", query)
    promql_parser.parse(text)  # ValueError where it is none
    grouped = set()
    for group in re.findall(r"\bby \(([^)]*)\)", text):
        grouped |= {label.strip() for label in group.split(",")}
    for name, chosen in re.findall(r"(gpushare_\w+)(?:\{([^}]*)\})?", text):
        yield name, grouped | set(re.findall(r"(\w+)=", chosen))


def test_grafana_would_read_all_of_it() -> None:
    """Read into the classes that Grafana generates from its schema and written again, nothing is lost or changed."""
    plugins.register_default_plugins()
    written = json.loads(json.dumps(Dashboard.from_json(dashboard()), cls=JSONEncoder))
    assert not [*lost(dashboard(), written)]


def lost(ours: Any, theirs: Any, at: str = "") -> Iterator[str]:
    """Yield what of `ours` is not in `theirs`."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key, part in ours.items():
            yield from lost(part, theirs[key], f"{at}/{key}") if key in theirs else [f"{at}/{key}"]
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for number, parts in enumerate(zip(ours, theirs, strict=True)):
            yield from lost(*parts, f"{at}[{number}]")
    elif ours != theirs:
        yield f"{at}: {ours!r}, {theirs!r}"


def test_a_key_that_grafana_does_not_know_is_found() -> None:
    """The check above is one."""
    plugins.register_default_plugins()
    wrong = dashboard()
    wrong["panels"][1]["targets"][0]["expression"] = "up"
    written = json.loads(json.dumps(Dashboard.from_json(wrong), cls=JSONEncoder))
    assert [*lost(wrong, written)] == ["/panels[1]/targets[0]/expression"]


def test_panels_do_not_overlap_and_have_ids_of_their_own() -> None:
    """Each place on the grid, 24 wide, has one panel at most."""
    panels = dashboard()["panels"]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_queries_are_about_metrics_that_a_broker_offers_and_all_of_these_are_on_it(
    host: Host,
) -> None:
    """Both ways, with their labels, against a real scrape. Virtual memory and the like stay off it."""
    host.start(*ROOM, "--metrics", "127.0.0.1:0")
    text = read(offered(host))
    there = families(text) | {name for name in samples(text) if name.endswith("_bucket")}
    used = {name for query in queries() for name, _ in selectors(query)}
    assert used <= there
    shown = {re.sub("_bucket$", "", name) for name in used}
    ours = {
        f"{name}_total" if family.kind == COUNTER else name for name, family in FAMILIES.items()
    }
    assert ours <= shown
    for query in queries():
        for name, labels in selectors(query):
            if name.startswith("gpushare_broker_process_"):
                continue
            base = re.sub("_(total|bucket)$", "", name)
            family = FAMILIES[base]
            assert labels - ({"le"} if family.kind == HISTOGRAM else set()) <= set(family.labels), (
                query
            )


def test_each_legend_names_a_label_of_its_query() -> None:
    """A name in braces that is no label would be shown as it is."""
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            labels = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            (known, *_) = [set(FAMILIES[re.sub("_(total|bucket)$", "", name)].labels) | {"le"} for name, _ in selectors(target["expr"]) if not name.startswith("gpushare_broker_process_")] or [set()]  # fmt: skip
            assert labels <= known, target
