"""Traces: what may be missing, and one error with row, rule, value and fix for what may not be."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpushare_kernel.core.values import GiB, KiB
from gpushare_kernel.replay.rows import BadTrace
from gpushare_kernel.replay.sources import read_source
from gpushare_kernel.replay.trace import TraceJob, check_fits, read_trace

HEADER = "job_id,user,submit_time,duration,persistent,ephemeral,iteration_time,class,demand\n"


@pytest.fixture
def write(tmp_path: Path):
    """Write a trace and return its path."""

    def written(text: str) -> Path:
        path = tmp_path / "trace.csv"
        path.write_text(text, encoding="utf-8")
        return path

    return written


def test_every_column_is_read(write) -> None:
    (job,) = read_trace(write(HEADER + "j,ann,1.5,60,1024,6GiB,0.25,rt,0.4\n"))
    assert job == TraceJob("j", 1.5, 60.0, "ann", KiB, 6 * GiB, 0.25, True, 0.4, 60.0)


def test_what_may_be_missing_has_its_default(write) -> None:
    first, second = read_trace(write("duration,job_id,submit_time\n0.05,a,0\n3,b,0\n"))
    assert first == TraceJob("a", 0.0, 0.05, "", 0, 0, 0.05, False, 1.0, 0.05)
    assert second.iteration == 0.1
    assert first.owner != second.owner


def test_other_columns_are_ignored_and_order_is_free(write) -> None:
    (job,) = read_trace(write("note,submit_time , job_id ,duration\nx, 2, a, 3\n"))
    assert (job.name, job.submitted, job.duration) == ("a", 2.0, 3.0)


def test_a_file_of_a_spreadsheet_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(b"\xef\xbb\xbfjob_id,submit_time,duration\r\na,0,1\r\n")
    assert len(read_trace(path)) == 1


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("j,u,,60,,,,,", "row 2: submit_time must not be empty, and it is empty. Write a number 0 or more."),
        ("j,u,soon,60,,,,,", "row 2: submit_time must be a number, and it is 'soon'. Write a number 0 or more."),
        ("j,u,-1,60,,,,,", "row 2: submit_time must be 0 or more, and it is '-1'. Mend or remove the row."),
        ("j,u,nan,60,,,,,", "row 2: submit_time must be finite, and 0 or more, and it is 'nan'."),
        ("j,u,inf,60,,,,,", "row 2: submit_time must be finite, and 0 or more, and it is 'inf'."),
        ("j,u,0,0,,,,,", "row 2: duration must be above 0, and it is '0'."),
        ("j,u,0,inf,,,,,", "row 2: duration must be finite, and above 0, and it is 'inf'. Mend or remove the row."),
        ("j,u,0,1e300,,,,,", "row 2: duration must be at most 1e+09 seconds (30 years), and it is '1e300'. Mend or remove the row."),
        ("j,u,0,-3,,,,,", "row 2: duration must be above 0, and it is '-3'."),
        ("j,u,0,,,,,,", "row 2: duration must not be empty"),
        (",u,0,1,,,,,", "row 2: job_id must not be empty, and it is empty. Give the job an id."),
        ("j,u,0,1,-5,,,,", "row 2: persistent must be 0 or more bytes, and it is '-5'. Write bytes, or a size such as 6GiB."),
        ("j,u,0,1,,nan,,,", "row 2: ephemeral must be 0 or more bytes, and it is 'nan'."),
        ("j,u,0,1,,6 gigs,,,", "row 2: ephemeral: '6 gigs' is not a size."),
        ("j,u,0,1,,,0,,", "row 2: iteration_time must be above 0, and it is '0'."),
        ("j,u,0,1,,,,LOW,", "row 2: class must be one of BE, RT, and it is 'LOW'. Write BE or RT."),
        ("j,u,0,1,,,,,0", "row 2: demand must be above 0 and at most 1, and it is '0'."),
        ("j,u,0,1,,,,,1.5", "row 2: demand must be above 0 and at most 1, and it is '1.5'."),
        ("a,u,0,1,,,,,\nb,u,0,1,,,,,\na,u,0,1,,,,,", "row 4: job_id 'a' is there twice (first in row 2)."),
        ("a,u,9,1,,,,,\nb,u,3,1,,,,,", "row 3: submit_time 3 comes after 9. Sort the file by submit_time."),
        ("j,u,0", "row 2: every row has as many cells as the header, 9. Mend or remove the row."),
        ("j,u,0,1,,,,,,,,", "row 2: every row has as many cells as the header, 9."),
        ("", "there is no job in it. Write one row for each job."),
        ("j,u,0,1_0,,,,,", "row 2: duration must be a number, and it is '1_0'. Write a number above 0."),
        ("j,u,0,٣,,,,,", "row 2: duration must be a number, and it is '٣'."),
        ("j,u,0,1,1_0,,,,", "row 2: persistent: '1_0' is not a size."),
        ("j,u,0,1,1e308,,,,", "row 2: persistent must be under 1024 TiB, and it is '1e308'. Write bytes, or a size such as 6GiB."),
        ("j,u,0,1,,inf,,,", "row 2: ephemeral must be under 1024 TiB, and it is 'inf'."),
        (f"j,u,0,1,{'9' * 99},,,,", f"row 2: persistent must be under 1024 TiB, and it is '{'9' * 60}'.... Write bytes"),
        ("a\0b,u,0,1,,,,,", "row 2: a row is text, and this one has a NUL character. Export it as CSV (UTF-8)."),
        ("a\x1b[2Jb,u,0,1,,,,,", r"row 2: job_id must have no control characters, and it is 'a\x1b[2Jb'. Take them out."),
        ("a,u\x07,0,1,,,,,", "row 2: user must have no control characters"),
        (f"{'x' * 131073},u,0,1,,,,,", "row 2: a cell has at most 131072 characters, and one has more. Shorten it"),
        ('"j"x,u,0,1,,,,,', 'row 2: a cell that begins with a quotation mark (") ends with one, in the same row, and one does not. Take the mark out.'),
        ('j,u,0,"1,,,,,', "row 2: a cell that begins with a quotation mark"),
        ('a,u,0,1,,,,,\n"b\nc",u,1,-1,,,,,', "row 3: a cell that begins with a quotation mark"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named(write, rows: str, said: str) -> None:
    with pytest.raises(BadTrace) as refused:
        read_trace(write(HEADER + rows + "\n"))
    assert said in str(refused.value)
    assert str(refused.value).startswith(str(write("").parent / "trace.csv"))


@pytest.mark.parametrize("rest", ["", 'e,4,5,hw 2"\n', 'e,4,5,"hw 2"\n'])
def test_a_stray_quotation_mark_swallows_no_rows(write, rest: str) -> None:
    """Whatever comes after it, an ignored column's included."""
    rows = 'a,0,1,"hw\nb,1,2,\nc,2,3,\nd,3,-5,\n' + rest
    with pytest.raises(BadTrace, match=r"trace\.csv, row 2: a cell that begins with a quotation"):
        read_trace(write("job_id,submit_time,duration,note\n" + rows))


