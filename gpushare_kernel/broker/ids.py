"""What a job is called: by its client, and by the broker (`<session>/<client's name>`)."""

from __future__ import annotations

from gpushare_kernel.core.values import JobId, SessionId


def job_of(session: SessionId, client: str) -> JobId:
    """Return the broker's id of a job that its client calls `client`: `<session>/<client>`."""
    return JobId(f"{session}/{client}")


def session_of(job: JobId) -> SessionId:
    """Return the session in a broker's id of a job."""
    return SessionId(job.split("/", 1)[0])


def client_id(job: JobId) -> JobId:
    """Return what its client calls the job that is `job` to the broker."""
    return JobId(job.split("/", 1)[1])
