"""What a page's main thread has done, as the browser counts it."""

from __future__ import annotations

from playwright.sync_api import CDPSession, Page


def watched(page: Page) -> CDPSession:
    """Have a page's figures counted; times are of the CPU, so that others who use the machine do not count."""
    cdp = page.context.new_cdp_session(page)
    cdp.send("Performance.enable", {"timeDomain": "threadTicks"})
    return cdp


def busy_seconds(cdp: CDPSession) -> float:
    """Return the CPU seconds of the main thread's tasks."""
    return metric(cdp, "TaskDuration")


def metric(cdp: CDPSession, name: str) -> float:
    """Return one of the page's figures of now."""
    metrics = cdp.send("Performance.getMetrics")["metrics"]
    return next(float(one["value"]) for one in metrics if one["name"] == name)
