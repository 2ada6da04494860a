"""Where torch's caching allocator keeps what: only blocks of its ordinary pool, on the default stream, are moved."""

from __future__ import annotations

from typing import Any

POOL = "in a memory pool of its own, as CUDA graphs have them"
PRIVATE = "perhaps read by a CUDA graph: there is a memory pool as they have them"
STREAM = "allocated on a stream of the user's"
NOT_CACHED = "not of torch's caching allocator"
_ORDINARY = (0, 0)


class Places:
    """The blocks in use at one moment, by device and address."""

    def __init__(self, segments: list[dict[str, Any]]) -> None:
        self._why: dict[tuple[int, int], str] = {}
        self.private = False
        for segment in segments:
            pool = tuple(segment.get("segment_pool_id", ("unknown",)))
            why = POOL if pool != _ORDINARY else STREAM if segment["stream"] != 0 else ""
            self.private = self.private or pool != _ORDINARY
            address = segment["address"]
            for block in segment["blocks"]:
                address = block.get("address", address)
                if block["state"] == "active_allocated":
                    self._why[segment["device"], address] = why
                address += block["size"]

    def why_not(self, device: int, address: int) -> str:
        """Say why the block that begins at an address is not moved; nothing where it can be."""
        if self.private:  # a graph knows the addresses of what it read, in the ordinary pool too
            return PRIVATE
        return self._why.get((device, address), NOT_CACHED)


def places(torch: Any) -> Places:
    """Look. Torch has a context: it is asked by those only who found it in use."""
    return Places(torch.cuda.memory_snapshot() if torch.cuda.is_initialized() else [])
