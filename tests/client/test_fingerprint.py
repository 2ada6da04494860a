"""Which code runs: the same hash for what runs the same, another for what does not."""

from __future__ import annotations

import re
import sys
import types

import pytest

import gpushare_kernel as gpushare
from gpushare_kernel.client import fingerprint
from gpushare_kernel.client.fingerprint import of_cell, of_command

CELL = "for x in range(3):\n    y = model(x)  # forward\n"


@pytest.mark.parametrize(
    "same",
    [
        "# a comment\nfor x in range(3):\n    y = model(x)",
        "for x in range( 3 ) :\n\n\n  y=model(x)",
    ],
)
def test_comments_and_spaces_do_not_count(same: str) -> None:
    """What is run is the same."""
    assert of_cell(same) == of_cell(CELL)


@pytest.mark.parametrize(
    "other", ["for x in range(4):\n    y = model(x)", "for x in range(3):\n    y = other(x)", ""]
)
def test_names_and_values_count(other: str) -> None:
    """What is run is not the same."""
    assert of_cell(other) != of_cell(CELL)


@pytest.mark.parametrize("text", ["!nvidia-smi\nx ==", "(" * 5000, "x = '\0'"])
def test_what_is_no_python_is_known_by_its_text(text: str) -> None:
    """Whatever somebody types."""
    assert of_cell(text) == of_cell(f"\n{text}  \n")
    assert of_cell(text) != of_cell(f"{text}1")


def test_only_a_hash_leaves() -> None:
    """A word and 64 bits, whatever the cell holds."""
    assert re.fullmatch(r"cell:[0-9a-f]{16}", of_cell("password = 'secret'"))


def made() -> tuple[str, str]:
    first = gpushare.lane("1GiB")
    second = gpushare.lane("1GiB")
    return first._submit.code, second._submit.code


def test_a_lane_is_known_by_where_it_is_made(capsys: pytest.CaptureFixture[str]) -> None:
    """The same call is the same, another one in the same function is another."""
    first, second = made()
    assert first.startswith("lane:")
    assert first != second
    assert made() == (first, second)


def test_cells_of_another_kernel_are_the_same_code(capsys: pytest.CaptureFixture[str]) -> None:
    """A notebook's cells have files named by the kernel's pid; a script's file counts."""

    def at(file: str) -> str:
        space: dict[str, object] = {"gpushare": gpushare}
        exec(compile("made = gpushare.lane('1GiB')", file, "exec"), space)
        return space["made"]._submit.code  # type: ignore[attr-defined, no-any-return]

    assert at("/tmp/ipykernel_1/7.py") == at("/tmp/ipykernel_2/8.py") == at("<string>")
    assert at("/home/a/train.py") != at("/home/b/train.py")


def test_a_command_is_known_by_its_words_and_folder() -> None:
    """`train.py` of two folders are two programs; words do not run together."""
    assert of_command(["python", "a b"], "/x") == of_command(["python", "a b"], "/x")
    assert of_command(["python", "a", "b"], "/x") != of_command(["python", "a b"], "/x")
    assert of_command(["python", "a"], "/x") != of_command(["python", "a"], "/y")


def test_frameworks_that_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are there, and none is imported for it."""
    for name in ("torch", "cupy", "jax"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert fingerprint.frameworks() == ()
    torch = types.ModuleType("torch")
    torch.__version__ = "2.9.0+cu128"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "jax", types.ModuleType("jax"))
    assert fingerprint.frameworks() == ("torch 2.9.0+cu128",)
