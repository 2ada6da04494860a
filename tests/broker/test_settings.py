"""The administrator's file: what it says, and what is said of one that is wrong (file, line, rule, value, next step)."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpushare_kernel.broker.people import People
from gpushare_kernel.broker.settings import Caps, Host, line_of, parsed, read
from gpushare_kernel.core.errors import BadSettings
from gpushare_kernel.core.values import GiB

GOOD = """
admins = ["ann"]
admin_groups = ["wheel"]

[groups.students]
unix_groups = ["students"]
users = ["cyd"]
weight = 1
memory = "4GiB"
parked_memory = "16GiB"
kernels = 3
realtime = 0.25
budget_per_day = "2h"
budget_per_week = "8h"
trust = "course-7"

[[groups.students.timetable]]
days = ["sat", "sun"]
memory = "40GiB"

[[groups.students.timetable]]
hours = "22:00-06:00"
weight = 4

[groups.everybody]
weight = 0.5
"""


class Village(People):
    """Three people and two groups."""

    def has_user(self, name: str) -> bool:
        return name in {"ann", "bob", "cyd"}

    def has_group(self, name: str) -> bool:
        return name in {"students", "wheel", "gpu-admins"}

    def nearest(self, name: str, *, group: bool) -> str:
        return "students" if group else "ann"

    def groups_of(self, user: str) -> frozenset[str]:
        return frozenset({"students"} if user in {"bob", "cyd"} else {"wheel"})


HOST = Host(Village(), capacity=80 * GiB, kernels=1024, compute=1.0, memory=256 * GiB)
PATH = Path("/etc/gpushare/gpushare.toml")


def wrong(text: str) -> str:
    """What is said of a file."""
    with pytest.raises(BadSettings) as problem:
        parsed(text, PATH, HOST)
    return str(problem.value).removeprefix(str(PATH))


def test_what_a_file_says() -> None:
    """Sizes in bytes, times in seconds; an entry of a timetable changes what it names and leaves the rest."""
    found = parsed(GOOD, PATH, HOST)
    students, everybody = found.groups
    usual = Caps(1.0, 4 * GiB, 16 * GiB, 3, 0.25)
    assert students.caps == usual
    assert (students.day, students.week, students.trust) == (7200.0, 28800.0, "course-7")
    assert students.timetable == (
        Caps(1.0, 40 * GiB, 16 * GiB, 3, 0.25),
        Caps(4.0, 4 * GiB, 16 * GiB, 3, 0.25),
    )
    assert students.most_memory == 40 * GiB
    assert everybody.caps == Caps(0.5)
    assert everybody.most_memory is None
    assert (found.admins, found.admin_groups) == ({"ann"}, {"wheel"})


def test_a_night_belongs_to_the_day_on_which_it_begins() -> None:
    """Minutes count from Monday."""
    weekend, night = parsed(GOOD, PATH, HOST).groups[0].periods
    day = 24 * 60
    assert [weekend.covers(n * day) for n in range(7)] == [False] * 5 + [True] * 2
    assert [night.covers(60 * hour) for hour in (0, 5, 6, 21, 22)] == [
        True,
        True,
        False,
        False,
        True,
    ]
    (friday_night,) = parsed('[groups.g]\nusers = ["ann"]\n[[groups.g.timetable]]\ndays = ["Fri"]\nhours = "22:00-06:00"\nweight = 2\n', PATH, HOST).groups[0].periods  # fmt: skip
    assert friday_night.covers(5 * day + 5 * 60)
    assert not friday_night.covers(4 * day + 5 * 60)
    (sunday,) = parsed('[groups.g]\nusers = ["ann"]\n[[groups.g.timetable]]\ndays = ["sun"]\nhours = "23:00-01:00"\nweight = 2\n', PATH, HOST).groups[0].periods  # fmt: skip
    assert sunday.covers(30), "into the next week"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[groups.students]\nusers = ['ann']\nmemroy = '4GiB'\n", ", line 3: [groups.students] has no key 'memroy'. Did you mean 'memory'?"),
        ("admin = ['ann']\n", ", line 1: the file has no key 'admin'. Did you mean 'admins'?"),
        ("[group.students]\nusers = ['ann']\n", ", line 1: the file has no key 'group'. Did you mean 'groups'?"),
        ("[groups.g]\nusers = ['ann']\n[[groups.g.timetable]]\nweight = 2\n[[groups.g.timetable]]\nhour = '8-9'\n",
         ", line 6: [groups.g.timetable (entry 2)] has no key 'hour'. Did you mean 'hours'?"),
        ("[groups.g]\nusers = ['ann']\n\nmemory = '100GiB'\n",
         ", line 4: groups.g.memory: it is 100.0 GiB, and the largest device here has 80.0 GiB to share. Write that much or less, or leave it out."),
        ("[groups.g]\nusers = ['ann']\nmemory = '4 parsecs'\n",
         ", line 3: groups.g.memory: '4 parsecs' is not a size. Write a number with a unit: 512MiB, 2G, 1.5 GB or 25%."),
        ("[groups.g]\nusers = ['ann']\nparked_memory = '1TiB'\n",
         ", line 3: groups.g.parked_memory: it is 1.0 TiB, and this host has 256.0 GiB of memory. Write less, or leave it out."),
        ("names = 'hub'\n", ", line 1: names: 'hub' is neither. Write \"unix\" where they are accounts of this host, \"any\" where not."),
        ("[groups.g]\nusers = ['ann']\nkernels = 0\n",
         ", line 3: groups.g.kernels: it must be from 1 to 1024, as many as the broker can serve of a user, and 0 is not."),
        ("[groups.g]\nusers = ['ann']\nkernels = 'three'\n", ", line 3: groups.g.kernels: expected a whole number, got a text in quotes."),
        ("[groups.g]\nusers = ['ann']\nrealtime = 2.0\n", ", line 3: groups.g.realtime: it must be from 0 (none) to 1, all there is here, and 2 is not."),
        ("[groups.g]\nusers = ['anm']\n", ", line 2: groups.g.users: there is no user 'anm' on this host. Did you mean 'ann'?"),
        ("[groups.g]\nusers = ['ann (hub)']\n",
         ", line 2: groups.g.users: there is no user 'ann (hub)' on this host. Where users are those of a JupyterHub and no accounts of this host: names = \"any\"."),
        ("[groups.g]\nunix_groups = ['studens']\n", ", line 2: groups.g.unix_groups: there is no unix group 'studens' on this host. Did you mean 'students'?"),
        ("[groups.g]\nusers = ['ann']\nbudget_per_day = '25h'\n",
         ", line 3: groups.g.budget_per_day: '25h' is more than all devices here have in that time. Write less, or leave it out."),
        ("[groups.g]\nusers = ['ann']\n[[groups.g.timetable]]\nhours = '8-18'\n",
         ", line 4: groups.g.timetable (entry 1).hours: '8-18' are no hours. Write for example 08:00-18:00, or 22:00-06:00 for a night."),
        ("[groups.g]\nusers = ['ann']\n[[groups.g.timetable]]\ndays = ['monday']\n",
         ", line 4: groups.g.timetable (entry 1).days: 'monday' is no day. Write mon, tue, wed, thu, fri, sat, sun."),
        ("[groups.g]\nweight = 2\n", ", line 1: groups.g: a group lists users or unix_groups; only 'everybody' is for all others."),
        ("[groups.everybody]\nusers = ['ann']\n", ", line 1: groups.everybody: it is the group of all who are in no other, and lists nobody."),
        ("[groups.g]\nusers = ['ann']\nweight = 1000\n",
         ", line 3: groups.g.weight: a weight must be between 0.01 and 100, and 1000 is not. 1 is everybody's; 2 counts twice against other people."),
        ("[groups.g]\nusers = ['ann']\nmemory = 8\n",
         ", line 3: groups.g.memory: expected a text in quotes, got a whole number. Write \"8GiB\"."),
        ("[groups.g]\nusers = 'daemon'\n",
         ", line 2: groups.g.users: expected a list, got a text in quotes. Write [\"daemon\"]."),
        ("[groups.everyone]\nweight = 2\n",
         ", line 1: groups.everyone: a group lists users or unix_groups; only 'everybody' is for all others. Did you mean [groups.everybody]?"),
        ("[groups]\ns = 3\n", ", line 2: groups.s: expected a table, got 3. Write [groups.s], and its keys below that."),
        ("[groups.g]\nusers = ['ann']\nkernels = '3'\n",
         ", line 3: groups.g.kernels: expected a whole number, got a text in quotes. Write 3."),
        ("[groups.g]\nusers = ['ann']\nrealtime = '0.25'\n",
         ", line 3: groups.g.realtime: expected a number, got a text in quotes. Write 0.25."),
        ("[groups.g]\nusers = ['ann']\nbudget_per_day = 2\n",
         ", line 3: groups.g.budget_per_day: expected a text in quotes, got a whole number. Write \"2h\"."),
        ("admins = 'ann'\n", ", line 1: admins: expected a list, got a text in quotes. Write [\"ann\"]."),
        ("[groups.g\nusers = 3", ": this is no TOML: Expected ']' at the end of a table declaration (at line 1, column 10)."),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_line(text: str, said: str) -> None:
    assert wrong(text) == said


def test_names_of_a_hub_are_held_against_nobody() -> None:
    """They are no accounts of this host; unix groups are, all the same."""
    text = 'names = "any"\n[groups.g]\nusers = ["zoe@example.org"]\n'
    assert parsed(text, PATH, HOST).groups[0].users == {"zoe@example.org"}
    assert "no unix group" in wrong('names = "any"\n[groups.g]\nunix_groups = ["nobodys"]\n')


def test_a_key_is_found_where_it_stands() -> None:
    """Where it is written in another way, the table is."""
    assert line_of(GOOD, ("groups", "students", "timetable", 1), "hours") == GOOD.splitlines().index('hours = "22:00-06:00"') + 1  # fmt: skip
    assert line_of("a = {b = 1}\n", ("a",), "b") is None


def test_a_file_that_others_may_write_is_not_followed(tmp_path: Path) -> None:
    """It decides who administers; one that is not there is said, too."""
    path = tmp_path / "gpushare.toml"
    with pytest.raises(BadSettings, match=r"cannot be read: No such file"):
        read(path, HOST)
    path.write_text(GOOD)
    path.chmod(0o664)
    with pytest.raises(BadSettings, match=r"may write to it; it belongs to uid \d+, mode 0664"):
        read(path, HOST)
    path.chmod(0o644)
    assert len(read(path, HOST).groups) == 2
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())  # as editors of other systems begin a file
    assert len(read(path, HOST).groups) == 2
    path.write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(BadSettings, match="has more than"):
        read(path, HOST)


def test_people_are_those_of_the_host() -> None:
    """Root is there everywhere, and its group."""
    people = People()
    assert people.has_user("root")
    assert people.has_group("root")
    assert "root" in people.groups_of("root")
    assert not people.has_user("nobody-has-this-name")
    assert people.groups_of("nobody-has-this-name") is None
    assert people.nearest("roott", group=False) == "root"
    assert people.nearest("qqqqqqqqqqq", group=True) == ""


def test_the_file_in_the_docs_is_one() -> None:
    """As it stands there."""
    text = (Path(__file__).parents[2] / "docs/admin/groups.md").read_text(encoding="utf-8")
    example = text.partition("```toml\n")[2].partition("```")[0]
    students, everybody = parsed(example, PATH, HOST).groups
    assert (students.name, len(students.timetable), everybody.caps.weight) == ("students", 2, 0.5)
