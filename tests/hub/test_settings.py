"""What is read of hubs and servers without running their configuration, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpushare_kernel.hub import culling, settings
from gpushare_kernel.hub.settings import Culler, Limit, Settings

HUB = """
import sys
def get_config(): ...
c = get_config()
c.JupyterHub.spawner_class = "dockerspawner.DockerSpawner"
c.JupyterHub.services = [
    {"name": "grader", "url": f"http://{sys.argv[0]}"},
    {"name": "cull", "command": [sys.executable, "-m", "jupyterhub_idle_culler", "--timeout=3600"]},
]
c.Spawner.mem_limit = "4G"
c.Spawner.args = ["--MappingKernelManager.cull_idle_timeout=1200"]
c.Authenticator.allowed_users = compute()
"""


def read_hub(tmp_path: Path, text: str) -> Settings:
    path = tmp_path / "jupyterhub_config.py"
    path.write_text(text)
    return settings.read([path], tmp_path / "no-tljh")


def tljh(tmp_path: Path, text: str | None) -> Settings:
    config = tmp_path / "tljh/config"
    config.mkdir(parents=True)
    if text is not None:
        (config / "config.yaml").write_text(text)
    return settings.read([], tmp_path / "tljh")


def test_a_hubs_culler_limits_and_spawner_are_read(tmp_path: Path) -> None:
    """Literals, also in lists beside what is computed; nothing is run."""
    found = read_hub(tmp_path, HUB)
    path = tmp_path / "jupyterhub_config.py"
    assert found.shared_uid is True
    assert found.cullers == [
        Culler("JupyterHub stops idle servers", str(path), 3600),
        Culler(
            "Servers end idle kernels",
            f"--MappingKernelManager.cull_idle_timeout=1200 in {path}",
            1200,
        ),
    ]
    assert found.limits == [Limit("4G", f"c.Spawner.mem_limit in {path}")]
    assert found.unread == []


@pytest.mark.parametrize(
    ("command", "seconds"),
    [
        ('["python3", "-m", "jupyterhub_idle_culler"]', 600.0),
        ('["jupyterhub-idle-culler", "--timeout", "120"]', 120.0),
        ('["jupyterhub-idle-culler", "--timeout=soon"]', None),
        ('["python3", "cull_idle_servers.py", "--timeout=90"]', 90.0),
        ('[sys.executable, "-m", "jupyterhub_idle_culler", f"--timeout={T}"]', None),
        ('[sys.executable, "-m", "jupyterhub_idle_culler", "--timeout", T]', None),
        ('[sys.executable, "-m", "jupyterhub_idle_culler", *MORE]', None),
        ('[sys.executable, "-m", "jupyterhub_idle_culler", f"--cull-every={T}"]', 600.0),
        ('[f"{BIN}/jupyterhub-idle-culler", "--timeout=90"]', 90.0),
        ('"python3 -m jupyterhub_idle_culler --timeout=90".split()', 90.0),
        ('shlex.split("jupyterhub-idle-culler --timeout=90")', None),
    ],
)
@pytest.mark.parametrize(
    "written",
    [
        "c.JupyterHub.services = [{service}]",
        "c.JupyterHub.services += [{service}]",
        "c.JupyterHub.services.append({service})",
        "c.JupyterHub.services.extend([{service}])",
        "c.JupyterHub.services = [dict(**OTHERS), {service}]",
    ],
)
def test_a_culler_is_found_however_it_was_written(
    tmp_path: Path, command: str, seconds: float | None, written: str
) -> None:
    """Its default where it is told none; None where it cannot be read."""
    service = f'{{"name": "cull", "command": {command}}}'
    (culler,) = read_hub(tmp_path, written.replace("{service}", service)).cullers
    assert culler.seconds == seconds


def test_a_time_that_is_computed_is_said_as_unread(tmp_path: Path) -> None:
    """Not as the culler's default."""
    text = 'c.JupyterHub.services = [dict(name="cull", command=["jupyterhub-idle-culler", f"--timeout={T}"])]'
    assert list(culling.sentences(read_hub(tmp_path, text))) == [
        f"JupyterHub stops idle servers after a time that was not read ({tmp_path}/jupyterhub_config.py): where it is less than 12 h, "
        "parked notebooks die with them. Write there: --timeout=43200; idle notebooks give their GPU memory back long before."
    ]


