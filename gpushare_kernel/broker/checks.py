"""What of a client's request can be no request: sizes, ids and words out of all bounds, before anything is done with them."""

from __future__ import annotations

from gpushare_kernel.core.errors import BadDeclaration, BadFrame, UserError
from gpushare_kernel.core.sizes import parse_time
from gpushare_kernel.core.values import LARGEST_SIZE
from gpushare_kernel.wire import limit_texts
from gpushare_kernel.wire import messages as msg

_LONGEST_WORD, _MOST_WORDS, _LONGEST_ID = 64, 8, 64


def check_id(job: str) -> None:
    """A job's id is shown to everybody: short, and no trouble for a screen."""
    if not (0 < len(job) <= _LONGEST_ID and job.isascii() and job.isprintable()):
        raise BadFrame(limit_texts.job_id_text(_LONGEST_ID, len(job)))


def check_sizes(body: msg.Submit) -> None:
    """Sizes and time of a submit: in range, and not contradicting each other."""
    named = {
        "size": body.size,
        "persistent": body.persistent,
        "ephemeral": body.ephemeral,
        "held": body.held,
    }
    for name, value in named.items():
        if value is not None and not 0 <= value < LARGEST_SIZE:
            problem = f"{name} must be from 0 to under {LARGEST_SIZE} bytes, and {value} is not."
            raise UserError(problem)
    if body.size is not None and (body.persistent is not None or body.ephemeral is not None):
        problem = "give one size, or -p and -e, not both."
        raise BadDeclaration(problem)
    if body.time is not None:
        parse_time(body.time)


def check_words(*words: str) -> None:
    """A hash of code, and frameworks with their versions: short, a few, and kept on disk."""
    if len(words) > _MOST_WORDS or any(
        len(word) > _LONGEST_WORD or not word.isprintable() for word in words
    ):
        problem = (
            f"a job names its code and frameworks in at most {_MOST_WORDS} words of up to {_LONGEST_WORD} printable "
            f"characters, and {len(words)} came, the longest of {max(map(len, words))}."
        )
        raise BadFrame(problem)


def check_held(*sizes: int) -> None:
    """What a session says it holds, in bytes."""
    for size in sizes:
        if not 0 <= size < LARGEST_SIZE:
            problem = f"what a session holds must be from 0 to under {LARGEST_SIZE} bytes, and {size} is not."
            raise BadFrame(problem)
