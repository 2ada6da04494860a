"""What can go wrong, and whose fault it is.

GpushareError
├── UserError               the declaration or the request
│   ├── BadSize             a size that cannot be read or makes no sense
│   ├── BadTime             a time that cannot be read or makes no sense
│   ├── BadDeclaration      options that contradict each other
│   ├── BadSettings         an administrator's file that makes no sense
│   ├── Refused             can never fit this device
│   ├── Busy                too much of one user at once; it may be tried again a moment later
│   ├── WaitEnded           --wait SECONDS is over; the cell has not run
│   ├── NotYours            a request about somebody else's session
│   └── NotVouched          a hub's token that its hub does not know, or that is no server's
├── BrokerUnavailable       nobody answers
│   ├── NoBroker            none runs and none may be started
│   ├── VersionMismatch     it speaks none of our protocol versions
│   ├── HostAway            a host of several cannot be used
│   └── NoHost              none of them can
├── PeerError               the other side broke the protocol
│   ├── FrameTooLong
│   ├── BadFrame
│   └── BadToken
├── HubAway                 the JupyterHub that tells who somebody is does not answer
├── DeviceError             the device or its driver
├── NotSetAside             memory could not be copied away; all of it is where it was
├── NotPutBack              memory could not be brought back; all of it is still set aside, and it can be tried again
└── InternalError           our own bug: please report it
    ├── InvalidTransition
    └── InvariantBroken

A message names the rule, the value seen and the next step.
"""

from __future__ import annotations


class GpushareError(Exception):
    """Base of every error gpushare raises. Front ends show the message, never our frames."""

    def _render_traceback_(self) -> list[str]:
        """IPython asks this before it prints a traceback."""
        return [f"gpushare: {self}"]


class UserError(GpushareError):
    """Something the user can mend."""


class BadSize(UserError):
    """A size that cannot be read or makes no sense."""


class BadTime(UserError):
    """A time that cannot be read or makes no sense."""


class BadDeclaration(UserError):
    """Options that contradict each other."""


class BadSettings(UserError):
    """The administrator's file cannot be read, or makes no sense."""


class Refused(UserError):
    """The job can never fit this device."""


class Busy(UserError):
    """Too much of this user comes in at once. Nothing was done: the same may be asked again a moment later."""


class WaitEnded(UserError):
    """The time given with --wait is over; the cell has not run."""


class NotYours(UserError):
    """A request acts on the caller's own sessions, unless the caller is an administrator (I9)."""


class NotVouched(UserError):
    """A hub's token that its hub does not know (forged, or expired), or that is not a user's server's own."""


class BrokerUnavailable(GpushareError):
    """Nobody answers."""


class NoBroker(BrokerUnavailable):
    """None runs and none may be started."""


class VersionMismatch(BrokerUnavailable):
    """The other side speaks none of our protocol versions."""


class HostAway(BrokerUnavailable):
    """A host of several cannot be used, and why. `lasting`: not before somebody has done something there."""

    def __init__(self, why: str, *, lasting: bool = False) -> None:
        super().__init__(why)
        self.lasting = lasting


class NoHost(BrokerUnavailable):
    """No host of several can start the kernel, and why each cannot."""


class PeerError(GpushareError):
    """The other side broke the protocol."""


class FrameTooLong(PeerError):
    """A frame over the limit of its direction."""


class BadFrame(PeerError):
    """Bytes that are not one of our messages."""


class BadToken(PeerError):
    """A token that belongs to no session, or to another one."""


class HubAway(GpushareError):
    """The JupyterHub that tells who somebody is does not answer."""


class DeviceError(GpushareError):
    """The device or its driver failed."""


class NotSetAside(GpushareError):
    """Memory could not be copied away; all of it is where it was (W7)."""


class NotPutBack(GpushareError):
    """Memory could not be brought back; all of it is still set aside, and it can be tried again (W8)."""


class InternalError(GpushareError):
    """A bug of ours. Please report it with the text."""


class InvalidTransition(InternalError):
    """A state change that the tables in `core/states.py` do not know."""


class InvariantBroken(InternalError):
    """`core/validate.py` found a rule broken."""