@pytest.mark.parametrize("age", ["3600", "86400"])
def test_an_age_at_which_servers_end_is_said(tmp_path: Path, age: str) -> None:
    """Whatever it is: who works is ended, too."""
    text = f'c.JupyterHub.services = [{{"command": ["jupyterhub-idle-culler", "--timeout=43200", "--max-age={age}"]}}]'
    (said,) = culling.sentences(read_hub(tmp_path, text))
    assert said == (
        f"JupyterHub stops servers, idle or not, after {culling.duration(float(age))} ({tmp_path}/jupyterhub_config.py): "
        "parked notebooks die with them. Leave --max-age out there."
    )


@pytest.mark.parametrize(
    ("text", "unread"),
    [
        ("c.JupyterHub.services = SERVICES", ["services", "SERVICES"]),
        ("c.JupyterHub.services += made()", ["services", "made()"]),
        ('c.JupyterHub.services = [{**CULLER, "name": "cull"}]', ["services", "CULLER"]),
        ('c.JupyterHub.services = [{"command": COMMAND}]', ["services", "COMMAND"]),
        ('c.JupyterHub.services = [{"command": ["python3", "-m", MODULE]}]', ["services", "MODULE"]),
        ('c.JupyterHub.services = [{"command": ["jupyterhub-idle-culler", "--timeout=43200", "--max-age", AGE]}]', ["services", "--max-age of the culler"]),
        ("c.KubeSpawner.mem_limit = LIMIT", ["KubeSpawner.mem_limit", "LIMIT"]),
        ("c.Spawner.args = ARGS", ["Spawner.args", "ARGS"]),
        ('c.JupyterHub.services = [{"command": [sys.executable, "grade.py", "--db", DB]}]', []),
        ('c.Spawner.args = [f"--ServerApp.base_url={URL}"]', []),
    ],
)  # fmt: skip
def test_what_is_computed_is_named(tmp_path: Path, text: str, unread: list[str]) -> None:
    """Where a culler or a limit may be behind it."""
    found = read_hub(tmp_path, text)
    path = tmp_path / "jupyterhub_config.py"
    assert found.unread == ([f"c.{unread[0].replace('services', 'JupyterHub.services')} in {path}: {unread[1]}"] if unread else [])  # fmt: skip
    assert [one for one in found.cullers if one.seconds != 43200] == found.limits == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ('c.DockerSpawner.args = ["--MappingKernelManager.cull_idle_timeout=1200"]', "Servers end idle kernels after 20 min"),
        ('c.Spawner.args = ["--ServerApp.shutdown_no_activity_timeout", "600"]', "Servers without kernels end after 10 min"),
        ('c.KubeSpawner.args = [f"--ServerApp.shutdown_no_activity_timeout={T}"]', "Servers without kernels end after a time that was not read (--ServerApp.shutdown_no_activity_timeout={T} in "),
        ('c.KubeSpawner.mem_limit = "2G"', "A server may have 2G of the host's memory (c.KubeSpawner.mem_limit in "),
    ],
)  # fmt: skip
def test_any_spawners_arguments_and_limits_are_read(tmp_path: Path, arguments: str, said: str) -> None:  # fmt: skip
    """Its own traits are those of all spawners."""
    (line,) = culling.sentences(read_hub(tmp_path, arguments))
    assert line.startswith(said)


