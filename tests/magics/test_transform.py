"""The rewriting of cells and the reading of what stands behind the magic: pure, as tables."""

from __future__ import annotations

import pytest
from gpushare_magics.args import Declaration, next_line, parse
from gpushare_magics.completion import candidates
from gpushare_magics.transform import arguments_of, rewrite

from gpushare_kernel.core.errors import BadDeclaration, BadSize
from gpushare_kernel.core.values import GiB, JobId
from gpushare_kernel.wire.messages import Report


def rewritten(cell: str) -> str:
    """Return a whole cell as IPython would hand it on."""
    return "".join(rewrite(cell.splitlines(keepends=True)))


@pytest.mark.parametrize(
    ("cell", "result"),
    [
        ("%%gpulane 6GiB\nx\n", "__import__(\"gpushare_magics\").enter('6GiB')  # %%gpulane 6GiB\nx\n"),
        ("%%gpulane\nx", '__import__("gpushare_magics").enter(\'\')  # %%gpulane\nx'),
        ("%%gpulane", '__import__("gpushare_magics").enter(\'\')  # %%gpulane\n'),
        ("%%gpulane \t\nx", '__import__("gpushare_magics").enter(\'\')  # %%gpulane\nx'),
        ("\n# why\n\n%%gpulane 1G\nx", "\n# why\n\n__import__(\"gpushare_magics\").enter('1G')  # %%gpulane 1G\nx"),
        ("%%gpulane 6 GiB\r\nx", "__import__(\"gpushare_magics\").enter('6 GiB')  # %%gpulane 6 GiB\nx"),
        ("%%gpulane --name \"it's\"\nx", "__import__(\"gpushare_magics\").enter('--name \"it\\'s\"')  # %%gpulane --name \"it's\"\nx"),
        ("%%gpulane 6GiB --dry-run\nboom()", "__import__(\"gpushare_magics\").dry_run('6GiB --dry-run')  # %%gpulane 6GiB --dry-run\n"),
        ("# note\n%%gpulane 6GiB\n%%time\nx", "%%gpulane 6GiB\n%%time\nx"),
        ("# note\n%%gpulane 6GiB\n\n \t\r\n%%time\nx", "%%gpulane 6GiB\n\n \t\r\n%%time\nx"),
        ("%%gpulane\n\nx\n", '__import__("gpushare_magics").enter(\'\')  # %%gpulane\n\nx\n'),
        ("%%gpulane\n# why\n%%time\nx", '__import__("gpushare_magics").enter(\'\')  # %%gpulane\n# why\n%%time\nx'),
    ],
)  # fmt: skip
def test_rewritten(cell: str, result: str) -> None:
    """The magic's line becomes a call; the others stay, and stay where they are."""
    assert rewritten(cell) == result


@pytest.mark.parametrize(
    "cell",
    ["", "x = 1\n%%gpulane 6GiB\n", "s = '''\n%%gpulane\n'''", "%%gpulane?", "%%gpulane??", "%%gpulanes 6GiB\nx", "%%time\n%%gpulane 6GiB\nx", "  %%gpulane 6GiB\nx", "%gpulane 6GiB", "x\n", "# only\n\n", "%%gpulane 6GiB\n%%time\nx", "%%gpulane 6GiB\n\n%%time\nx"],
)  # fmt: skip
def test_left_alone(cell: str) -> None:
    """Whatever is not a leading %%gpulane is not ours; rewriting twice changes nothing."""
    assert rewritten(cell) == cell
    assert rewritten(rewritten(cell)) == cell


def test_declared() -> None:
    """A cell that declares is recognised, stacked or not."""
    assert arguments_of("# c\n%%gpulane 6GiB\n%%time\nx") == "6GiB"
    assert arguments_of("%%gpulane\nx") == ""
    assert arguments_of("x = 1") is None


