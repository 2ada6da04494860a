"""install --hub: what it writes, into a folder that stands for a machine; what uninstall takes back, and what it finds left."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from traitlets import Dict
from traitlets.config import Config, Configurable
from traitlets.config.loader import PyFileConfigLoader

from gpushare_kernel.app import hub_install, unit
from gpushare_kernel.app.base import BrokerCommand, Command
from gpushare_kernel.app.checks import fitting
from gpushare_kernel.app.install import InstallApp
from gpushare_kernel.core.errors import BadDeclaration
from gpushare_kernel.core.values import GiB
from gpushare_kernel.hub import snippet
from gpushare_kernel.transport import places as places_module
from gpushare_kernel.transport.places import Places, how_to_restart, how_to_start, may_start
from gpushare_kernel.wire.snapshot import DeviceView
from tests.app.conftest import Gpushare

VARIABLE = "JUPYTER_DEFAULT_PROVISIONER_NAME"
CONFIG = "c.JupyterHub.port = 8000\nc.Spawner.environment = {'A': 'b'}\n"


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A machine with a plain JupyterHub."""
    root = tmp_path / "machine"
    config = root / "etc/jupyterhub/jupyterhub_config.py"
    config.parent.mkdir(parents=True)
    config.write_text(CONFIG)
    config.chmod(0o640)
    return root


@pytest.fixture
def tljh(tmp_path: Path) -> Path:
    """A machine with The Littlest JupyterHub."""
    root = tmp_path / "tljh"
    (root / "opt/tljh/config").mkdir(parents=True)
    return root


def files(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()
    }


def install(gpushare: Gpushare, root: Path, *more: str) -> str:
    done = gpushare("install", "--hub", "--root", str(root), *more)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def loaded(path: Path) -> Config:
    """A hub's configuration as a hub loads it."""
    return PyFileConfigLoader(path.name, str(path.parent)).load_config()


def test_a_plain_hub_is_installed_and_back(gpushare: Gpushare, machine: Path) -> None:
    """Everything is printed; twice is once; nothing is left, and the hub's own file is as it was to the byte."""
    before = files(machine)
    said = install(gpushare, machine, "--parking", "cold")
    written = files(machine)
    assert set(written) - set(before) == {
        "etc/systemd/system/gpushare.service",
        "etc/gpushare/service",
        "etc/gpushare/jupyterhub.py",
        "etc/gpushare/installed.json",
    }
    for path in ("/etc/systemd/system/gpushare.service", "/etc/gpushare/service", "/etc/gpushare/jupyterhub.py", "/etc/jupyterhub/jupyterhub_config.py"):  # fmt: skip
        assert path in said
    assert "systemctl enable --now gpushare.service" in said
    assert "by its defaults that ends everybody's notebooks" in said
    assert "--service --parking cold\n" in written["etc/systemd/system/gpushare.service"]
    assert install(gpushare, machine, "--parking", "cold") == said
    assert files(machine) == written
    config = machine / "etc/jupyterhub/jupyterhub_config.py"
    assert config.stat().st_mode & 0o7777 == 0o640
    done = gpushare("uninstall", "--hub", "--root", str(machine))
    assert "/etc/jupyterhub/jupyterhub_config.py: as it was before" in done.stdout
    assert files(machine) == before
    assert not (machine / "etc/gpushare").exists()
    assert "Nothing of ours is installed" in gpushare("uninstall", "--hub", "--root", str(machine)).stdout  # fmt: skip


