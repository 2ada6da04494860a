"""Models of a bundle in other processes: what is sent is small, and the pages are the same memory (docs/bundles.md)."""

from __future__ import annotations

import fcntl
import os
import pickle
import subprocess
import sys
from pathlib import Path

import cloudpickle
import pytest
import torch

from gpushare_kernel.core.errors import PeerError, UserError
from gpushare_kernel.nwv import travel
from gpushare_kernel.nwv.bundle import Bundle
from gpushare_kernel.nwv.region import SEALS, Region
from gpushare_kernel.realtime import Nodes, OneNode, Pipeline
from tests.nwv.bundles import made, nets

ELSEWHERE = """
import pickle, sys, gc
import torch
torch.set_num_threads(1)
with open(sys.argv[1], "rb") as file: blobs, x = pickle.load(file)
models = {name: pickle.loads(blob) for name, blob in blobs.items()}
rooms = {id(model.bundle.room) for model in models.values()}
regions = {id(model.bundle.region) for model in models.values()}
answers = [(name, models[name](x)) for name in ("net0", "net1", "net2", "net0")]
with open("/proc/self/maps") as file: mapped = sum("gpushare-pages" in line for line in file)
pickle.dump((answers, len(rooms), len(regions), mapped), sys.stdout.buffer)
"""


@pytest.mark.parametrize("mode", ["switch", "layers"])
def test_models_of_one_bundle_share_pages_and_scratch_elsewhere_too(mode: str, tmp_path: Path) -> None:  # fmt: skip
    """B8: three models sent to another process: one mapping, one scratch, the same answers."""
    one = made(nets(3), bits=8)
    bundle = Bundle(one.packed, one.modules, device="cpu", mode=mode)
    x = torch.randn(2, 1, 8, 8)
    blobs = {name: pickle.dumps(bundle[name]) for name in bundle}
    file = tmp_path / "models"
    file.write_bytes(pickle.dumps((blobs, x)))
    done = subprocess.run([sys.executable, "-c", ELSEWHERE, str(file)], capture_output=True, check=True, cwd=Path.cwd(), env={**os.environ, "PYTHONPATH": "."})  # fmt: skip
    answers, rooms, regions, mapped = pickle.loads(done.stdout)
    assert (rooms, regions, mapped) == (1, 1, 1)
    for name, answer in answers:
        with torch.no_grad():
            assert torch.equal(answer, one.plain[name](x))


def test_what_is_sent_has_no_weights() -> None:
    """B8: pages go by name; the rest is small."""
    one = made({"big": torch.nn.Linear(512, 512)}, page_size=512, keep=())
    bundle = Bundle(one.packed, one.modules, device="cpu")
    assert len(pickle.dumps(bundle["big"])) < 512 * 512 * 4 / 50


def test_pages_that_are_gone_are_said() -> None:
    """B8: the process that had them must live, and have them still."""
    one = made(nets(1))
    bundle = Bundle(one.packed, one.modules, device="cpu")
    blob = cloudpickle.dumps(bundle["net0"])
    del bundle
    with pytest.raises(UserError, match=f"were in process {os.getpid()}, which is gone or has let"):
        pickle.loads(blob)


def test_pages_that_may_not_be_opened_are_not_called_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """B8: the process that sent them lives, and is somebody else's or in another container."""
    one = made(nets(1))
    blob = pickle.dumps(Bundle(one.packed, one.modules, device="cpu")["net0"])

    def refused(*_: object) -> int:
        raise PermissionError

    monkeypatch.setattr(travel.os, "open", refused)
    with pytest.raises(UserError, match=rf"are in process {os.getpid()}, and this one may not open them"):  # fmt: skip
        pickle.loads(blob)


def test_a_model_of_a_bundle_runs_in_a_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """B8: in a node, another process, with the pages of this one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    one = made(nets(2))
    bundle = Bundle(one.packed, one.modules, device="cpu")
    x = torch.randn(1, 1, 8, 8)
    nodes = Nodes(OneNode())
    with Pipeline(bundle["net1"], x, class_="BE", nodes=nodes) as pipe, torch.no_grad():
        assert torch.equal(pipe(x), one.plain["net1"](x))


def test_pages_cannot_be_changed_by_anybody() -> None:
    """B9: sealed against writing, growing and shrinking; a stray write changes the writer's own view only."""
    region = Region.of({"pages": torch.arange(2000.0).view(20, 100), "scales": torch.ones(20)})
    assert fcntl.fcntl(region.fd, fcntl.F_GET_SEALS) & SEALS == SEALS
    for harm in (lambda: os.pwrite(region.fd, b"x", 0), lambda: os.ftruncate(region.fd, 1)):
        with pytest.raises(PermissionError):
            harm()
    other = Region(os.dup(region.fd), region.parts)
    other.tensors["pages"].fill_(7)
    assert torch.equal(region.tensors["pages"], torch.arange(2000.0).view(20, 100))
    assert region.tensors["scales"].sum() == 20


def test_another_kind_of_descriptor_is_refused(tmp_path: Path) -> None:
    """B9: a file could shrink under a reader, and an unsealed memfd be written to."""
    (tmp_path / "file").write_bytes(bytes(4096))
    parts = Region.of({"pages": torch.ones(4)}).parts
    with pytest.raises(PeerError, match="sealed memfd, and this is another kind"):
        Region(os.open(tmp_path / "file", os.O_RDONLY), parts)
    unsealed = os.memfd_create("loose", os.MFD_ALLOW_SEALING)
    os.ftruncate(unsealed, 4096)
    with pytest.raises(PeerError, match="with seals 0xf, and this one has 0x0"):
        Region(unsealed, parts)
    small = Region.of({"pages": torch.ones(1)})
    with pytest.raises(PeerError, match="tensors in shared memory lie inside it"):
        Region(os.dup(small.fd), Region.of({"pages": torch.ones(400)}).parts)