def test_what_quotation_marks_are_for(write) -> None:
    """A comma or a quoted word in a cell; a mark within one is nothing special; empty lines count, as in a spreadsheet."""
    rows = '"a,1",0,"1","the ""big"" one"\n\n b ,1, "2",5" disk\n'
    first, second = read_trace(write("job_id,submit_time,duration,note\n" + rows))
    assert (first.name, first.duration) == ("a,1", 1.0)
    assert (second.name, second.duration, second.where[-5:]) == ("b", 2.0, "row 4")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_rows_have_the_numbers_of_their_lines(tmp_path: Path, end: str) -> None:
    """Whichever system wrote the file."""
    path = tmp_path / "trace.csv"
    lines = ["job_id,submit_time,duration", "", "a,0,1", "b,0,-1", ""]
    path.write_bytes(end.join(lines).encode())
    with pytest.raises(BadTrace, match="row 4: duration must be above 0"):
        read_trace(path)


def test_a_header_is_needed(write) -> None:
    with pytest.raises(
        BadTrace,
        match=r"row 1: the header must name job_id, submit_time, duration, and duration is missing",
    ):
        read_trace(write("job_id,submit_time\na,0\n"))


@pytest.mark.parametrize(("mark", "called"), [(";", "semicolons"), ("\t", "tabs")])
def test_columns_that_something_else_separates(write, mark: str, called: str) -> None:
    """As a spreadsheet exports them where a comma is the decimal point."""
    text = "job_id,submit_time,duration\na,0,1\n".replace(",", mark)
    with pytest.raises(BadTrace, match=f"row 1: columns are separated by commas, and here by {called}"):  # fmt: skip
        read_trace(write(text))


def test_who_never_fits_is_named_with_its_row(write) -> None:
    jobs = read_trace(write("job_id,submit_time,duration,persistent\na,0,1,1GiB\nb,1,1,3GiB\n"))
    with pytest.raises(BadTrace, match=r"trace\.csv, row 3: job b never fits: it needs 3\.0 GiB"):
        check_fits(jobs, 2 * GiB)


def test_who_never_fits_is_named() -> None:
    check_fits([TraceJob("a", 0, 1, persistent=GiB, ephemeral=GiB)], 2 * GiB)
    with pytest.raises(BadTrace, match=r"^job a never fits: it needs 2\.0 GiB .* has 1\.0 GiB"):
        check_fits([TraceJob("a", 0, 1, persistent=GiB, ephemeral=GiB)], GiB)


def test_a_column_that_is_there_twice(write) -> None:
    """Which of the two counts, nobody can know; columns that are ignored may have any names."""
    with pytest.raises(BadTrace, match=r"row 1: each column is named once, and duration is there twice\. Take one"):  # fmt: skip
        read_trace(write("job_id,submit_time,duration,duration\na,0,1,2\n"))
    assert len(read_trace(write("job_id,submit_time,duration,,\na,0,1,,\n"))) == 1


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(BadTrace, match=r"x\.csv cannot be read: File name too long\."):
        read_source(tmp_path / f"{'x' * 300}.csv")


def test_what_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(BadTrace, match=r"is a folder\. Name the trace in it"):
        read_trace(tmp_path)
    path = tmp_path / "trace.csv"
    path.write_bytes(b"\x89PNG\xff\x00")
    with pytest.raises(BadTrace, match=r"is no text in UTF-8 .* Export it as CSV \(UTF-8\)\."):
        read_trace(path)