def test_a_dry_run_prints_all_of_it_and_writes_nothing(gpushare: Gpushare, machine: Path) -> None:
    """The texts themselves, to be read first."""
    before = files(machine)
    said = install(gpushare, machine, "--dry-run")
    assert files(machine) == before
    assert "KillMode=process" in said
    assert "c.Spawner.environment.update" in said
    assert "/etc/jupyterhub/jupyterhub_config.py: would load" in said
    assert said.endswith("\nNothing was written.\n")
    _, _, noted = said.partition("--- /etc/gpushare/installed.json: ")
    install(gpushare, machine)
    assert (machine / "etc/gpushare/installed.json").read_text() in noted
    here = gpushare("install", "--hub", "--dry-run").stdout
    for kernel in ("python3", "gpushare"):
        assert f"--- {sys.prefix}/share/jupyter/kernels/{kernel}/kernel.json: " in here
    assert here.count('"provisioner_name": "gpushare"') == 2


def test_a_wrong_option_of_the_broker_says_that_nothing_was_written(gpushare: Gpushare, machine: Path) -> None:  # fmt: skip
    """No broker was to be started."""
    before = files(machine)
    done = gpushare("install", "--hub", "--root", str(machine), "--parking", "colt")
    assert done.returncode == 1
    assert done.stderr.endswith("Nothing was written.\n")
    assert files(machine) == before


def test_a_file_of_groups_is_the_services(gpushare: Gpushare, machine: Path) -> None:
    """As `start --config` has it; one that is not there is said before anything is written."""
    before = files(machine)
    refused = gpushare("install", "--hub", "--root", str(machine), "--config", "/etc/groups.toml")
    assert refused.returncode == 1
    assert refused.stderr == "gpushare: --config: there is no file /etc/groups.toml. Nothing was written.\n"  # fmt: skip
    assert files(machine) == before
    (machine / "etc/groups.toml").touch()
    said = install(gpushare, machine, "--config", "/etc/groups.toml", "--dry-run")
    (start,) = [line for line in said.splitlines() if line.startswith("ExecStart=")]
    assert start.endswith("--service --config /etc/groups.toml")


def test_no_option_of_start_means_something_else_in_install() -> None:
    """A name that several classes have is the broker's."""
    of_brokers = set(BrokerCommand.aliases) - set(Command.aliases) | {"config"}
    assert {name: InstallApp.aliases[name] for name in of_brokers} == {
        name: BrokerCommand.aliases[name] for name in of_brokers
    }
    assert BrokerCommand.flags.items() <= InstallApp.flags.items()


def test_tljh_gets_a_file_of_its_own_and_says_what_its_culler_does(gpushare: Gpushare, tljh: Path) -> None:  # fmt: skip
    """Where TLJH looks for such files; its default culls after ten minutes, and the command is named."""
    said = install(gpushare, tljh)
    (made,) = (tljh / "opt/tljh/config/jupyterhub_config.d").iterdir()
    assert made.name == "gpushare.py"
    assert "TLJH stops idle servers after 10 min" in said
    assert (
        "Run: sudo tljh-config set services.cull.timeout 43200; sudo tljh-config reload hub" in said
    )
    gpushare("uninstall", "--hub", "--root", str(tljh))
    assert files(tljh) == {}


def test_another_kind_of_hub_later_leaves_nothing_of_the_first(gpushare: Gpushare, machine: Path) -> None:  # fmt: skip
    """What the first installation wrote and the second does not is taken back."""
    install(gpushare, machine)
    (machine / "opt/tljh/config").mkdir(parents=True)
    install(gpushare, machine)
    assert not (machine / "etc/gpushare/jupyterhub.py").exists()
    assert files(machine)["etc/jupyterhub/jupyterhub_config.py"] == CONFIG
    gpushare("uninstall", "--hub", "--root", str(machine))
    assert files(machine) == {"etc/jupyterhub/jupyterhub_config.py": CONFIG}


@pytest.mark.parametrize("link", ["../srv/hub.py", "/etc/srv/hub.py"])
def test_a_linked_configuration_stays_a_link(gpushare: Gpushare, machine: Path, link: str) -> None:
    """What it leads to has the lines, in an image, too; and is as it was before without them."""
    config, real = machine / "etc/jupyterhub/jupyterhub_config.py", machine / "etc/srv/hub.py"
    real.parent.mkdir()
    config.replace(real)
    config.symlink_to(link)
    install(gpushare, machine, "--hub-config", "/etc/jupyterhub/jupyterhub_config.py")
    assert snippet.with_block(CONFIG) == real.read_text()
    gpushare("uninstall", "--hub", "--root", str(machine))
    assert real.read_text() == CONFIG
    assert str(config.readlink()) == link


