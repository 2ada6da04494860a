"""Files that root writes for a hub: what somebody planted beside them, or led their path to, stays as it was."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpushare_kernel.app import hub_install, placing
from gpushare_kernel.core.errors import BadDeclaration
from gpushare_kernel.hub import snippet
from tests.app.conftest import Gpushare

CONFIG = Path("/etc/jupyterhub/jupyterhub_config.py")
TEXT = "c.JupyterHub.port = 8000\n"
NOBODY = 65534


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A machine with a plain JupyterHub, and something of root's that is nobody else's to change."""
    config = tmp_path / "etc/jupyterhub/jupyterhub_config.py"
    config.parent.mkdir(parents=True)
    config.write_text(TEXT)
    config.chmod(0o640)
    (tmp_path / "etc/sudoers").write_text("root")
    return tmp_path


def planned(machine: Path, *hubs: Path) -> hub_install.Plan:
    return hub_install.plan(machine, "/opt/python", Path("/opt/startup.py"), [], hubs or [CONFIG])


@pytest.mark.parametrize("name", [".jupyterhub_config.py.new", ".jupyterhub_config.py."])
def test_a_link_that_was_planted_beside_a_file_is_not_followed(machine: Path, name: str) -> None:
    """Whatever may be written beside a hub's configuration: what it leads to keeps its text and its mode, and so does the configuration its own."""
    config, target = machine / "etc/jupyterhub/jupyterhub_config.py", machine / "etc/sudoers"
    (config.parent / name).symlink_to(target)
    before = target.stat().st_mode
    hub_install.write(planned(machine))
    assert (target.read_text(), target.stat().st_mode) == ("root", before)
    assert config.read_text() == snippet.with_block(TEXT)
    assert config.stat().st_mode & 0o7777 == 0o640
    hub_install.take_back(machine, [CONFIG])
    assert (target.read_text(), target.stat().st_mode) == ("root", before)
    assert config.read_text() == TEXT
    assert sorted(path.name for path in config.parent.iterdir()) == sorted([name, config.name])


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give files away")
@pytest.mark.parametrize(
    ("theirs", "roots"),
    [("etc/jupyterhub", "etc/jupyterhub/jupyterhub_config.py"), ("etc/jupyterhub/jupyterhub_config.py", "etc/sudoers")],
)  # fmt: skip
def test_what_somebody_else_leads_to_is_not_written_to(gpushare: Gpushare, machine: Path, theirs: str, roots: str) -> None:  # fmt: skip
    """A folder, or a link, of a user's that leads to a file of root's: the command says whose it is, and nothing is written."""
    at = machine / roots
    if roots == "etc/sudoers":
        (machine / theirs).unlink()
        (machine / theirs).symlink_to("/etc/sudoers")
    os.chown(machine / theirs, NOBODY, NOBODY, follow_symlinks=False)
    before = at.read_text()
    words = ("--hub", "--root", str(machine), "--hub-config", str(CONFIG))
    done = gpushare("install", *words)
    assert done.returncode == 1
    assert f"{machine / theirs} belongs to uid {NOBODY}, and the file to uid 0" in done.stderr
    assert "Nothing was written" in done.stderr
    assert at.read_text() == before
    assert not (machine / "etc/gpushare").exists()
    at.write_text(with_block := snippet.with_block(before))
    done = gpushare("uninstall", *words)
    assert "is not written to" in done.stdout
    assert at.read_text() == with_block


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give files away")
def test_a_hub_of_an_account_of_its_own_is_installed_and_stays_its(machine: Path) -> None:
    """File and folder are that account's, before and after."""
    config = machine / "etc/jupyterhub/jupyterhub_config.py"
    for path in (config.parent, config):
        os.chown(path, NOBODY, NOBODY)
    hub_install.write(planned(machine))
    assert config.read_text() == snippet.with_block(TEXT)
    assert (config.stat().st_uid, config.stat().st_gid) == (NOBODY, NOBODY)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give files away")
def test_what_is_exchanged_after_it_was_looked_at_is_not_written_to(machine: Path) -> None:
    """The account of a hub leads its own folder somewhere else just then."""
    config = machine / "etc/jupyterhub/jupyterhub_config.py"
    for path in (config.parent, config):
        os.chown(path, NOBODY, NOBODY)
    found = placing.find(machine, CONFIG)
    config.parent.rename(machine / "etc/before")
    other = machine / "etc/cron.d" / config.name
    other.parent.mkdir()
    other.write_text("root's")
    config.parent.symlink_to("cron.d")
    with pytest.raises(placing.NotOurs, match="exchanged meanwhile"):
        found.write("mine")
    assert other.read_text() == "root's"
    other.unlink()
    with pytest.raises(FileNotFoundError):
        found.write("mine")
    assert not other.exists()


def test_a_folder_that_everybody_may_write_to_has_nothing_for_root(machine: Path) -> None:
    """Whoever likes puts another file there."""
    (machine / "etc/jupyterhub").chmod(0o777)
    with pytest.raises(BadDeclaration, match=r"everybody may write to .*/etc/jupyterhub"):
        hub_install.write(planned(machine))
    (machine / "etc/jupyterhub").chmod(0o1777)  # as /tmp: files there are their owners'
    hub_install.write(planned(machine))


def test_a_link_that_leads_to_itself_is_no_file(machine: Path) -> None:
    """It is said, and not followed for ever."""
    config = machine / "etc/jupyterhub/jupyterhub_config.py"
    config.unlink()
    config.symlink_to(config.name)
    with pytest.raises(BadDeclaration, match="leads to itself"):
        hub_install.write(planned(machine))


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give files away")
def test_a_users_file_that_nobody_named_stops_no_installation(gpushare: Gpushare, machine: Path) -> None:  # fmt: skip
    """Anybody may have what is called a hub, with a file that root does not write to: it is said, the rest is installed, and no note has it."""
    config = machine / "etc/jupyterhub/jupyterhub_config.py"
    config.chmod(0o666)
    os.chown(config, NOBODY, NOBODY)
    done = gpushare("install", "--hub", "--root", str(machine))
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{CONFIG}: left as it is, servers of its hub do not share: {CONFIG} is not written to: everybody may write to {config}." in done.stdout  # fmt: skip
    assert config.read_text() == TEXT
    assert str(CONFIG) not in (machine / "etc/gpushare/installed.json").read_text()
    named = gpushare("install", "--hub", "--root", str(machine), "--hub-config", str(CONFIG))
    assert named.returncode == 1
    assert "Nothing was written" in named.stderr
