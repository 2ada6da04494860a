"""Which parameters of a model are used together: what is gathered at once when it runs layer by layer.

A unit is a module with parameters of its own. Modules of torch that read their children's weights without calling them
(attention, a transformer's encoder, which chooses its way by its layers' weights) are one unit with them. A unit with others inside it (a model with a parameter beside its layers) is *held*: its
weights are there for the whole run, as nobody knows when it uses them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gpushare_kernel.nwv.gather import Gather
from gpushare_kernel.nwv.layout import Layout, laid_out
from gpushare_kernel.nwv.packed import Piece
from gpushare_kernel.nwv.shell import Elsewhere, frozen

_WHOLE = (
    torch.nn.MultiheadAttention,
    torch.nn.TransformerEncoder,
    torch.nn.TransformerEncoderLayer,
    torch.nn.TransformerDecoderLayer,
)
_LISTS = (torch.nn.ParameterList, torch.nn.ParameterDict)
"""Modules that nobody calls: what is in them is used by the one above."""
_RECURRENT = torch.nn.RNNBase


def groups(module: torch.nn.Module, pieces: Sequence[Piece]) -> dict[str, list[Piece]]:
    """Return the parameters of each unit, by the path of its module."""
    found: dict[str, list[Piece]] = {}
    for piece in pieces:
        found.setdefault(_unit(module, piece.name.rpartition(".")[0]), []).append(piece)
    return found


def held(paths: Sequence[str]) -> set[str]:
    """Return the paths of units that have others inside."""
    return {
        path
        for path in paths
        if any(other != path and (not path or other.startswith(f"{path}.")) for other in paths)
    }


def needed(module: torch.nn.Module, pieces: Sequence[Piece]) -> tuple[int, int]:
    """Return the bytes that a model needs for its largest unit, and for what is held."""
    found = groups(module, pieces)
    keeps = held(list(found))
    sizes = {path: laid_out(mine).size for path, mine in found.items()}
    largest = max((size for path, size in sizes.items() if path not in keeps), default=0)
    return largest, sum(sizes[path] for path in keeps)


def _unit(module: torch.nn.Module, path: str) -> str:
    words = path.split(".") if path else []
    for length in range(len(words) + 1):
        above = ".".join(words[:length])
        if isinstance(module.get_submodule(above), _WHOLE):
            return above
    while words and isinstance(module.get_submodule(".".join(words)), _LISTS):
        words.pop()
    return ".".join(words)


class Unit:
    """One unit of one model, in the scratch or not.

    Parameters
    ----------
    shell
        The model; its parameters are replaced here.
    areas
        Where in the scratch it may be: bytes, each as large as the unit or larger.
    """

    def __init__(
        self,
        path: str,
        shell: torch.nn.Module,
        layout: Layout,
        gather: Gather,
        areas: Sequence[torch.Tensor],
    ) -> None:
        self.path, self.module, self.gather = path, shell.get_submodule(path), gather
        self._slots = [(shell.get_submodule(place.name.rpartition(".")[0]), place.name.rpartition(".")[2]) for place in layout.places]  # fmt: skip
        self._views = [[frozen(place.view(area)) for place in layout.places] for area in areas]
        self._away = [Elsewhere.of(place, areas[0].device) for place in layout.places]
        self._recurrent = {owner for owner, _ in self._slots if isinstance(owner, _RECURRENT)}
        self.hide()

    def show(self, area: int) -> None:
        """Its weights are in that area from now on."""
        self._put(self._views[area])

    def hide(self) -> None:
        """They are in pages only."""
        self._put(self._away)

    def _put(self, tensors: Sequence[torch.nn.Parameter]) -> None:
        for (owner, name), tensor in zip(self._slots, tensors, strict=True):
            owner._parameters[name] = tensor
        for owner in self._recurrent:  # what these call is a list of their own
            owner._flat_weights = [
                owner._parameters.get(name) for name in owner._flat_weights_names
            ]