def test_again_with_other_options_keeps_the_hubs_that_are_known(gpushare: Gpushare, tmp_path: Path) -> None:  # fmt: skip
    """A configuration that was named once, where nobody looks by themselves; until its file is gone."""
    root = tmp_path / "machine"
    config = root / "srv/elsewhere/hub.py"
    config.parent.mkdir(parents=True)
    config.write_text(CONFIG)
    said = install(gpushare, root, "--hub-config", "/srv/elsewhere/hub.py")
    again = install(gpushare, root)
    assert again == said
    assert config.read_text() == snippet.with_block(CONFIG)
    assert "/srv/elsewhere/hub.py: would load" in install(gpushare, root, "--dry-run")
    config.unlink()
    assert "No configuration of a JupyterHub was found" in install(gpushare, root)
    assert "elsewhere" not in (root / "etc/gpushare/installed.json").read_text()


def test_again_with_other_options_the_broker_keeps_its_own(gpushare: Gpushare, machine: Path) -> None:  # fmt: skip
    """What doctor, status and the metrics' page say is one option more, never all the others less; and it is said."""

    def start() -> str:
        text = (machine / "etc/systemd/system/gpushare.service").read_text()
        (line,) = [line for line in text.splitlines() if line.startswith("ExecStart=")]
        return line.partition(" --service")[2].strip()

    hub = "--hub-api http://127.0.0.1:8081/hub/api --hub-uids 1000"
    said = install(gpushare, machine, *hub.split(), "--device", "0,1", "--policy", "srtf", "--record", "/var/log/50%$.jsonl")  # fmt: skip
    assert "keeps" not in said
    said = install(gpushare, machine, "--metrics", "127.0.0.1:9469", "--policy", "fair")
    assert f"The broker keeps --device 0,1 --record '/var/log/50%$.jsonl' {hub} (--anew: it does not).\n" in said  # fmt: skip
    before = start()
    assert before == f"--policy fair --device 0,1 --record '/var/log/50%%$$.jsonl' {hub} --metrics 127.0.0.1:9469"  # fmt: skip
    install(gpushare, machine)
    assert start() == before
    said = install(gpushare, machine, "--anew", "--parking", "cold", "--dry-run")
    assert "Without what the broker had before: --policy fair --device 0,1 " in said
    assert start() == before
    install(gpushare, machine, "--anew", "--parking", "cold")
    assert start() == "--parking cold"
    refused = gpushare("install", "--hub", "--root", str(machine), "--device", "host")
    assert "--parking: the CPU has nothing to park. Nothing was written." in refused.stderr
    written = machine / "etc/systemd/system/gpushare.service"
    written.write_text(written.read_text().replace("--parking cold", "--parking cold --by-hand 1"))
    refused = gpushare("install", "--hub", "--root", str(machine))
    assert "--by-hand: the broker has no such option. Nothing was written." in refused.stderr


def test_what_somebody_changed_is_kept_aside_and_not_in_use(gpushare: Gpushare, machine: Path) -> None:  # fmt: skip
    """An administrator's edit of the unit is not lost, and no unit stays."""
    install(gpushare, machine)
    written = machine / "etc/systemd/system/gpushare.service"
    written.write_text(written.read_text() + "Environment=A=b\n")
    said = gpushare("uninstall", "--hub", "--root", str(machine)).stdout
    assert "somebody changed it, so it is kept as gpushare.service.changed-since-gpushare" in said
    assert not written.exists()


