"""The documented snapshot: what `jupyter gpushare status --json` prints. Keys are added, never renamed or retyped.

Sizes in bytes, times in seconds. To others than its owner a session has no name, no pid and no sizes (I9).
"""

from __future__ import annotations

from msgspec import Struct

from gpushare_kernel.core.values import Holder

SCHEMA = 1


class BrokerView(Struct, frozen=True):
    """The broker's process. `trouble` is what keeps it from remembering, from its settings or from offering metrics, and what to do (None: nothing does).

    `hub`: what is wrong with the JupyterHub that tells who people are (None: nothing, or there is none).
    """

    pid: int
    version: str
    uptime: float
    system: bool = False
    longest_wait_today: float | None = None
    trouble: str | None = None
    hub: str | None = None


class LaneView(Struct, frozen=True):
    """A budget of ephemeral memory, 0 where it is not for the caller to see; `occupant` and `members` are job ids.

    `used` is what the occupant's session was last seen to hold beyond what it keeps; None where nobody knows, or it is
    not for the caller to see.
    """

    id: int
    size: int
    occupant: str | None
    members: tuple[str, ...]
    used: int | None = None


class TurnView(Struct, frozen=True, gc=False):
    """What a session did on a device: from `began` to `ended`, in seconds before the snapshot (`ended` 0.0: it still does).

    `kind` is `turn` (it had the device), `drain` (its turn was over and its submitted work ended), `pause` (kept paused:
    it was over its grant) or `park`. The session may have ended since.
    """

    session: str
    began: float
    ended: float
    kind: str


class DeviceView(Struct, frozen=True):
    """A device and its lanes. `reserve`, `persistent`: sums over sessions; `compute`: cores (host) or 1.

    `total` is all its memory, 0 where that is no number to plan with; `desktop` and `foreign` are bytes that displays,
    and programs in no session, hold of it. `limits` says why nobody can be paused there, `lost` why it does not answer.
    `turns` is who did what in the last 30 s, what began first comes first, at most 600: where there was more, what lies
    further back is coarser. `can` is what can be done to whoever uses it: `pause`, `park` (None: an older broker, which does not say).
    `context` is what one context takes, before it holds anything: as measured, an estimate until then (0: there are none).
    """

    id: str
    kind: str
    name: str
    capacity: int
    reserve: int
    persistent: int
    lanes: tuple[LaneView, ...]
    policy: str = "fair"
    compute: float = 1.0
    free: int = 0
    total: int = 0
    desktop: int = 0
    foreign: int = 0
    limits: str | None = None
    lost: str | None = None
    turns: tuple[TurnView, ...] = ()
    can: tuple[str, ...] | None = None
    context: int = 0


class SessionView(Struct, frozen=True):
    """A kernel. `state` is its presence or activity, or `paused`; `why_paused` says why where that is not its turn's end (`by-its-owner`, `over-its-grant`, `real-time`); `doing` are the names of its declared jobs, `mode` how it shares the device now (None when idle), `spare` what a release would give back at most (None: nobody knows), `parked` the bytes of it that are set aside beside the device (None: none), `why_not_parked` why they cannot be (None: they can). `holds` is what it was last seen to hold (None: nobody has looked), `granted` what its jobs that were let in may take it to, in bytes (None: there is none)."""

    id: str
    user: str
    name: str | None
    pid: int | None
    state: str
    mode: str | None
    p: int | None
    device_time: float
    device: str = ""
    own: bool = False
    jobs: tuple[str, ...] = ()
    demand: float | None = None
    turns: int = 0
    doing: tuple[str, ...] = ()
    why_paused: str | None = None
    spare: int | None = None
    parked: int | None = None
    why_not_parked: str | None = None
    holds: int | None = None
    granted: int | None = None


class QueueView(Struct, frozen=True):
    """A waiting job. `eta` is None where it is not known; `exact` where it is a sum of known times.

    `free`, `holders` and `until` (when a grace ends, in seconds) are what its own cell is told, for those who may see
    that; `free` is None where it is not told. `cap` and `group` are what its user may hold (bytes), where that is in the
    way, `note` what is said of a maintenance, and `over_budget` whether others come first because its user's budget is used up.
    """

    job: str
    session: str
    reason: str
    ahead: int
    eta: float | None
    needs: int = 0
    waited: float = 0.0
    name: str | None = None
    free: int | None = None
    holders: tuple[Holder, ...] = ()
    until: float | None = None
    exact: bool = False
    cap: int = 0
    group: str = ""
    note: str = ""
    over_budget: bool = False


