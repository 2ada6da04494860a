"""The one script for the GPU machine: the GPU tests and all rows, one after the other, as far as the time goes.

    python benchmarks/gpu_run.py --out DIR [--rows a,b,c] [--budget SECONDS] [--resume DIR-or-FILE] [--gather FILE]

A row that is done has DIR/<row>.json at once, so a call that is cut off loses one row. Call again with --resume for
the rest. Nothing needs to be installed: our dependencies on PYTHONPATH are enough. See gpu/README.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import as_json, commit, machine
from benchmarks.gpu import checkout, facts
from benchmarks.gpu.children import Ended, run
from benchmarks.gpu.keeping import Result, found, gather, keep, keep_log, usable
from benchmarks.gpu.plan import PARKING_TESTS, ROWS, TESTS, Budget, Plan, Row, chosen
from benchmarks.gpu.row import HOST_NOTICE, leave_on_signals

ROOT = checkout.ROOT
REPORT = "tests.xml"
RECKONING = "tests/benchmarks/test_reckoning.py"
"""What stands for the GPU's tests on the host device."""
MET, MISSED, CRASHED, LEFT = 0, 1, 2, 3
"""Exit statuses; the gravest counts, and rows that are left count more than missed targets."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for and fits; return the exit status."""
    given = _parser().parse_args(arguments)
    leave_on_signals()
    try:
        rows = chosen([name for name in given.rows.split(",") if name])
    except ValueError as problem:
        _parser().error(str(problem))
    given.out.mkdir(parents=True, exist_ok=True)
    for name, result in _former(given).items():
        keep(given.out, name, result)
    done = set(_former(given, given.out))
    plan = Plan(rows, done, Budget(time.monotonic() + given.budget, quick=given.quick))
    if given.device == "host":
        print(HOST_NOTICE, flush=True)
    statuses = _run_all(plan, given)
    left = plan.left(statuses)
    if left:
        print(f"left for another call: {','.join(row.name for row in left)}", flush=True)
    worst = max(statuses.values(), default=MET)
    return worst if worst == CRASHED else LEFT if left else worst


def _run_all(plan: Plan, given: argparse.Namespace) -> dict[str, int]:
    statuses: dict[str, int] = {}
    with tempfile.TemporaryDirectory(prefix="gpushare-site-") as site:
        Path(site).chmod(0o755)
        variables = checkout.environment(Path(site))
        while (row := plan.next(statuses, time.monotonic())) is not None:
            limit = plan.budget.limit(row, time.monotonic())
            ended = run(_command(row, given), limit=limit, cwd=ROOT, variables=variables)
            statuses[row.name] = _take_in(row, ended, given)
            if given.gather is not None:
                gather(given.out, given.gather)
    return statuses


def _take_in(row: Row, ended: Ended, given: argparse.Namespace) -> int:
    """Keep what a row gave, print its line, and return its status."""
    tests = row.name in {TESTS, PARKING_TESTS}
    result = _of_tests(ended, given, row.name) if tests else _last_object(ended.output)
    if ended.late or result is None:
        why = f"ended after {ended.seconds:.0f} s" if ended.late else f"crashed ({ended.status})"
        keep_log(given.out, row.name, f"{ended.said}\n{ended.output if result is None else ''}")
        print(f"{row.name}: {why}: see {given.out / row.name}.log", flush=True)
        return CRASHED
    result |= {"seconds": round(ended.seconds, 1), "left_behind": ended.swept, "commit": commit()}
    keep(given.out, row.name, result)
    print(f"{row.name}: {_verdict(result)} ({ended.seconds:.0f} s)", flush=True)
    if result.get("log"):
        keep_log(given.out, row.name, result["log"])
    return MET if result["met"] else MISSED


def _verdict(result: Result) -> str:
    if result.get("not_measured"):
        return f"not measured: {result['not_measured']}"
    if result["met"]:
        return "met"
    medians = result["medians"]
    return f"missed {', '.join(f'{name} {medians[name]:.4g}' for name in result['missed'])}"


def _command(row: Row, given: argparse.Namespace) -> list[str]:
    if row.name in {TESTS, PARKING_TESTS}:
        which = ["-m", "gpu", *_tests(row.name)] if given.device == "cuda" else [RECKONING]
        return [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            f"--junitxml={given.out.absolute() / REPORT}",
            *which,
        ]
    words = ["--json", "--device", given.device, *(["--quick"] if given.quick else [])]
    if given.broker:
        words += [f"--broker={given.broker}"]
    return [sys.executable, str(ROOT / "benchmarks" / row.name / "run.py"), *words]


def _tests(row: str) -> list[str]:
    """Return the files of the GPU's tests that belong to `row`; no others are imported, whose needs may not be there."""
    parking = [*(ROOT / "tests" / "client" / "warm").glob("test_*.py"), ROOT / "tests" / "devices" / "test_parking_gpu.py"]  # fmt: skip
    if row == PARKING_TESTS:
        return sorted(map(str, parking))
    return sorted(str(path) for path in (ROOT / "tests").glob("*/test_*gpu*.py") if path not in parking)  # fmt: skip


def _of_tests(ended: Ended, given: argparse.Namespace, row: str) -> Result | None:
    """Return the result of the tests, from pytest's report; None where there is none."""
    report = given.out / REPORT
    try:
        suites = ET.parse(report).getroot()  # our own pytest's
    except (OSError, ET.ParseError):
        return None
    report.unlink()
    counts = {
        name: sum(int(suite.get(name, 0)) for suite in suites.iter("testsuite"))
        for name in ("tests", "failures", "errors", "skipped")
    }
    described = {**machine(), **facts.gpus(), "versions": facts.versions()}
    failed = counts["failures"] + counts["errors"]
    return {
        **as_json(row, "pytest -m gpu", described, (), quick=given.quick),
        "device": given.device,
        "counts": counts,
        "met": failed == 0 and counts["tests"] > counts["skipped"],
        "missed": ["failures"] if failed else [],
        "medians": {"failures": failed},
        "log": ended.output if failed else "",
    }


def _last_object(output: str) -> Result | None:
    lines = output.strip().splitlines()
    try:
        read: Any = json.loads(lines[-1])
    except (IndexError, ValueError):
        return None
    return read if isinstance(read, dict) and "figures" in read else None


def _former(given: argparse.Namespace, place: Path | None = None) -> dict[str, Result]:
    """Return the former results that stand, of --resume or of `place`."""
    where = place or given.resume
    if where is None:
        return {}
    names = {row.name for row in ROWS}
    return {
        name: result
        for name, result in found(where).items()
        if name in names and usable(result, quick=given.quick, device=given.device)
    }


def _parser() -> argparse.ArgumentParser:
    names = ", ".join(f"{row.name} ({row.seconds:g} s)" for row in ROWS)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], epilog=f"Rows: {names}")
    parser.add_argument("--out", type=Path, required=True, help="where results go, a file a row")
    parser.add_argument("--rows", default="", help="names with commas between them; all by default")
    parser.add_argument("--budget", type=float, default=520.0, help="seconds for this call (520)")
    parser.add_argument("--resume", type=Path, help="a former --out or --gather: its rows are done")
    parser.add_argument("--gather", type=Path, help="all of --out in one file, after each row")
    parser.add_argument("--quick", action="store_true", help="short rows; not for keeping")
    parser.add_argument(
        "--device", choices=("cuda", "host"), default="cuda", help="host: stand-ins"
    )
    parser.add_argument("--broker", default="", help="further arguments for the rows' brokers")
    return parser


if __name__ == "__main__":
    sys.exit(main())
