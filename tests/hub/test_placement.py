"""Where a kernel starts soonest, from what hosts said of themselves."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpushare_kernel.core.errors import BadSettings
from gpushare_kernel.core.values import GiB
from gpushare_kernel.hub.placement import (
    CPU,
    GPU,
    DeviceState,
    HostState,
    Wish,
    order,
    version,
)


def gpu(
    free: int = 16, *, wanting: int = 0, sessions: int = 0, wait: float | None = 0.0
) -> DeviceState:
    """A GPU of 16 GiB; `free` in GiB."""
    return DeviceState(GPU, 16 * GiB, free * GiB, wanting, 0, sessions, wait)


def host(name: str, *devices: DeviceState, **more: object) -> HostState:
    """A host with these devices."""
    return HostState(name, devices, **more)  # type: ignore[arg-type]


def best(*hosts: HostState, **wish: object) -> str:
    """The host that is taken."""
    return order(hosts, Wish(**wish)).hosts[0]  # type: ignore[arg-type]


def test_room_comes_before_company():
    """Where it fits it starts at once, beside however many; where it does not, it waits."""
    crowded, full = host("a", gpu(8, wanting=3, sessions=3)), host("b", gpu(1, wanting=1, wait=60))
    assert best(crowded, full, needs=6 * GiB) == "a"


def test_the_shortest_known_wait_where_nothing_fits():
    """A wait that nobody knows comes last."""
    hosts = (host("a", gpu(1, wait=None)), host("b", gpu(1, wait=90)), host("c", gpu(1, wait=30)))
    assert order(hosts, Wish(needs=6 * GiB)).hosts == ("c", "b", "a")


def test_fewest_who_work_then_fewest_who_may_again():
    """Idle notebooks count, after those that work: they are who comes back."""
    hosts = (
        host("a", gpu(wanting=1, sessions=1)),
        host("b", gpu(sessions=9)),
        host("c", gpu(sessions=2)),
    )
    assert order(hosts, Wish()).hosts == ("c", "b", "a")


def test_the_smallest_hole_for_what_is_known_the_most_free_otherwise():
    """So that what is large finds room later."""
    hosts = (host("a", gpu(16)), host("b", gpu(7)))
    assert best(*hosts, needs=6 * GiB) == "b"
    assert best(*hosts) == "a"


def test_who_is_on_the_way_counts_where_its_broker_will_put_it():
    """Three kernels in one moment go to three places, and two devices of one host are two of them."""
    one, two = host("a", gpu()), host("b", gpu(), gpu())
    went = Counter[str]()
    coming: dict[str, tuple[int, ...]] = {"a": (), "b": ()}
    for _ in range(6):
        now = [HostState(h.name, h.devices, coming[h.name]) for h in (one, two)]
        name = order(now, Wish(needs=2 * GiB)).hosts[0]
        coming[name] += (2 * GiB,)
        went[name] += 1
    assert went == {"a": 2, "b": 4}


def test_a_host_without_a_broker_is_idle_but_those_known_to_be_come_first():
    """The first kernel starts its broker."""
    fresh = host("fresh")
    assert best(fresh, host("idle", gpu())) == "idle"
    assert best(host("fresh", driver="580"), host("busy", gpu(wanting=1, sessions=1))) == "fresh"


def test_as_good_as_each_other_not_everybody_takes_the_same():
    """Servers that see the same draw differently, and one kernel always the same."""
    hosts = [host(f"h{n}", gpu()) for n in range(4)]
    drawn = Counter(order(hosts, Wish(salt=f"kernel {n}")).hosts[0] for n in range(400))
    assert set(drawn) == {"h0", "h1", "h2", "h3"}
    assert min(drawn.values()) > 50
    assert best(*hosts, salt="x") == best(*reversed(hosts), salt="x")


@pytest.mark.parametrize(
    ("one", "wish", "says"),
    [
        (host("a", gpu(), away="it does not answer"), Wish(), "it does not answer"),
        (host("a", gpu(), driver="535.183"), Wish(driver="580"), "its NVIDIA driver is 535.183, and this kernel needs 580"),
        (host("a", gpu()), Wish(driver="580"), "it has no NVIDIA driver, and this kernel needs 580"),
        (host("a", DeviceState(CPU, GiB, GiB)), Wish(), "it shares only its CPU, and other hosts share GPUs"),
        (host("a", gpu()), Wish(needs=17 * GiB), "the kernel needs 17.0 GiB, and the most that one of its devices shares is 16.0 GiB"),
    ],
)  # fmt: skip
def test_who_cannot_is_passed_over_with_why(one, wish, says):
    """And the next host is taken."""
    other = HostState("b", (DeviceState(GPU, 64 * GiB, 64 * GiB),), driver="580.65.06")
    found = order([one, other], wish)
    assert found.hosts == ("b",)
    assert found.passed[0][0] == "a"
    assert says in found.passed[0][1]
    assert found.why().startswith("a: ")


def test_hosts_of_cpus_alone_are_hosts():
    """Only beside GPUs are they passed over."""
    cpus = [HostState(name, (DeviceState(CPU, GiB, GiB),)) for name in "ab"]
    assert len(order(cpus, Wish()).hosts) == 2


def test_one_that_was_tried_or_is_not_meant_is_not_named():
    """Neither as a place nor as a reason."""
    hosts = [host("a", gpu()), host("b", gpu()), host("c", gpu())]
    assert order(hosts, Wish(host="b")).hosts == ("b",)
    assert order(hosts, Wish(host="b"), {"b"}).hosts == ()
    assert set(order(hosts, Wish(), {"a"}).hosts) == {"b", "c"}


@pytest.mark.parametrize(("text", "numbers"), [("580.65.06", (580, 65, 6)), ("580", (580,)), ("rc", ()), ("", ())])  # fmt: skip
def test_versions_compare_as_numbers(text, numbers):
    """580.9 is older than 580.65."""
    assert version(text) == numbers
    assert version("580.9") < version("580.65")


_devices = st.builds(
    DeviceState,
    kind=st.sampled_from([GPU, CPU]),
    capacity=st.integers(1, 80).map(lambda n: n * GiB),
    free=st.integers(0, 80).map(lambda n: n * GiB),
    wanting=st.integers(0, 9),
    waiting=st.integers(0, 9),
    sessions=st.integers(0, 9),
    wait=st.one_of(st.none(), st.floats(0, 1e6)),
)
_hosts = st.lists(
    st.builds(
        HostState,
        name=st.text("abcdef", min_size=1, max_size=3),
        devices=st.lists(_devices, max_size=3).map(tuple),
        coming=st.lists(st.integers(0, 8).map(lambda n: n * GiB), max_size=3).map(tuple),
        driver=st.sampled_from(["", "535.1", "580.2"]),
        away=st.sampled_from(["", "", "", "cut off"]),
    ),
    max_size=6,
    unique_by=lambda one: one.name,
)


@given(_hosts, st.integers(0, 100).map(lambda n: n * GiB), st.sampled_from(["", "550"]))
def test_every_host_is_a_place_or_has_a_reason(hosts, needs, driver):
    """Each exactly once; nobody who is away is a place; the order of asking changes nothing."""
    found = order(hosts, Wish(needs, driver))
    named = [*found.hosts, *(name for name, _ in found.passed)]
    assert sorted(named) == sorted(one.name for one in hosts)
    assert not {one.name for one in hosts if one.away} & set(found.hosts)
    assert all(why for _, why in found.passed)
    assert order(hosts[::-1], Wish(needs, driver)).hosts == found.hosts


@pytest.mark.parametrize("driver", ["R580", "v580.65", "new"])
def test_a_driver_that_is_no_version_is_refused(driver):
    """It would be older than all."""
    with pytest.raises(BadSettings, match=f"driver is '{driver}', which is no version"):
        Wish(driver=driver)
