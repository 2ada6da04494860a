"""What every result says beside its figures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import common
from benchmarks.common import RESULTS, Figure, commit


def git(folder: Path, *words: str) -> str:
    who = ("-c", "user.name=ann", "-c", "user.email=ann@example.org")
    done = subprocess.run(
        ["git", *who, *words], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with one commit."""
    monkeypatch.delenv("GPUSHARE_COMMIT", raising=False)
    git(tmp_path, "init", "--quiet")
    (tmp_path / "code.py").write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "one")
    return tmp_path


def test_rounds_are_chosen_where_there_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    """A benchmark that has rounds has as many as one says; one that has none does not pretend to."""
    seen: list[int] = []

    def measure(options: common.Options) -> list[Figure]:
        seen.append(options.rounds)
        return [Figure("one", "", [1.0])]

    for words in ([], ["--rounds", "5"], ["--quick"]):
        monkeypatch.setattr(sys, "argv", ["run.py", *words])
        common.main("some", "How?", measure, rounds=3)
    assert seen == [3, 5, 1]
    for words, rounds in ((["--rounds", "0"], 3), (["--rounds", "2"], 0)):
        monkeypatch.setattr(sys, "argv", ["run.py", *words])
        with pytest.raises(SystemExit):
            common.main("some", "How?", measure, rounds=rounds)


def test_a_result_names_its_commit(checkout: Path) -> None:
    """Results that are written beside it are no change of what was measured."""
    head = git(checkout, "rev-parse", "HEAD")
    assert commit(checkout) == head
    (checkout / RESULTS).mkdir(parents=True)
    (checkout / RESULTS / "alone.json").write_text("{}")
    (checkout / "out.json").write_text("{}")
    assert commit(checkout) == head


@pytest.mark.parametrize("name", ["code.py", "new.py"])
def test_a_changed_tree_is_marked(checkout: Path, name: str) -> None:
    """Also where the change is a new file: it may have been imported."""
    (checkout / name).write_text("2")
    assert commit(checkout) == git(checkout, "rev-parse", "HEAD") + "+"


def test_where_there_is_no_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copied tree is told what it is; else nobody knows."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.delenv("GPUSHARE_COMMIT", raising=False)
    assert commit(tmp_path) == ""
    monkeypatch.setenv("GPUSHARE_COMMIT", "abc+")
    assert commit(tmp_path) == "abc+"


def test_every_benchmark_writes_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it was when the benchmark began: somebody may commit meanwhile."""
    monkeypatch.setattr(sys, "argv", ["run.py", "--json"])
    monkeypatch.setenv("GPUSHARE_COMMIT", "abc")

    def measure(_: common.Options) -> list[Figure]:
        monkeypatch.setenv("GPUSHARE_COMMIT", "def")
        return [Figure("total", "s", [1.0])]

    assert common.main("x", "How long?", measure) == 0
    assert json.loads(capsys.readouterr().out)["commit"] == "abc"
