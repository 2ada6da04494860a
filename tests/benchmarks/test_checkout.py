"""A checkout that nobody installed looks installed to the processes that are told where it is."""

from __future__ import annotations

import os
import subprocess
import sys

from benchmarks.gpu import checkout

FINDS = """
import importlib.metadata as m
(point,) = {p.value for p in m.entry_points(group="jupyter_client.kernel_provisioners") if p.name == "gpushare"}
import gpushare_kernel, gpushare_magics, gpushare_widgets
print(m.version("gpushare-kernel"), point, gpushare_kernel.__file__)
"""


def test_the_provisioner_is_found_by_its_entry_point(tmp_path):
    """In an interpreter that has nothing but the path: no site-packages, nothing installed."""
    path = checkout.search_path(checkout.lay_out(tmp_path))
    dependencies = [entry for entry in sys.path if "site-packages" in entry]
    done = subprocess.run(
        [sys.executable, "-S", "-c", FINDS],
        env={"PYTHONPATH": os.pathsep.join([*path, *dependencies])},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    version, point, where = done.stdout.split()
    assert version == "0.1.0"
    assert point == "gpushare_kernel.provisioner:GpuShareProvisioner"
    assert where == str(checkout.ROOT / "gpushare_kernel/__init__.py")


def test_the_path_keeps_what_was_on_it(tmp_path):
    """Dependencies on PYTHONPATH stay, after ours, and nothing is named twice."""
    path = checkout.search_path(tmp_path, existing=["/deps", str(checkout.ROOT), ""])
    assert path == [
        str(tmp_path),
        str(checkout.ROOT),
        str(checkout.ROOT / "magics"),
        str(checkout.ROOT / "widgets"),
        "/deps",
    ]


def test_the_startup_file_goes_into_the_profile_where_the_environment_has_none(
    tmp_path, monkeypatch
):
    """Never twice: IPython would run both."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "nowhere"))
    assert checkout.place_startup(tmp_path / "ipython")
    placed = tmp_path / "ipython/profile_default/startup/00-gpushare.py"
    assert placed.read_text() == (checkout.ROOT / checkout.STARTUP).read_text()
    environment = tmp_path / "environment" / checkout.STARTUP
    environment.parent.mkdir(parents=True)
    environment.touch()
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "environment"))
    assert not checkout.place_startup(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_no_module_of_the_rows_hides_one_of_the_standard_library():
    """`driver.py` and `hog.py` are started as scripts, so their folder comes first on their path."""
    ours = {path.stem for path in (checkout.ROOT / "benchmarks/gpu").glob("*.py")}
    assert "driver" in ours
    assert not ours & sys.stdlib_module_names
