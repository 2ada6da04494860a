"""The JSON of an analysis, both ways: what `jupyter gpushare realtime analyse --json` prints."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from gpushare_kernel.realtime.analysis import Analysis, Bound
from gpushare_kernel.realtime.model import NodeType, Stage
from gpushare_kernel.realtime.refusal import Refusal


def answer_to(analysis: Analysis) -> dict[str, Any]:
    """Return plain values, ready for JSON. Where the set is refused, `refusal` says which task, by how much, and what would fit."""
    found: dict[str, Any] = {
        "admitted": analysis.admitted,
        "objective": analysis.objective,
        "configuration": [dataclasses.asdict(node) for node in analysis.configuration],
        "tasks": [dataclasses.asdict(task) for task in analysis.tasks],
        "candidates": analysis.candidates,
    }
    if analysis.refusal is not None:
        found["refusal"] = dataclasses.asdict(analysis.refusal)
    return found


def answer_from(found: Mapping[str, Any]) -> Analysis:
    """Return the analysis that `answer_to` wrote."""
    refused = found.get("refusal")
    return Analysis(
        admitted=found["admitted"],
        objective=found["objective"],
        configuration=tuple(NodeType(**node) for node in found["configuration"]),
        tasks=tuple(
            Bound(task["name"], task["bound"], tuple(Stage(**stage) for stage in task["stages"]))
            for task in found["tasks"]
        ),
        candidates=found["candidates"],
        refusal=None if refused is None else Refusal(**refused),
    )
