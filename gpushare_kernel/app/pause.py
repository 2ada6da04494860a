"""`jupyter gpushare pause`, `resume`, `park` and `unpark`: a notebook of one's own, from a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from gpushare_kernel.app.base import Command, say
from gpushare_kernel.app.words import positionals
from gpushare_kernel.client.line import Line
from gpushare_kernel.core.errors import BadDeclaration
from gpushare_kernel.transport.places import places
from gpushare_kernel.wire import parking_texts, texts


class _OfNotebook(Command):
    """A command with one word: the notebook's name, or its session's id."""

    notebook = ""

    def parse_command_line(self, argv: Sequence[str] | None = None) -> None:
        """Take the notebook from the words."""
        alone, rest = positionals(
            sys.argv[1:] if argv is None else list(argv), options=self.aliases, flags=self.flags
        )
        super().parse_command_line(rest)
        if len(alone) != 1:
            word = self.name.rpartition("-")[2]
            msg = f"say which notebook, and {len(alone)} were named: jupyter gpushare {word} hw2. jupyter gpushare status lists them."
            raise BadDeclaration(msg)
        self.notebook = alone[0]


class PauseApp(_OfNotebook):
    """Pauses a notebook."""

    name = "jupyter-gpushare-pause"
    description = (
        "Pause what a notebook of yours runs on the device, for ten minutes at most. It keeps its memory and its place; "
        "resume lets it go on sooner, and so does an interrupt."
    )
    examples = """
    jupyter gpushare pause hw2.ipynb
    """

    def start(self) -> None:
        """Pause it."""
        with Line(places()) as line:
            say(texts.paused_text(line.pause(self.notebook), "jupyter gpushare"))


class ResumeApp(_OfNotebook):
    """Lets it run again."""

    name = "jupyter-gpushare-resume"
    description = "Let a notebook run again that pause paused."
    examples = """
    jupyter gpushare resume hw2.ipynb
    """

    def start(self) -> None:
        """Let it run."""
        with Line(places()) as line:
            say(texts.resumed_text(line.resume(self.notebook)))


class ParkApp(_OfNotebook):
    """Sets the memory of a notebook aside."""

    name = "jupyter-gpushare-park"
    description = (
        "Set the GPU memory of a notebook of yours aside, with all that is in it: in the host's memory, so that others can have the "
        "GPU's. The notebook stays usable on the CPU, and its next cell has its memory back as soon as there is room."
    )
    examples = """
    jupyter gpushare park hw2.ipynb
    """

    def start(self) -> None:
        """Park it."""
        with Line(places()) as line:
            say(parking_texts.parked_text(line.park(self.notebook)))


class UnparkApp(_OfNotebook):
    """Puts it back."""

    name = "jupyter-gpushare-unpark"
    description = (
        "Put the GPU memory of a notebook back that was set aside, as soon as there is room."
    )
    examples = """
    jupyter gpushare unpark hw2.ipynb
    """

    def start(self) -> None:
        """Put it back."""
        with Line(places()) as line:
            say(parking_texts.unparked_text(line.unpark(self.notebook)))
