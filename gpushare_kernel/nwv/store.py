"""Where a bundle's pages are: in this process alone, or with a holder and mapped here."""

from __future__ import annotations

import torch

from gpushare_kernel.core.errors import UserError
from gpushare_kernel.nwv import flat, lease
from gpushare_kernel.nwv.packed import Packed
from gpushare_kernel.nwv.region import Part, Region, parts_of
from gpushare_kernel.nwv.vmm import Mapping


class Shared:
    """Pages that a holder has, and this process maps.

    States: mapped (`packed` may be read) and unmapped (the connection stays, so the pages do). On a GPU the address is the same
    after `remap`.
    """

    def __init__(self, device: torch.device, use: lease.Lease) -> None:
        self._device, self._lease = device, use
        self.name = use.name
        self.region: Region | None = None
        self._mapping = Mapping(use.size, device.index or 0) if device.type == "cuda" else None

    @classmethod
    def of(cls, name: str, packed: Packed, device: torch.device) -> Shared:
        """Give a bundle to a new holder, and map it."""
        tensors = flat.tensors_of(packed)
        _, size = parts_of(tensors)
        counts = {"pages": len(packed.pages), "shared": _shared_pages(packed)}
        if device.type != "cuda":
            region = Region.of(tensors)
            return cls._mapped(device, lease.offered(name, region.size, fd=region.fd, **counts))
        made = cls(device, lease.offered(name, size, **counts))
        assert made._mapping is not None  # noqa: S101 - for the type checker
        try:
            made._mapping.map(made._lease.take_fd(), write=True)
            flat.write(tensors, torch.as_tensor(made._mapping, device=device))
            torch.cuda.synchronize(device)
            made._mapping.read_only()
            made._lease.filled()
        except BaseException:
            made.close()
            raise
        return made

    @classmethod
    def named(cls, name: str, device: torch.device) -> Shared:
        """Map a bundle that another kernel of this user shares."""
        return cls._mapped(device, lease.mapped(name))

    @classmethod
    def _mapped(cls, device: torch.device, use: lease.Lease) -> Shared:
        """Map what came with a use; where it cannot be mapped, it is no use of it."""
        made = cls(device, use)
        try:
            made.map()
        except BaseException:
            made.close()
            raise
        return made

    @property
    def held(self) -> bool:
        """Whether a holder has the pages still; else only who maps them does."""
        return self._lease.stands

    @property
    def mapped(self) -> bool:
        """Whether the pages may be read here."""
        return self.region is not None or (self._mapping is not None and self._mapping.mapped)

    def packed(self) -> Packed:
        """Return it as it lies there."""
        return flat.read(self._memory())[0]

    def map(self) -> None:
        """Map what came with the connection."""
        fd = self._lease.take_fd()
        if self._mapping is not None:
            self._mapping.map(fd)
            return
        whole = Region(fd, (Part("all", "uint8", (self._lease.size,), 0),))
        self.region = whole.cut(flat.read(whole.tensors["all"])[1])

    def unmap(self) -> None:
        """Let go of the pages; the holder keeps them as long as our connection stands."""
        self.region = None
        if self._mapping is not None:
            torch.cuda.synchronize(self._device)
            self._mapping.unmap()

    def remap(self) -> None:
        """Map them again: a new descriptor comes with a new connection, and only then does the old one go."""
        use = lease.mapped(self.name)
        before, self._lease = self._lease, use
        before.close()
        self.map()

    def close(self) -> None:
        """Let go of pages and connection, once nothing on the device reads them any more."""
        try:
            if self._mapping is not None and self._mapping.mapped:
                torch.cuda.synchronize(self._device)
        finally:
            if self._mapping is not None:
                self._mapping.close()
            self._lease.close()

    def __del__(self) -> None:
        if "_lease" in vars(self):
            self.close()

    def check(self) -> None:
        """Refuse to be read while it is unmapped.

        Raises
        ------
        UserError
            Saying what to do.
        """
        if not self.mapped:
            if self.held:
                msg = f"bundle {self.name!r} is unmapped. Map it again: bundle.remap()."
            else:
                msg = f"bundle {self.name!r} is gone: its holder ended while this kernel had it unmapped. Load or pack it again, or take it from a kernel that still maps it: bundle.share(name) there."
            raise UserError(msg)

    def _memory(self) -> torch.Tensor:
        self.check()
        if self.region is not None:
            return self.region.whole
        return torch.as_tensor(self._mapping, device=self._device)


def _shared_pages(packed: Packed) -> int:
    """Return how many pages more than one model uses."""
    uses = torch.zeros(len(packed.pages), dtype=torch.int64)
    for table in packed.tables.values():
        uses[table.cpu().to(torch.int64).unique()] += 1
    return int((uses > 1).sum())