def test_a_mark_with_more_in_it_stays_and_says_what_that_means(gpushare: Gpushare, machine: Path) -> None:  # fmt: skip
    """Something else in /etc/gpushare is not ours to remove."""
    install(gpushare, machine)
    (machine / "etc/gpushare/groups.toml").write_text("mine")
    said = gpushare("uninstall", "--hub", "--root", str(machine)).stdout
    assert "/etc/gpushare stays, for what else is in it (groups.toml)" in said


def test_what_the_broker_kept_is_named_with_what_removes_it(gpushare: Gpushare, machine: Path) -> None:  # fmt: skip
    """systemd made those folders, and nobody removes them unasked."""
    for place in ("var/lib/gpushare", "var/log/gpushare"):
        (machine / place).mkdir(parents=True)
    install(gpushare, machine)
    said = gpushare("uninstall", "--hub", "--root", str(machine)).stdout
    assert "stays: /var/lib/gpushare, /var/log/gpushare. To remove that, once the service is stopped: rm -r /var/lib/gpushare /var/log/gpushare\n" in said  # fmt: skip
    assert (machine / "var/lib/gpushare").is_dir()


def test_a_hub_that_cannot_be_read_stops_it_before_anything_is_written(gpushare: Gpushare, tmp_path: Path) -> None:  # fmt: skip
    """The file, why, and the option."""
    root = tmp_path / "empty"
    done = gpushare("install", "--hub", "--root", str(root), "--hub-config", "/etc/hub.py")
    assert done.returncode == 1
    assert "the hub's configuration" in done.stderr
    assert "Nothing was written" in done.stderr
    assert not root.exists()


@pytest.mark.parametrize("place", ["--user", "--sys-prefix"])
def test_kernelspecs_too_are_printed_first(gpushare: Gpushare, tmp_path: Path, place: str) -> None:
    """And not written."""
    done = gpushare("install", place, "--dry-run")
    assert (done.returncode, done.stdout.count("would be written")) == (0, 2)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ((), "install needs one place"),
        (("--hub", "--user"), "install needs one place"),
        (("--user", "--parking", "cold"), "go with --hub"),
        (("--hub", "--parking", "colder"), "invalid choice"),
        (("--hub", "--hub-api", "localhost:8081"), "a hub's API is an address like"),
        (("--hub", "--hub-api", "http://127.0.0.1:99999/hub/api"), "a hub's API is an address like"),
        (("--hub", "--hub-uids", "jovyan"), "are no uids"),
        (("--hub", "--hub-confg", "x"), "Did you mean --hub-config?"),
    ],
)  # fmt: skip
def test_bad_options_are_refused(gpushare: Gpushare, tmp_path: Path, words: tuple[str, ...], problem: str) -> None:  # fmt: skip
    """Before anything is written."""
    root = ("--root", str(tmp_path / "none")) if "--hub" in words else ()
    done = gpushare("install", *words, *root)
    assert done.returncode == 1
    assert problem in done.stderr
    assert not (tmp_path / "none").exists()


# --- what is written ------------------------------------------------------------------------------------------


