"""What a snapshot shows: pieces that add up, words that the cell shows too, and a size that is bounded."""

from __future__ import annotations

import json
import time

import msgspec
import pytest
from gpushare_widgets.parties import clean
from gpushare_widgets.scene import scene

from gpushare_kernel.client.shown import words_of
from gpushare_kernel.core.values import GiB, MiB
from gpushare_kernel.wire.snapshot import DeviceView, SessionView, Snapshot, UserView
from tests.widgets.snapshots import (
    EMPTY,
    FULL,
    GPU,
    HOSTILE,
    IDLE,
    NOW,
    SCREEN_BREAKERS,
    Turn,
    crowd,
    hostile,
    session,
)


def of_kind(shown: dict, kind: str) -> list[dict]:
    return [one for one in shown["devices"][0]["segments"] if one["kind"] == kind]


def test_pieces_add_up_to_the_capacity():
    """Contexts, what is kept, lanes and free are all that is shared; what is beside it comes after."""
    shown = scene(FULL, now=NOW)
    (device,) = shown["devices"]
    inside = ("context", "persistent", "lane", "free")
    kinds = [one["kind"] for one in device["segments"]]
    assert sum(one["size"] for one in device["segments"] if one["kind"] in inside) == 78 * GiB
    assert list(dict.fromkeys(kinds)) == [*inside, "desktop", "foreign", "parked"]
    assert all(one["size"] > 0 and one["label"] and one["title"] for one in device["segments"])


def test_own_memory_comes_first_and_others_have_no_sizes_of_their_own():
    """What those keep whose sizes we may not see is one piece; so are their lanes."""
    shown = scene(FULL, now=NOW)
    kept = of_kind(shown, "persistent")
    assert [(one["label"], one["own"], one["size"]) for one in kept] == [
        ("train.ipynb", True, 14 * GiB),
        ("hw2.ipynb", True, 4 * GiB),
        ("others", False, 16 * GiB),
    ]
    mine, theirs = of_kind(shown, "lane")
    assert (mine["size"], mine["fill"], mine["own"], mine["session"]) == (12 * GiB, 9 * GiB, True, "s1")  # fmt: skip
    assert mine["title"] == (
        "Lane 1: 12.0 GiB of GPU memory for what runs; train.ipynb uses it now, 9.0 GiB of it in use; 2 share it in turn."
    )
    assert (theirs["label"], theirs["fill"], theirs["own"]) == ("1 lane of others", None, False)


def test_what_everybody_is_to_read_comes_first_in_the_words_of_status():
    """An announcement and a maintenance, a line each; what one's group allows is one's own only; else there is neither."""
    shown = scene(FULL, now=NOW)
    assert list(shown)[1] == "news"
    since = time.strftime("%H:%M", time.localtime(NOW - 600))
    assert shown["news"] == words_of(FULL) == [
        "From your administrator: GPU 1 is away on Monday, 9 to 11",
        f"Maintenance since {since} (new driver, back at 16:00): nothing new begins. Still running: train.ipynb, bl.",
    ]  # fmt: skip
    assert shown["account"] == (
        "ann (students): 40.0 GiB of each device at most, 32.0 GiB set aside at most, 3 kernels at most."
    )
    assert not {"news", "account"} & {*scene(IDLE, now=NOW)}
    assert all(len(said) <= 700 and said.isprintable() for said in scene(hostile(), now=NOW)["news"])  # fmt: skip


def test_the_only_other_user_owns_what_others_keep():
    """There is nobody else whose it could be."""
    two = msgspec.structs.replace(FULL, sessions=FULL.sessions[:3])
    assert of_kind(scene(two, now=NOW), "persistent")[-1]["user"] == "bl"


def test_who_ran_when():
    """In seconds before now, own first; whose session ended is still there; turns that touch are one."""
    (time,) = scene(FULL, now=NOW)["time"]
    assert time["window"] == 30.0
    assert [row["label"] for row in time["rows"]] == ["train.ipynb", "(of bl)", "ended"]
    own = time["rows"][0]["spans"]
    assert own[0] == [30.0, 29.6, "turn"]
    assert [8.0, 5.0, "pause"] in own
    close = (Turn("s1", 5.0, 4.0, "turn"), Turn("s1", 3.995, 3.0, "turn"), Turn("s1", 99.0, 29.0, "turn"))  # fmt: skip
    near = msgspec.structs.replace(FULL, devices=(msgspec.structs.replace(GPU, turns=close),))
    spans = scene(near, now=NOW)["time"][0]["rows"][0]["spans"]
    assert spans == [[30.0, 29.0, "turn"], [5.0, 3.0, "turn"]]