@pytest.mark.parametrize(
    ("text", "declaration"),
    [
        ("", Declaration()),
        ("6GiB", Declaration(size="6GiB")),
        ("6 GiB", Declaration(size="6 GiB")),
        ("'1.5 GB'", Declaration(size="1.5 GB")),
        ("25%", Declaration(size="25%")),
        ("-p 2GiB -e 1 GiB", Declaration(persistent="2GiB", ephemeral="1 GiB")),
        ("-p2GiB", Declaration(persistent="2GiB")),
        ("6GiB --time 1h30m", Declaration(size="6GiB", time="1h30m")),
        ("--time=90 6 GiB", Declaration(size="6 GiB", time="90")),
        ("--weight 2 6GiB --name 'my job' --wait 30", Declaration(size="6GiB", weight=2.0, name="my job", wait=30.0)),
        ("6GiB --dry-run", Declaration(size="6GiB", dry_run=True)),
        ("--weight -1", Declaration(weight=-1.0)),
    ],
)  # fmt: skip
def test_read(text: str, declaration: Declaration) -> None:
    """Options in any order, sizes in one or two words."""
    assert parse(text) == declaration


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("-5GiB", BadSize, "'-5GiB' is negative"),
        ("-p -5GiB", BadSize, "'-5GiB' is negative"),
        ("--wieght 2", BadDeclaration, r"no option --wieght\. Did you mean --weight\?"),
        ("--nonsense", BadDeclaration, r"no option --nonsense\. %%gpulane\? shows"),
        (
            "--weight heavy",
            BadDeclaration,
            "--weight takes a number, and 'heavy' is no number. Write for example --weight 2.",
        ),
        (
            "--wait soon",
            BadDeclaration,
            "--wait takes the seconds to wait at most, and 'soon' is no number. Write for example --wait 60.",
        ),
        ("--name", BadDeclaration, "expected one argument"),
        ("--name 'x", BadDeclaration, "Close the quotation mark"),
        ("-x", BadDeclaration, "unrecognized arguments: -x"),
    ],
)
def test_unreadable(text: str, error: type[Exception], words: str) -> None:
    """What cannot be read is refused with what to write."""
    with pytest.raises(error, match=words):
        parse(text)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("5GiB", "%%gpulane 6GiB"),
        ("", "%%gpulane 6GiB"),
        ("5GiB --time 5min", "%%gpulane 6GiB --time 5min"),
        ("5GiB --weight 2 --name 'my job' --wait 30", "%%gpulane 6GiB --weight 2 --name 'my job' --wait 30"),
        ("-p 4GiB -e 1GiB", "%%gpulane -p 5GiB -e 256MiB"),
    ],
)  # fmt: skip
def test_next_line_is_a_declaration(before: str, after: str) -> None:
    """What is to be pasted keeps the options, and can itself be read."""
    report = Report(JobId("j"), 0, 1, 1, 1, 0, 5 * GiB, 0, GiB // 5, 0, 1)
    assert next_line(parse(before), report) == after
    assert parse(after.removeprefix("%%gpulane"))


@pytest.mark.parametrize(
    ("line", "token", "found"),
    [
        ("%%gpulane --w", "--w", ["--weight", "--wait"]),
        ("%%gpulane 6GiB --t", "--t", ["--time"]),
        ("%%gpulane --wait 3 --w", "--w", ["--weight"]),
        ("%gpushare re", "re", ["release", "resume", "rescue"]),
        (
            "%gpushare ",
            "",
            [
                *(
                    "status",
                    "lanes",
                    "live",
                    "needs",
                    "release",
                    "pause",
                    "resume",
                    "park",
                    "unpark",
                    "rescue",
                    "memory",
                ),
                *("notify", "debug", "off", "on", "doctor"),
            ],
        ),
        ("%gpushare live -", "-", ["--static"]),
        ("%gpushare memory --f", "--f", ["--free"]),
        ("%gpushare release h", "h", []),
        ("x = --w", "--w", []),
    ],
)
def test_completion(line: str, token: str, found: list[str]) -> None:
    """Options behind %%gpulane, commands behind %gpushare, nothing elsewhere."""
    assert candidates(line, token) == found