def test_the_hub_adds_the_variable_to_what_is_there(gpushare: Gpushare, machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """Its own environment stays; the value is found when a server starts: ours while the package is there, else Jupyter's own."""
    monkeypatch.setattr(snippet, "PLACE", machine / "etc/gpushare/jupyterhub.py")
    startup = machine / "env/startup.py"
    planned = hub_install.Plan(machine)
    planned.files.append(hub_install.Text(Path("/etc/gpushare/jupyterhub.py"), snippet.snippet(startup), ""))  # fmt: skip
    hub_install.write(planned)
    config = machine / "etc/jupyterhub/jupyterhub_config.py"
    config.write_text(snippet.with_block(config.read_text(), snippet.PLACE))
    environment: Any = loaded(config).Spawner.environment
    if hasattr(environment, "get_value"):
        environment = environment.get_value({})
    assert environment["A"] == "b"
    assert environment[VARIABLE](None) == "local-provisioner"
    startup.parent.mkdir(parents=True)
    startup.touch()
    assert environment[VARIABLE](None) == "gpushare"


class Spawner(Configurable):
    """As the hub has it."""

    environment = Dict(config=True)


class LocalProcessSpawner(Spawner):
    """Likewise."""


@pytest.mark.parametrize(
    ("written", "shares"),
    [
        ("c.LocalProcessSpawner.environment = {'A': 'b'}", False),
        ("c.LocalProcessSpawner.environment = dict(A='b')", False),
        ("c.LocalProcessSpawner.environment.update({'A': 'b'})", True),
        (f"c.LocalProcessSpawner.environment = {{'A': 'b', '{VARIABLE}': 'gpushare'}}", True),
        ("c.Spawner.environment = {'A': 'b'}", True),
    ],
)
def test_a_spawners_own_environment_is_named_where_it_replaces_ours(gpushare: Gpushare, machine: Path, written: str, *, shares: bool) -> None:  # fmt: skip
    """It is said exactly where the hub's own reading of its configuration leaves the variable out."""
    config = machine / "etc/jupyterhub/jupyterhub_config.py"
    config.write_text(f"{written}\n")
    said = install(gpushare, machine)
    config.write_text(snippet.with_block(config.read_text(), machine / "etc/gpushare/jupyterhub.py"))  # fmt: skip
    environment = LocalProcessSpawner(config=loaded(config)).environment
    assert environment["A"] == "b"
    assert (VARIABLE in environment) is shares
    line = "c.LocalProcessSpawner.environment in /etc/jupyterhub/jupyterhub_config.py replaces c.Spawner.environment"
    assert (line in said.replace(str(machine), "")) is not shares


def test_a_hub_whose_snippet_is_gone_starts_all_the_same(machine: Path) -> None:
    """Lines that somebody copied elsewhere and forgot load nothing."""
    config = machine / "etc/jupyterhub/jupyterhub_config.py"
    config.write_text(snippet.with_block(config.read_text(), machine / "gone.py"))
    assert loaded(config).Spawner.environment == {"A": "b"}


@pytest.mark.parametrize("text", ["", "x = 1", "x = 1\n", "x = 1\n\n\n"])
def test_lines_go_in_once_and_out_again(text: str) -> None:
    """To the byte, but for a newline at the end that was missing."""
    once = snippet.with_block(text)
    assert snippet.with_block(once) == once
    assert snippet.without_block(once) in {text, text + "\n"}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("arguments", [[], ["--record", "/var/log/gpushare/50%.jsonl"]])
def test_systemd_takes_the_unit(tmp_path: Path, arguments: list[str]) -> None:
    """Without a warning; what systemd would read in an argument is written so that it does not."""
    path = tmp_path / unit.NAME
    path.write_text(unit.unit(sys.executable, arguments))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", path], capture_output=True, text=True, check=False, timeout=60
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_the_unit_has_nothing_that_breaks_what_the_broker_does() -> None:
    """Its guardian outlives it, its folder outlives a stop (containers mount it), and no sandbox hides devices, processes or signals."""
    lines = unit.unit("/opt/python", []).splitlines()
    after = next(line for line in lines if line.startswith("After="))
    assert "nss-user-lookup.target" in after, "the groups file names users that only LDAP knows"
    assert "Wants=nss-user-lookup.target" in lines
    for line in ("KillMode=process", "OOMPolicy=continue", "RuntimeDirectoryPreserve=yes", "Restart=on-failure", "Type=notify"):  # fmt: skip
        assert line in lines
    assert any(line.startswith("ExecStopPost=") and "broker.service" in line for line in lines)
    hides = ("Private", "Protect", "Memory", "Restrict", "SystemCall", "Device", "NoNew", "Capability", "User=", "Dynamic")  # fmt: skip
    assert not [line for line in lines if line.startswith(hides)]


# --- a service means that nobody else starts one --------------------------------------------------------------------


def test_beside_a_service_not_even_root_starts_a_broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """Root's own notebook would take the place of the service's; people read the service's command."""
    monkeypatch.setattr(places_module, "SYSTEM_MARK", tmp_path)
    here = Places(tmp_path / "run", system=True)
    assert how_to_start(here) == "jupyter gpushare start"
    here.runtime.mkdir()
    here.again.write_text(json.dumps(["--again", "--idle-exit", "0.0", "--device", "auto", "--turn", "0.1", "--policy", "srtf", "--parking", "warm", "--record", "/a b.jsonl"]))  # fmt: skip
    asked = "jupyter gpushare stop; jupyter gpushare start --idle-exit 0.0 --policy srtf --parking cold --record '/a b.jsonl'"
    assert how_to_restart(here, "--parking cold") == asked
    assert how_to_restart(here, "--parking cold", []) == "jupyter gpushare stop; jupyter gpushare start --parking cold"  # fmt: skip
    (tmp_path / "service").write_text("gpushare.service\n")
    assert not may_start(here)
    assert how_to_start(here) == "systemctl start gpushare.service"
    assert how_to_restart(here) == "systemctl restart gpushare.service"
    assert how_to_restart(here, "--parking cold") == (
        "jupyter gpushare install --hub --parking cold; systemctl daemon-reload; systemctl restart gpushare.service"
    )
    gpu = DeviceView("G", "cuda", "NVIDIA T4", 16 * GiB, 0, 0, (), context=GiB, can=("pause",))
    (check,) = fitting(gpu, here)
    assert check.text.endswith(f": {how_to_restart(here, '--parking cold')}.")
    assert may_start(Places(tmp_path / "run", system=True, named=True)) is True


# --- what is left -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("etc/environment", f"{VARIABLE}=gpushare"),
        ("etc/profile.d/jupyter.sh", f"export {VARIABLE}=gpushare"),
        ("etc/systemd/system/jupyterhub.service.d/env.conf", f'Environment="{VARIABLE}=gpushare"'),
        ("etc/jupyterhub/more.py", f'c.Spawner.environment = {{"{VARIABLE}": "gpushare"}}'),
        ("home/.bashrc", f"export {VARIABLE}=gpushare"),
        ("home/.jupyter/jupyter_server_config.py", 'c.KernelProvisionerFactory.default_provisioner_name = "gpushare"'),
    ],
)  # fmt: skip
def test_what_others_set_is_found(machine: Path, place: str, line: str) -> None:
    """Its file and line: left there without the package, it would stop every kernel. Comments and other values are nobody's trouble."""
    path = machine / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"# {line}\n{line.replace('gpushare', 'other')}\n{line}\n")
    assert list(snippet.left_over(machine, [machine / "home"], [])) == [f"{path} line 3"]


def test_a_users_file_that_is_none_holds_nobody_up(machine: Path) -> None:
    """Root looks through everybody's: a pipe that nobody writes into would be waited for, for ever."""
    home = machine / "home"
    home.mkdir()
    os.mkfifo(home / ".bashrc")
    (home / ".profile").symlink_to("/dev/zero")
    assert list(snippet.left_over(machine, [home], [])) == []


def test_uninstall_names_this_shells_own(gpushare: Gpushare) -> None:
    """The one that whoever reads this has."""
    said = gpushare("uninstall", "--user", **{VARIABLE: "gpushare"}).stdout
    assert f"{VARIABLE}=gpushare is still set by this shell's environment. Take it out" in said


def test_a_note_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    """Then what is known to be ours is taken back."""
    planned = hub_install.plan(tmp_path, "/opt/python", Path("/opt/startup.py"), [], [])
    hub_install.write(planned)
    (tmp_path / "etc/gpushare/installed.json").write_text("{")
    hub_install.take_back(tmp_path, [])
    assert files(tmp_path) == {}
    planned.blocks.append(Path("/nowhere.py"))
    with pytest.raises(BadDeclaration, match="cannot be read"):
        hub_install.write(planned)