def test_much_time_is_coarser_and_as_long_in_all():
    """Two that alternate ten times a second and were drained: fewer pieces than turns, and nobody's time is lost."""
    turns = tuple(
        Turn(f"s{1 + 2 * (n % 2)}", 30.0 - n * 0.05, 29.97 - n * 0.05, ("turn", "drain")[n % 3 == 0])
        for n in range(600)
    )  # fmt: skip
    busy = msgspec.structs.replace(FULL, devices=(msgspec.structs.replace(GPU, turns=turns),))
    shown = scene(busy, now=NOW)
    spans = [span for row in shown["time"][0]["rows"] for span in row["spans"]]
    assert len(spans) <= 310
    for kind in ("turn", "drain"):
        lasted = sum(turn.began - turn.ended for turn in turns if turn.kind == kind)
        assert sum(b - e for b, e, k in spans if k == kind) == pytest.approx(lasted, abs=1.0)
    assert all(30.0 >= began > ended >= 0.0 for began, ended, _ in spans)
    assert sum(row["share"] for row in shown["shares"]) == pytest.approx(1.0)


def test_shares_are_of_the_window_beside_a_fair_one_by_weight():
    """Those count who ran, run or wait. Without turns the account since the broker's start is told, and says so."""
    shares = {row["user"]: row for row in scene(FULL, now=NOW)["shares"]}
    assert shares["ann"]["own"]
    assert shares["ann"]["share"] == pytest.approx(0.4986, abs=0.001)
    assert [shares[user]["fair"] for user in ("ann", "bl", "cd")] == [0.25, 0.25, 0.5]
    assert {row["over"] for row in shares.values()} == {30.0}
    older = msgspec.structs.replace(FULL, devices=(msgspec.structs.replace(GPU, turns=()),))
    shares = {row["user"]: row for row in scene(older, now=NOW)["shares"]}
    assert (shares["ann"]["share"], shares["ann"]["used"], shares["ann"]["over"]) == (0.6, 900.0, None)  # fmt: skip
    alone = msgspec.structs.replace(older, sessions=FULL.sessions[:1], queue=(), users=(UserView("ann", 1.0, 9.0),))  # fmt: skip
    assert "shares" not in scene(alone, now=NOW)


@pytest.mark.parametrize(("state", "shared"), [("idle", False), ("busy", True)])
def test_who_ran_for_a_moment_and_wants_nothing_shares_with_nobody(state, shared):
    """`1 %, fair is 50 %` would look like a wrong done to somebody who is idle."""
    turns = (Turn("s1", 30.0, 0.5, "turn"), Turn("s3", 0.5, 0.1, "turn"))
    other = msgspec.structs.replace(FULL.sessions[2], state=state)
    two = msgspec.structs.replace(
        FULL, devices=(msgspec.structs.replace(GPU, turns=turns),), sessions=(FULL.sessions[0], other), queue=(),
    )  # fmt: skip
    assert ("shares" in scene(two, now=NOW)) is shared


def test_the_queue_says_what_the_cell_says():
    """In order; to others' jobs only the reason, without what is not for us to see."""
    first, own = scene(FULL, now=NOW)["queue"]
    assert (first["place"], first["text"]) == (0, "Waiting for GPU memory that another cell is using.")  # fmt: skip
    assert (own["label"], own["own"], own["eta"], own["needs"]) == ("hw2.ipynb: big fit", True, 240.0, 30 * GiB)  # fmt: skip
    assert own["text"] == (
        "Waiting for GPU memory: needs 30.0 GiB, 24.0 free. Your own train.ipynb holds 26.0 GiB and is running. "
        "1 ahead of you. About 4 min to go. Interrupt gives up your place."
    )


def test_a_reason_from_a_newer_broker_is_passed_on():
    """It is a word at least."""
    newer = msgspec.structs.replace(FULL, queue=(msgspec.structs.replace(FULL.queue[0], reason="weather"),))  # fmt: skip
    assert scene(newer, now=NOW)["queue"][0]["text"] == "Waiting: weather."


