"""Several models that run from one set of weight pages: `bundle["digits"](x)`.

    bundle = Bundle(packed, {"digits": net1, "wine": net2})
    bundle["digits"](x)
    bundle                  # what it takes, beside separate copies

No model has weights of its own. What a call needs is gathered from the pages into memory that all of them share.
docs/bundles.md has what holds of it (B1 ...).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from gpushare_kernel.core.errors import UserError
from gpushare_kernel.nwv import travel
from gpushare_kernel.nwv.check import check, check_given
from gpushare_kernel.nwv.gather import Gather, Norm, Pages, gatherer
from gpushare_kernel.nwv.layout import Layout, laid_out
from gpushare_kernel.nwv.packed import BadBundle, Member, Packed, device_named
from gpushare_kernel.nwv.region import Region
from gpushare_kernel.nwv.resident import Resident, alone, table
from gpushare_kernel.nwv.results import apart
from gpushare_kernel.nwv.room import Measures, Room, measured
from gpushare_kernel.nwv.scratch import Scratch
from gpushare_kernel.nwv.shell import emptied, frozen, shell_of, template_of, tensors_of
from gpushare_kernel.nwv.store import Shared
from gpushare_kernel.shown import Table

if TYPE_CHECKING:
    from gpushare_kernel.nwv.report import PackReport


class Bundle:
    """Models that share pages.

    Parameters
    ----------
    packed
        Pages and tables. They are copied to the device; the bundle keeps nothing else of it.
    modules
        For each model the module that was packed. It is taken as a pattern only: the bundle has a *shell* of it, the same
        structure in eval mode without weights. The module itself stays as it is, with its own weights in memory, for as long
        as you keep it.
    device
        Where the pages are and the models run; the GPU where there is one.
    mode
        `switch`: the weights of one whole model are gathered where another one ran before, none where it ran itself; scratch for
        the largest model. `layers`: those of each layer just before it runs, in every call; scratch for the two largest layers
        (one on a CPU). Both give the same bits.
    take
        Take the weights out of the modules given, so that no private copy stays: they can not be called any more.

    Raises
    ------
    BadBundle
        Where pages, tables and modules do not fit together, or a module's code is not what was packed.

    It may be called from several threads: one model runs at a time. Results are computed without gradients.
    """

    store: Shared | None
    """Where the pages are, if a holder has them."""
    packing: PackReport | None
    """What packing them said, where a `%%gpulane --pack` cell did that."""

    def __init__(
        self,
        packed: Packed,
        modules: Mapping[str, torch.nn.Module],
        *,
        device: torch.device | str | None = None,
        mode: str = "switch",
        take: bool = False,
    ) -> None:
        self._begin(packed, modules, Room.of(mode, _place(device)), None, take=take)

    def _begin(
        self,
        packed: Packed,
        modules: Mapping[str, torch.nn.Module],
        how: Callable[[Measures], Room],
        store: Shared | None,
        *,
        take: bool,
    ) -> None:
        check_given(packed, modules)
        check(packed, modules)
        templates = {name: template_of(modules[name], called=name) for name in packed.members}
        room = how(measured((one, templates[name]) for name, one in packed.members.items()))
        own = {name: _own(packed, one, modules[name], room.device) for name, one in packed.members.items()}  # fmt: skip
        if store is not None:
            region = store.region
        else:
            region = None if room.device.type == "cuda" else Region.of(_shared(packed))
        self._open(packed, templates, own, region, room)
        if store is not None:
            self.store = store
        if take:
            for name in packed.members:
                emptied(modules[name], partial(_taken, name))

    def _open(
        self,
        packed: Packed,
        templates: Mapping[str, torch.nn.Module],
        own: Mapping[str, Mapping[str, torch.Tensor]],
        region: Region | None,
        room: Room,
    ) -> None:
        """Set up all that runs; `region` has the pages where they are in memory that others may map."""
        self.region, self.room = region, room
        self.store, self.packing = None, None
        self.members: Mapping[str, Member] = dict(packed.members)
        self.pages = _pages(packed, region, self.device)
        self.tables = {name: packed.tables[name].to(self.device) for name in self.members}
        #: By model: its module without weights, and the tensors that it has to itself.
        self.templates, self.own = templates, own
        self.runners = {
            name: room.runner(one, partial(self.gather, name), partial(self._shell, name))
            for name, one in self.members.items()
        }

    @classmethod
    def shared(
        cls,
        name: str,
        modules: Mapping[str, torch.nn.Module],
        *,
        device: torch.device | str | None = None,
        mode: str = "switch",
        take: bool = False,
    ) -> Bundle:
        """Return a bundle whose pages another kernel of yours shares under this name (`share`): mapped, not copied.

        Parameters are as in `Bundle`.

        Raises
        ------
        UserError
            Where there is none of that name on this kernel's device, or this process is no kernel of a broker.
        """
        place = _place(device)
        store = Shared.named(name, place)
        made = cls.__new__(cls)
        try:
            made._begin(store.packed(), modules, Room.of(mode, place), store, take=take)
        except BaseException:
            store.close()  # it is no use of it
            raise
        return made

    @classmethod
    def opened(cls, *parts: Any) -> Bundle:
        """Return one made of what another process had ready: see `_open`."""
        made = cls.__new__(cls)
        made._open(*parts)
        return made

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.room.device

    @property
    def mode(self) -> str:
        """How it runs."""
        return self.room.mode

    @property
    def scratch(self) -> Scratch:
        """Where one model's weights are at a time."""
        return self.room.scratch

    def gather(self, name: str, layout: Layout) -> Gather:
        """Return what writes parameters of a model, as they are laid out."""
        member = self.members[name]
        norm = Norm(member.shift or -0.0, member.scale)  # adding 0.0 would make 0.0 of -0.0
        return gatherer(self.pages, self.tables[name], norm, layout)

    def _shell(self, name: str, weights: Mapping[str, torch.Tensor]) -> torch.nn.Module:
        return shell_of(self.templates[name], {**self.own[name], **weights}, called=name)

    # --- pages with a holder ---------------------------------------------------------------------------------

    def share(self, name: str) -> None:
        """Have a holder keep the pages, so that your other kernels on this device map them too: `Bundle.shared(name, modules)`.

        They are charged to the holder, once, for as long as any kernel uses them. Where the holder has died (with its broker), share
        them anew.

        Raises
        ------
        UserError
            Where it is shared already, or you have another one of that name; where this process is no kernel of a broker.
        Refused
            Where it does not fit now: for a moment the pages are there twice.
        """
        with self.scratch.held():
            if self.store is not None and self.store.held:
                msg = f"this bundle is shared already, as {self.store.name!r}. Map it elsewhere: Bundle.shared({self.store.name!r}, modules)."
                raise UserError(msg)
            self.check_mapped()
            self._use(Shared.of(name, self._packed(), self.device))

    def unmap(self) -> None:
        """Let go of shared pages, not of the use: a kernel that maps them must not be checkpointed. Calls are refused until `remap`."""
        with self.scratch.held():
            store = self._stored()
            self.pages.pages, self.pages.scales, self.region = self.pages.pages[:0].clone(), None, None  # fmt: skip
            for runner in self.runners.values():
                runner.forget()
            store.unmap()

    def remap(self) -> None:
        """Map them again; on a GPU at the address that they had. Nothing happens where they are mapped."""
        with self.scratch.held():
            store = self._stored()
            if not store.mapped:
                store.remap()
            self._use(store)

    def check_mapped(self) -> None:
        """Refuse to run without pages.

        Raises
        ------
        UserError
            Between `unmap` and `remap`.
        """
        if self.store is not None:
            self.store.check()

    def _stored(self) -> Shared:
        if self.store is None:
            msg = "this bundle's pages are this process's own memory, and there is nothing to unmap. Share it first: bundle.share(name)."
            raise UserError(msg)
        return self.store

    def _use(self, store: Shared) -> None:
        packed = store.packed()
        self.pages.pages, self.pages.scales = packed.pages, packed.scales
        self.region, self.store = store.region, store

    def _packed(self) -> Packed:
        saved = {name: one.state_dict().keys() for name, one in self.templates.items()}
        private = {name: {key: one for key, one in own.items() if key in saved[name]} for name, own in self.own.items()}  # fmt: skip
        pages = self.pages
        return Packed(pages.page_size, pages.bits, pages.pages, pages.scales, self.members, self.tables, private)  # fmt: skip

    def __reduce__(self) -> NoReturn:
        msg = "a bundle is not copied or pickled: its models would no longer share. Save it (bundle.save(file)), or take bundle[name].unpacked()."
        raise UserError(msg)

    # --- what people use -----------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> BundleModel:
        if name not in self.runners:
            msg = f"the bundle has no model {name!r}; it has {', '.join(self.runners)}."
            raise UserError(msg)
        return BundleModel(
            self, name
        )  # made anew: the last of them and the bundle go together, at once

    def __iter__(self) -> Iterator[str]:
        return iter(self.runners)

    def __len__(self) -> int:
        return len(self.runners)

    def __contains__(self, name: object) -> bool:
        return name in self.runners

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write its models to a file, as `Packed.save` does: `Bundle(Packed.load(path), modules)` has them again."""
        with self.scratch.held():
            self.check_mapped()
            return self._packed().save(path)

    def sizes(self) -> Resident:
        """Return what it takes, in bytes."""
        lists = sum(one.size for one in self.runners.values())
        scales = self.pages.scales
        return Resident(
            shared=None if self.store is None else self.store.name,
            pages=self.pages.pages.nbytes,
            scales=0 if scales is None else scales.nbytes,
            tables=sum(one.nbytes for one in self.tables.values()) + lists,
            private=sum(one.nbytes for own in self.own.values() for one in own.values()),
            scratch=self.scratch.memory.nbytes,
            alone={name: alone(one, self.own[name]) for name, one in self.members.items()},
            allocated=torch.cuda.memory_allocated(self.device)
            if self.device.type == "cuda"
            else None,
        )

    def report(self) -> Table:
        """Return what it takes beside separate copies, to be shown."""
        return table(self.sizes(), self.pages, self.mode, sum(map(len, self.tables.values())))

    def __repr__(self) -> str:
        return self.report().text()

    def _repr_html_(self) -> str:
        return self.report().html()


class BundleModel:
    """One model of a bundle: call it as the module that was packed."""

    def __init__(self, bundle: Bundle, name: str) -> None:
        self.bundle, self.runner = bundle, bundle.runners[name]
        self.__name__ = name

    def __call__(self, *given: Any, **named: Any) -> Any:
        """Run it in eval mode and without gradients; other calls of the bundle wait meanwhile."""
        with self.bundle.scratch.held(), torch.no_grad():
            self.bundle.check_mapped()
            self.runner.ready()
            result = self.runner.forward(given, named)
            return apart(result, self.bundle.scratch.memory, called=self.__name__)

    def load(self) -> None:
        """Gather what a call would find missing at its start: a switch, and nothing else."""
        with self.bundle.scratch.held():
            self.bundle.check_mapped()
            self.runner.ready()

    def graphed(self, *example: torch.Tensor) -> Any:
        """Return a callable that replays this model as a CUDA graph, for inputs of these forms.

        Raises
        ------
        UserError
            Where it is not on a GPU.
        """
        from gpushare_kernel.nwv.graphs import Graphed  # noqa: PLC0415

        return Graphed(self, example)

    def unpacked(self) -> torch.nn.Module:
        """Return an ordinary module with weights of its own, as the pages have them: for who must have one (and its memory)."""
        bundle, name = self.bundle, self.__name__
        layout = laid_out(bundle.members[name].pieces)
        memory = torch.empty(layout.size, dtype=torch.uint8, device=bundle.device)
        with bundle.scratch.held():  # nobody unmaps meanwhile
            bundle.check_mapped()
            bundle.gather(name, layout)(memory)
        own: dict[str, torch.Tensor] = {
            place.name: torch.nn.Parameter(place.view(memory).clone()) for place in layout.places
        }
        for key, one in bundle.own[name].items():
            copied = one.detach().clone()
            own[key] = torch.nn.Parameter(copied) if isinstance(one, torch.nn.Parameter) else copied
        return shell_of(bundle.templates[name], own, called=name)

    def __reduce__(self) -> tuple[Any, ...]:
        with self.bundle.scratch.held():  # nobody unmaps meanwhile
            return travel.departing(self.bundle, self.__name__)

    def __repr__(self) -> str:
        return f"model {self.__name__} of a bundle of {len(self.bundle)} on {self.bundle.device}"


def _place(device: torch.device | str | None) -> torch.device:
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return device_named(device)


def _shared(packed: Packed) -> dict[str, torch.Tensor]:
    return {"pages": packed.pages} | ({} if packed.scales is None else {"scales": packed.scales})


def _pages(packed: Packed, region: Region | None, device: torch.device) -> Pages:
    if region is not None:
        found = region.tensors
        return Pages(found["pages"], found.get("scales"), packed.page_size, packed.bits)
    scales = None if packed.scales is None else packed.scales.to(device)
    return Pages(packed.pages.to(device).contiguous(), scales, packed.page_size, packed.bits)


def _own(
    packed: Packed, member: Member, module: torch.nn.Module, device: torch.device
) -> dict[str, torch.Tensor]:
    """Return what a model has to itself: what was packed so, and buffers that its module saves nowhere."""
    private, saved = packed.private.get(member.name, {}), module.state_dict().keys()
    paged = {piece.name for piece in member.pieces}
    found: dict[str, torch.Tensor] = {}
    for name, one in tensors_of(module):
        if isinstance(one, torch.nn.Parameter):
            if name not in paged:
                found[name] = frozen(_private(member, private, name, one).to(device, copy=True))
        else:
            kept = _private(member, private, name, one) if name in saved else one.detach()
            found[name] = kept.to(device, copy=True)
    return found


def _private(
    member: Member, private: Mapping[str, torch.Tensor], name: str, like: torch.Tensor
) -> torch.Tensor:
    kept = private.get(name)
    if kept is None or kept.shape != like.shape:
        seen = "is missing" if kept is None else f"is {tuple(kept.shape)}"
        msg = f"model {member.name}: {name} of shape {tuple(like.shape)} must be in the bundle, and {seen}. Pack it again."
        raise BadBundle(msg)
    return kept


def _taken(name: str) -> str:
    return f"this module gave its weights to a bundle (take=True). Call bundle[{name!r}] instead, or take bundle[{name!r}].unpacked()."