@pytest.mark.parametrize(
    ("spawner", "shared"),
    [
        ('"docker-swarm"', True),
        ('"kubespawner"', True),
        ("KubeSpawner", True),
        ("dockerspawner.DockerSpawner", True),
        ('"dockerspawner.SystemUserSpawner"', False),
        ('"jupyterhub.spawner.LocalProcessSpawner"', False),
        ("OurSpawner", None),
    ],
)
def test_spawners_that_run_all_as_one_account_are_known(tmp_path: Path, spawner: str, *, shared: bool | None) -> None:  # fmt: skip
    """By their short names, and as imported classes; what is not known may be anything."""
    assert read_hub(tmp_path, f"c.JupyterHub.spawner_class = {spawner}").shared_uid is shared


def test_no_hub_says_nothing(tmp_path: Path) -> None:
    """A laptop."""
    assert settings.read([], tmp_path) == Settings()
    assert list(culling.sentences(Settings())) == []


def test_what_is_no_python_is_said(tmp_path: Path) -> None:
    """It is not known what it does; the rest is read."""
    found = read_hub(tmp_path, "c.Spawner.mem_limit = (")
    assert len(found.unread) == 1
    (said,) = culling.sentences(found)
    assert said.startswith("This was not read, so nobody knows what it does to parked notebooks: ")


def test_tljh_culls_after_ten_minutes_where_nothing_says_otherwise(tmp_path: Path) -> None:
    """Its default holds without a configuration; its users have accounts of their own."""
    found = tljh(tmp_path, None)
    assert found.shared_uid is False
    (said,) = culling.sentences(found)
    assert said == (
        f"TLJH stops idle servers after 10 min ({tmp_path}/tljh/config/config.yaml): parked notebooks die with them. "
        "Run: sudo tljh-config set services.cull.timeout 43200; sudo tljh-config reload hub"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("services:\n  cull:\n    enabled: false\n", []),
        ("services:\n  cull:\n    timeout: 43200\n", []),
        ("services:\n  cull:\n    timeout: 90\n", ["after 90 s"]),
        ("services:\n  cull:\n    timeout: 7200\nlimits:\n  memory: 2G\n", ["after 2 h", "2G of the host's memory"]),
        ("services: [\n", ["This was not read"]),
        ("- a list\n", ["after 10 min"]),
    ],
)  # fmt: skip
def test_tljhs_configuration_is_read(tmp_path: Path, text: str, said: list[str]) -> None:
    """What it sets, what it switches off, and what is none."""
    found = list(culling.sentences(tljh(tmp_path, text)))
    assert len(found) == len(said)
    for line, part in zip(found, said, strict=True):
        assert part in line


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("jupyter_server_config.py", "c.MappingKernelManager.cull_idle_timeout = 60 * 30\n"),
        ("jupyter_server_config.json", '{"MappingKernelManager": {"cull_idle_timeout": 1800}}'),
    ],
)
def test_a_servers_own_culling_is_read(tmp_path: Path, name: str, text: str) -> None:
    """With the trait to set."""
    path = tmp_path / name
    path.write_text(text)
    (said,) = culling.sentences(settings.read([], tmp_path / "none", [path]))
    assert said == (
        f"Servers end idle kernels after 30 min (MappingKernelManager.cull_idle_timeout in {path}): parked notebooks die with them. "
        "Set MappingKernelManager.cull_idle_timeout to 0 or 43200 there."
    )


def test_no_culling_is_nothing_to_say(tmp_path: Path) -> None:
    """0 is never."""
    path = tmp_path / "jupyter_server_config.json"
    path.write_text('{"MappingKernelManager": {"cull_idle_timeout": 0}, "ServerApp": 3}')
    assert list(culling.sentences(settings.read([], tmp_path / "none", [path]))) == []


def test_a_limit_says_what_it_does_to_parking() -> None:
    """Parked memory is the host's, and the kernel's own."""
    (said,) = culling.sentences(Settings(limits=[Limit("2G", "limits.memory in x")]))
    assert said == (
        "A server may have 2G of the host's memory (limits.memory in x): what is parked of its notebooks counts towards it, "
        "and where it does not fit nothing is parked."
    )