def test_one_can_do_something_about_own_sessions_only():
    """What the device cannot do is not offered; to others' idle one of them is asked while one waits there."""
    actions = {row["id"]: row["actions"] for row in scene(FULL, now=NOW)["sessions"]}
    assert actions == {
        "s1": ["pause"],
        "s2": ["release", "park"],
        "s3": [],
        "s4": ["ask"],
        "s5": ["restore"],
    }
    plain = DeviceView("GPU-5f3c", "cuda", "GPU", 78 * GiB, 0, 34 * GiB, (), limits="MPS runs.")
    limited = msgspec.structs.replace(FULL, devices=(plain,), queue=())
    actions = {row["id"]: row["actions"] for row in scene(limited, now=NOW)["sessions"]}
    assert actions == {"s1": [], "s2": ["release"], "s3": [], "s4": [], "s5": []}
    lost = msgspec.structs.replace(FULL, devices=(msgspec.structs.replace(plain, lost="gone."),))
    assert not any(row["actions"] for row in scene(lost, now=NOW)["sessions"])


@pytest.mark.parametrize(("spare", "offered"), [(None, True), (GiB, True), (0, False)])
def test_release_is_offered_where_there_is_something_to_give_back(spare, offered):
    """Who uses all that it holds has no use for it. An older broker does not say."""
    idle = msgspec.structs.replace(FULL.sessions[1], spare=spare)
    shown = scene(msgspec.structs.replace(FULL, sessions=(FULL.sessions[0], idle)), now=NOW)
    actions = {row["id"]: row["actions"] for row in shown["sessions"]}
    assert ("release" in actions["s2"]) is offered


def test_who_was_paused_by_hand_can_be_let_on():
    """And only by hand: what is over its grant, or out of its turn, goes on by itself."""
    for why, mode, actions in (
        ("by-its-owner", "by hand", ["resume"]),
        ("over-its-grant", "over its grant", []),
        (None, "in turns", []),
    ):
        first = msgspec.structs.replace(FULL.sessions[0], state="paused", why_paused=why)
        shown = msgspec.structs.replace(FULL, sessions=(first, *FULL.sessions[1:]))
        row = next(row for row in scene(shown, now=NOW)["sessions"] if row["id"] == "s1")
        assert (row["mode"], row["actions"]) == (mode, actions)


def test_a_job_that_is_called_like_its_notebook_is_not_named_twice():
    """A cell that names nothing has the notebook's name."""
    first = msgspec.structs.replace(FULL.sessions[0], doing=("train.ipynb", "epoch 3"))
    shown = scene(msgspec.structs.replace(FULL, sessions=(first, *FULL.sessions[1:])), now=NOW)
    assert {row["id"]: row["doing"] for row in shown["sessions"]}["s1"] == "epoch 3"


def test_what_a_device_cannot_do_is_said():
    """Why it does not answer goes before."""
    plain = DeviceView("g", "cuda", "GPU", GiB, 0, 0, (), limits="MPS runs.")
    (told,) = scene(Snapshot(1, None, (plain,)), now=NOW)["devices"]
    assert (told["limits"], told.get("lost")) == ("MPS runs.", None)
    lost = msgspec.structs.replace(plain, lost="restart the machine.")
    (told,) = scene(Snapshot(1, None, (lost,)), now=NOW)["devices"]
    assert (told.get("limits"), told["lost"]) == (None, "It does not answer: restart the machine.")


def test_sections_with_nothing_to_say_are_not_there():
    """An idle host is its memory; no host is a time."""
    assert set(scene(IDLE, now=NOW)) == {"at", "devices"}
    assert scene(EMPTY, now=NOW) == {"at": NOW}
    assert {"rt", "bundles"} <= set(scene(FULL, now=NOW))


def test_a_snapshot_of_a_newer_broker_shows_what_we_know():
    """Over the wire, with fields and values nobody here has heard of."""
    told = json.loads(msgspec.json.encode(msgspec.structs.replace(FULL, rt=(), bundles=())))
    told["devices"][0]["colour"] = "green"
    told["devices"][0]["lanes"][0]["moods"] = [1]
    told["devices"][0].pop("turns")  # its shape here is the tests' own
    told["sessions"][0] |= {"state": "dreaming", "mode": "thrice", "aura": {"a": 1}}
    shown = scene(msgspec.convert(told, Snapshot), now=NOW)
    states = {row["id"]: (row["state"], row["mode"]) for row in shown["sessions"]}
    assert states["s1"] == ("dreaming", None)


