"""`jupyter gpushare realtime`, as people call it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.app.conftest import Gpushare

EXAMPLE = Path(__file__).parents[2] / "examples" / "realtime" / "camera.json"


@pytest.fixture
def refused(tmp_path: Path) -> Path:
    """The example with a drain that is longer than any slack, on a machine with one node."""
    found = json.loads(EXAMPLE.read_text())
    found |= {"cpus": 2, "max_nodes": 1, "drain": {"gpu": 0.5}}
    found["tasks"] = [task for task in found["tasks"] if task["name"] == "speech"]
    found["tasks"][0]["layers"] = found["tasks"][0]["layers"][1:]
    path = tmp_path / "refused.json"
    path.write_text(json.dumps(found))
    return path


@pytest.mark.parametrize("more", [(), ("--exact",)])
def test_analyse_answers_in_json(gpushare: Gpushare, more: tuple[str, ...]) -> None:
    done = gpushare("realtime", "analyse", str(EXAMPLE), "--json", *more)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["admitted"] is True
    assert [task["name"] for task in found["tasks"]] == ["camera", "speech", "photos"]
    assert 0 < found["tasks"][0]["bound"] <= 0.03
    assert found["tasks"][2]["bound"] is None
    assert sum(node["cpus"] for node in found["configuration"]) == 8
    assert found["candidates"] > 1


def test_analyse_answers_people(gpushare: Gpushare) -> None:
    done = gpushare("realtime", "analyse", str(EXAMPLE))
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("admitted on ")
    assert [line.split()[0] for line in lines if "RT" in line] == ["camera", "speech"]


def test_simulate_shows_what_was_seen_beside_the_bound(gpushare: Gpushare) -> None:
    words = ("realtime", "simulate", str(EXAMPLE), "--seconds", "5", "--seed", "3")
    found = json.loads(gpushare(*words, "--json").stdout)
    for task in found["tasks"][:2]:
        assert 0 < task["observed"] <= task["bound"]
    assert found["tasks"][2]["observed"] is None
    assert (found["seconds"], found["seed"]) == (5.0, 3)
    done = gpushare(*words)
    assert done.returncode == 0
    assert f"{found['tasks'][0]['observed'] * 1e3:.4g}" in done.stdout
    assert json.loads(gpushare(*words, "--json", PYTHONHASHSEED="7").stdout) == found


@pytest.mark.parametrize("verb", ["analyse", "simulate"])
def test_a_refused_set_is_an_answer(gpushare: Gpushare, refused: Path, verb: str) -> None:
    done = gpushare("realtime", verb, str(refused), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert (found["admitted"], found["objective"]) == (False, None)
    assert found["refusal"]["task"] == "speech"
    assert found["refusal"]["bound"] > found["refusal"]["deadline"]
    assert found["refusal"]["slower"] > 1
    done = gpushare("realtime", verb, str(refused))
    assert done.returncode == 0
    assert done.stdout.startswith("refused: task speech may take 5")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("analyse",), "this needs one task set, and got none. Write: jupyter gpushare realtime analyse TASKSET.json"),
        (("simulate", "a", "b"), "this needs one task set, and got a, b. Write: jupyter gpushare realtime simulate"),
        (("analyze", "a"), "no command 'analyze'. Did you mean analyse?"),
        (("analyse", "nowhere.json"), "nowhere.json cannot be read: No such file or directory. Name a task set"),
        (("analyse", "EXAMPLE", "--exat"), "no option --exat. Did you mean --exact?"),
        (("simulate", "EXAMPLE", "--seconds", "0"), "--seconds 0 is no length of a simulation"),
        (("simulate", "EXAMPLE", "--seconds", "nan"), "--seconds nan is no length of a simulation"),
        (("simulate", "EXAMPLE", "--seed", "x"), "--seed takes a whole number, and 'x' is none"),
    ],
)  # fmt: skip
def test_an_error_is_one_line(gpushare: Gpushare, words: tuple[str, ...], said: str) -> None:
    done = gpushare("realtime", *(str(EXAMPLE) if word == "EXAMPLE" else word for word in words))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"gpushare: {said}")
    assert done.stderr.count("\n") == 1


def test_a_bad_set_is_named_with_its_file(gpushare: Gpushare, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text(EXAMPLE.read_text().replace("0.033", "NaN"))
    done = gpushare("realtime", "analyse", str(path), "--json")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(
        f"gpushare: {path}: task camera: period must be above 0 seconds, not nan."
    )
