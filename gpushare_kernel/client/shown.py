"""The wire's types that show up in what a client returns, for those who import the client only."""

from gpushare_kernel.wire.messages import Announce, Report, Slowed
from gpushare_kernel.wire.snapshot import DeviceView, SessionView, Snapshot

__all__ = ["Announce", "DeviceView", "Report", "SessionView", "Slowed", "Snapshot"]