class BudgetView(Struct, frozen=True):
    """A budget of device seconds for a `period` (`day`, `week`): all of it, what is used of it, and in how many seconds it begins anew."""

    period: str
    limit: float
    used: float
    renews: float


class UserView(Struct, frozen=True):
    """A user's account. What its group allows is for itself and administrators to see; to others there is none.

    `memory` is what it may hold of each device (bytes; None: no cap), `kernels` how many it may have open, `parked` what of
    it may lie aside in the host's memory, of all devices together (bytes).
    """

    name: str
    weight: float
    device_time: float
    group: str | None = None
    memory: int | None = None
    kernels: int | None = None
    budgets: tuple[BudgetView, ...] = ()
    own: bool = False
    parked: int | None = None


class MaintenanceView(Struct, frozen=True):
    """A maintenance: since when (seconds since 1970), and what whoever began it says. `running` are notebooks whose work goes on to its end, `holding` those that are idle and keep memory, as far as the caller may see their names; `parked` how many are set aside.

    `empty`: nothing runs or moves any more.
    """

    since: float
    note: str
    running: tuple[str, ...]
    holding: tuple[str, ...]
    parked: int
    empty: bool


class AnnouncementView(Struct, frozen=True):
    """What an administrator tells everybody, and since when (seconds since 1970)."""

    text: str
    since: float


class RealtimeView(Struct, frozen=True):
    """An admitted real-time job that runs. Times in seconds: it is done `bound` after a release, as was proven; `margin` is what its
    longest response so far left of the deadline, its bound where there was none yet; `misses` of `releases` were later than proven.
    """

    session: str
    period: float
    deadline: float
    bound: float
    margin: float
    releases: int
    misses: int
    job: str = ""


class BundleView(Struct, frozen=True):
    """Pages that kernels of one user share. `session` is the holder's, which they are charged to; `size` in bytes, 0 where it is not for the caller to see.

    `pages` are all there are, `shared` those that more than one model uses; `users` the kernels that map them now.
    """

    name: str
    session: str
    pages: int
    shared: int
    size: int
    users: int = 0


class ArenaView(Struct, frozen=True):
    """Memory of the host into which a user's kernels set GPU memory aside, in bytes: what is leased to them now, what has memory behind it (for the next one, too), and the most they may lease in all, the cap of their group included."""

    user: str
    leased: int
    populated: int
    budget: int


class NeedView(Struct, frozen=True):
    """What is known of one piece of the caller's code: what its last run declared and took, and what the next is taken to need.

    `code` is a hash with a word before it: `cell:`, `lane:` or `run:` (its memory is not measured). `elsewhere` says
    what was otherwise where it was learned (a device, versions of frameworks); empty where nothing was. `most` is what
    the caller can declare in all (0: not known).
    """

    code: str
    name: str
    runs: int
    elsewhere: str = ""
    declared_size: int | None = None
    declared_persistent: int | None = None
    declared_ephemeral: int | None = None
    declared_time: float | None = None
    measured_persistent: int = 0
    measured_ephemeral: int = 0
    measured_time: float = 0.0
    persistent: int = 0
    ephemeral: int = 0
    time: float | None = None
    iteration: float | None = None
    most: int = 0


class Snapshot(Struct, frozen=True):
    """The whole. `at` is when it was, by the broker's clock (None: not told): what it says to have been so long before is a moment.

    `you` is the caller's account (None: not told).
    """

    schema: int
    broker: BrokerView | None
    devices: tuple[DeviceView, ...] = ()
    sessions: tuple[SessionView, ...] = ()
    queue: tuple[QueueView, ...] = ()
    users: tuple[UserView, ...] = ()
    at: float | None = None
    rt: tuple[RealtimeView, ...] = ()
    bundles: tuple[BundleView, ...] = ()
    arenas: tuple[ArenaView, ...] = ()
    you: str | None = None
    maintenance: MaintenanceView | None = None
    announcement: AnnouncementView | None = None
