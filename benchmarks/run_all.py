"""Run every benchmark, one after the other, and keep what each says in results/<name>.json.

python benchmarks/run_all.py [--quick] [name ...]

Those of the GPU (gpu_*) are for `gpu_run.py`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"


def main() -> int:
    """Return 0 where every target was met, 1 where one was missed, 2 where a benchmark failed."""
    names = sorted(
        path.parent.name
        for path in HERE.glob("*/run.py")
        if not path.parent.name.startswith("gpu_")
    )
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short runs; nothing is kept")
    parser.add_argument("names", nargs="*", metavar="name", help=f"of: {', '.join(names)}")
    given = parser.parse_args()
    unknown = set(given.names) - set(names)
    if unknown:
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}")
    status = 0
    for name in given.names or names:
        print(f"--- {name}", flush=True)
        status = max(status, _run(name, quick=given.quick))
    return status


def _run(name: str, *, quick: bool) -> int:
    command = [sys.executable, str(HERE / name / "run.py"), "--json", *(["--quick"] * quick)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    try:
        found = json.loads(done.stdout)
    except ValueError:
        print(f"failed: it ended with {done.returncode} and said no result", flush=True)
        return 2
    for figure, median in found["medians"].items():
        low, high = found["spread"][figure]
        unit, target = found["figures"][figure]["unit"], found["target"].get(figure)
        verdict = "" if target is None else f", must be {target}"
        missed = "  MISSED" if figure in found["missed"] else ""
        print(f"{figure}: {median:g} {unit} [{low:g} .. {high:g}]{verdict}{missed}", flush=True)
    if not quick:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{name}.json"
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0 if found["met"] else 1


if __name__ == "__main__":
    sys.exit(main())
