"""How many changed lines of the core's lanes and accounts its tests notice. See README.md."""

from __future__ import annotations

import importlib.util
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import ROOT, Figure, Options, main

QUESTION = "Of every small change that can be made to the core's lanes and accounts: how many do its tests notice?"
MODULES = ("gpushare_kernel/core/lanes.py", "gpushare_kernel/core/accounts.py")
STAGES = ("tests/core/test_lanes.py tests/core/test_book.py", "tests/core/test_accounts.py tests/core/test_order.py", "tests/core")  # fmt: skip
"""Tests in the order in which a mutant meets them: those that notice most, in seconds, first."""
TIMEOUT = 300.0
EVERY = 25
"""One mutant in so many is tried in a short run."""
ANNOTATIONS = "core/ReplaceBinaryOperator_BitOr_.*"
"""`X | None` in an annotation is never evaluated: such a mutant is none."""


def measure(options: Options) -> Sequence[Figure]:
    """Make every mutant in a copy of the checkout, and run the tests on it."""
    if importlib.util.find_spec("cosmic_ray") is None:
        msg = "this benchmark needs cosmic-ray: pip install cosmic-ray"
        raise SystemExit(msg)
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="gpushare-mutants-") as folder:
        copies = [Path(folder) / str(n) for n in range(cores)]
        every = cores * (EVERY if options.quick else 1)
        with ThreadPoolExecutor(cores) as pool:
            parts = pool.map(lambda n: _part(copies[n], n, every), range(cores))
            outcomes = sorted(one for part in parts for one in part)
    survivors = [name for name, outcome, _ in outcomes if outcome == "SURVIVED"]
    endless = [name for name, _, output in outcomes if output == "timeout"]
    for name in survivors:
        print(f"survives: {name}", file=sys.stderr)
    for name in endless:
        print(f"ran for {TIMEOUT:g} s: {name}", file=sys.stderr)
    total = len(outcomes)
    return [
        Figure("killed", "%", [100 * (total - len(survivors)) / total], at_least=85.0),
        Figure("mutants", "", [float(total)]),
        Figure("survivors", "", [float(len(survivors))]),
        Figure("killed_by_time", "", [float(len(endless))]),
    ]


def _part(copy: Path, first: int, every: int) -> list[tuple[str, str, str]]:
    """Try one mutant in `every`, from the `first` on, in a copy of the checkout."""
    _copied(copy)
    session, config = copy / "mutants.sqlite", copy / "mutants.toml"
    config.write_text(_config())
    _tool(copy, "init", str(config), str(session))
    _tool_named(copy, "cosmic_ray.tools.filters.operators_filter", str(session), str(config))
    _thin(session, first, every)
    _tool(copy, "exec", str(config), str(session))
    return _outcomes(session)


def _config() -> str:
    run = " && ".join(
        f"{sys.executable} -m pytest -x -q -p no:cacheprovider {tests}" for tests in STAGES
    )
    modules = ", ".join(f'"{module}"' for module in MODULES)
    return f"""
[cosmic-ray]
module-path = [{modules}]
timeout = {TIMEOUT}
excluded-modules = []
test-command = "sh -c '{run}'"

[cosmic-ray.distributor]
name = "local"

[cosmic-ray.filters.operators-filter]
exclude-operators = ["{ANNOTATIONS}"]
"""


def _copied(to: Path) -> None:
    """Copy what git knows of the checkout, as it is now."""
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, check=True).stdout  # fmt: skip
    for name in filter(None, listed.decode().split("\0")):
        source, target = ROOT / name, to / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())


def _tool(folder: Path, *words: str) -> None:
    _tool_named(folder, "cosmic_ray.cli", *words)


def _tool_named(folder: Path, module: str, *words: str) -> None:
    variables = {**os.environ, "PYTHONPATH": str(folder)}  # the copy goes before what is installed
    subprocess.run([sys.executable, "-m", module, *words], cwd=folder, env=variables, check=True, stdout=sys.stderr)  # fmt: skip


def _thin(session: Path, first: int, every: int) -> None:
    """Leave one mutant in `every`, from the `first` on; their ids differ from copy to copy, their places do not."""
    places = "SELECT job_id FROM mutation_specs ORDER BY module_path, operator_name, operator_args, occurrence"
    with sqlite3.connect(session) as kept:
        jobs = [job for (job,) in kept.execute(places)]
        done = {job for (job,) in kept.execute("SELECT job_id FROM work_results")}
        waiting = [job for job in jobs if job not in done]
        for job in set(waiting) - set(waiting[first::every]):
            kept.execute("DELETE FROM mutation_specs WHERE job_id = ?", (job,))
            kept.execute("DELETE FROM work_items WHERE job_id = ?", (job,))


def _outcomes(session: Path) -> list[tuple[str, str, str]]:
    """Return each mutant that was run: where and what, its tests' outcome, and the end of what they printed."""
    query = (
        "SELECT module_path, start_pos_row, operator_name, test_outcome, output FROM work_results"
        " JOIN mutation_specs USING (job_id) WHERE worker_outcome = 'NORMAL' ORDER BY 1, 2, 3"
    )
    with sqlite3.connect(session) as kept:
        rows: Iterable[tuple[str, int, str, str, str | None]] = kept.execute(query).fetchall()
    return [(f"{path}:{line} {operator}", outcome, (output or "").strip()) for path, line, operator, outcome, output in rows]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main("mutants", QUESTION, measure))
