"""Completion of options behind `%%gpulane` and of words behind `%gpushare`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from IPython.core.completer import SimpleCompletion, SimpleMatcherResult, context_matcher

if TYPE_CHECKING:
    from IPython.core.completer import CompletionContext

COMMANDS = (
    *("status", "lanes", "live", "needs", "release", "pause", "resume", "park", "unpark"),
    *("rescue", "memory"),
    *("notify", "debug", "off", "on", "doctor"),
)
WORDS = {
    "live": ("--static",),
    "memory": ("--free",),
    "notify": ("on", "off"),
    "debug": ("on", "off"),
}
"""What may follow a command."""
OPTIONS = (
    *("--persistent", "--ephemeral", "--time", "--weight", "--name", "--wait", "--dry-run"),
    *("--class", "--period", "--deadline", "--model", "--input"),
    *("--pack", "--ratio", "--bits", "--max-drop"),
)


def candidates(line: str, token: str) -> list[str]:
    """Return what may follow on a line of ours; `token` is the word before the cursor."""
    before = line.removesuffix(token).split()
    if line.lstrip().startswith("%%gpulane") and token.startswith("-"):
        return [option for option in OPTIONS if option.startswith(token) and option not in before]
    if before == ["%gpushare"]:
        return [command for command in COMMANDS if command.startswith(token)]
    if len(before) == 2 and before[0] == "%gpushare":  # noqa: PLR2004
        return [word for word in WORDS.get(before[1], ()) if word.startswith(token)]
    return []


@context_matcher()
def complete(context: CompletionContext) -> SimpleMatcherResult:
    """Called by IPython for every completion."""
    found = candidates(context.line_with_cursor[: context.cursor_position], context.token)
    completions = [SimpleCompletion(text, type="param") for text in found]
    return SimpleMatcherResult(completions=completions, suppress=bool(found))