@pytest.mark.parametrize(("own", "users"), [(3, 25), (200, 1), (3, 200), (0, 1)])
def test_a_crowd_is_bounded(own, users):
    """200 sessions in at most 30 KB, whoever they are; nobody's memory or waiting is lost in it."""
    crowded = crowd(200, own=own, users=users)
    shown = scene(crowded, now=NOW)
    assert len(json.dumps(shown)) <= 30_000
    gpu = crowded.devices[0]
    assert sum(one["size"] for one in of_kind(shown, "persistent")) == gpu.persistent
    assert sum(one["size"] for one in of_kind(shown, "lane")) == 200 * 50 * MiB
    assert shown["queue"][-1]["label"] == f"{100 - len(shown['queue']) + 1} more"
    assert len(shown["queue"]) < 20
    assert len(shown["sessions"]) < 60
    assert sum(row["own"] and row["id"][0] != "@" for row in shown["sessions"]) == min(own, 16)


@pytest.mark.parametrize("sign", ["🔥", "ü", "\u202e", '"', "\\"])
def test_a_crowd_of_long_names_is_bounded(sign):
    """In bytes as they are sent, whatever the names are made of."""
    crowded = crowd(200, own=200, users=1)
    renamed = tuple(
        msgspec.structs.replace(one, name=f"{n}{sign * 10_000}", user=sign * 10_000, doing=(sign * 999,))
        for n, one in enumerate(crowded.sessions)
    )  # fmt: skip
    queue = tuple(msgspec.structs.replace(one, name=sign * 999) for one in crowded.queue)
    shown = scene(msgspec.structs.replace(crowded, sessions=renamed, queue=queue), now=NOW)
    assert len(json.dumps(shown, ensure_ascii=False).encode()) <= 30_000


def test_a_crowd_on_many_devices_is_bounded():
    """Eight devices show less of each."""
    one = crowd(200)
    devices = tuple(msgspec.structs.replace(one.devices[0], id=f"g{n}") for n in range(8))
    spread = tuple(
        msgspec.structs.replace(s, device=f"g{n % 8}") for n, s in enumerate(one.sessions)
    )
    many = msgspec.structs.replace(one, devices=devices, sessions=spread)
    assert len(json.dumps(scene(many, now=NOW))) <= 45_000


def test_up_to_a_hundred_everybody_is_shown():
    """By name; one more, and others are shown by user."""
    shown = scene(crowd(100), now=NOW)
    assert len(shown["sessions"]) == 100
    shown = scene(crowd(101), now=NOW)
    assert {row["label"] for row in shown["sessions"]} >= {"student.number.003: 4 notebooks"}


def test_hostile_names_are_one_short_line():
    """Markup stays as it is, as text; what turns, breaks or piles up a line does not get through."""
    told = scene(hostile(), now=NOW)
    shown = json.dumps(told, ensure_ascii=False)
    assert "<script>" in shown
    assert not set(SCREEN_BREAKERS) & set(shown)
    assert "\u0301" * 3 not in shown
    names = {name: part for name, part in told.items() if name not in {"news", "account"}}
    assert "x" * 100 not in json.dumps(names)
    assert "👩‍🔬" in shown
    shown.encode()


@pytest.mark.parametrize("name", HOSTILE)
def test_clean(name):
    """Short, printable, and the same when cleaned again."""
    cleaned = clean(name)
    assert 0 < len(cleaned) <= 60
    assert clean(cleaned) == cleaned
    assert clean("hw2.ipynb") == "hw2.ipynb"


def test_a_session_of_no_device_is_on_all():
    """As an older broker tells it."""
    old = SessionView("s", "ann", "a.ipynb", None, "busy", None, GiB, 1.0, own=True)
    plain = DeviceView("g", "cuda", "GPU", 2 * GiB, 0, GiB, (), free=GiB)
    assert of_kind(scene(Snapshot(1, None, (plain,), (old,)), now=NOW), "persistent")[0]["own"]
    assert session("s", "ann", None, "idle", None).device
