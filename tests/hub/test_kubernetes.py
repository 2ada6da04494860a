"""examples/kubernetes: its manifests are what the Kubernetes API takes, and broker and pods meet in one folder.

The values are checked by what becomes of them: the pod that KubeSpawner makes of them is one, too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from gpushare_kernel.app.base import BrokerCommand
from gpushare_kernel.app.main import GpuShareApp
from gpushare_kernel.transport.places import SYSTEM_LOGS, SYSTEM_MARK, SYSTEM_RUNTIME, SYSTEM_STATE

FOLDER = Path(__file__).parents[2] / "examples/kubernetes"
VERSIONS = ("1.30", kubernetes_validate.latest_version())
CHART = {
    "image": {"name", "tag"},
    "extraEnv": None,
    "nodeSelector": None,
    "extraTolerations": None,
    "extraPodConfig": None,
    "storage": {"extraVolumes", "extraVolumeMounts"},
}
"""What of `singleuser` zero-to-jupyterhub's schema has (chart 4); anything else it refuses."""


def documents(name: str) -> list[dict[str, Any]]:
    """The documents of a file."""
    return [*yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8"))]


@pytest.fixture
def daemon() -> dict[str, Any]:
    """The pod of the DaemonSet."""
    [found] = [one for one in documents("broker.yaml") if one["kind"] == "DaemonSet"]
    pod: dict[str, Any] = found["spec"]["template"]["spec"]
    return pod


@pytest.fixture
def values() -> dict[str, Any]:
    """What users' servers get."""
    [found] = documents("hub-values.yaml")
    single: dict[str, Any] = found["singleuser"]
    return single


def test_of_the_clone_only_a_wheel_gets_into_the_image() -> None:
    """Its history and whatever else lies in it stay outside: the last stage copies from the first alone, and what is large is not even sent."""
    lines = (FOLDER / "Dockerfile").read_text(encoding="utf-8").splitlines()
    last = lines[max(number for number, line in enumerate(lines) if line.startswith("FROM ")) :]
    assert [line for line in last if line.startswith(("COPY", "ADD"))] == ["COPY --from=build /wheels /wheels"]  # fmt: skip
    assert "FROM python:3.12-slim-bookworm AS build" in lines
    left_out = (FOLDER.parents[1] / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {".git", ".venv"} <= {*left_out}
    kept = {"pyproject.toml", "README.md", "LICENSE", "gpushare_kernel", "magics", "widgets", "etc", "labextension"}  # fmt: skip
    assert not kept & {*left_out}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_manifests_are_valid(version):
    """No field is misspelled, none of the wrong type, by the API's own schema; one that is, is found."""
    for document in documents("broker.yaml"):
        kubernetes_validate.validate(document, version, strict=True)
    [wrong] = [one for one in documents("broker.yaml") if one["kind"] == "DaemonSet"]
    wrong["spec"]["template"]["spec"]["hostPid"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_pod_that_the_values_make_is_valid(values, version):
    """As KubeSpawner makes it: volumes, mounts, environment, tolerations, and what goes into the pod as it is."""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "jupyter-ann"},
        "spec": {
            **values["extraPodConfig"],
            "nodeSelector": values["nodeSelector"],
            "tolerations": values["extraTolerations"],
            "volumes": values["storage"]["extraVolumes"],
            "containers": [
                {
                    "name": "notebook",
                    "image": f"{values['image']['name']}:{values['image']['tag']}",
                    "env": [
                        {"name": name, "value": value} for name, value in values["extraEnv"].items()
                    ],
                    "volumeMounts": values["storage"]["extraVolumeMounts"],
                }
            ],
        },
    }
    kubernetes_validate.validate(pod, version, strict=True)


def test_the_chart_knows_every_value(values):
    """It refuses what it does not know."""
    assert set(values) <= set(CHART)
    for name, known in CHART.items():
        if known is not None:
            assert set(values[name]) <= known
    [whole] = documents("hub-values.yaml")
    assert set(whole) == {"singleuser", "cull"}
    assert set(whole["cull"]) == {"timeout"}


def test_broker_and_kernels_meet_in_a_folder_of_the_host(daemon, values):
    """The folder, so that a broker that starts anew is found; where the code looks for it; read-only for kernels."""
    volumes = {one["name"]: one for one in daemon["volumes"]}
    mounts = {one["name"]: one["mountPath"] for one in daemon["containers"][0]["volumeMounts"]}
    assert {mounts[name]: volumes[name]["hostPath"]["path"] for name in volumes} == {
        str(SYSTEM_RUNTIME): str(SYSTEM_RUNTIME),
        str(SYSTEM_STATE): str(SYSTEM_STATE),
        str(SYSTEM_LOGS): str(SYSTEM_LOGS),  # what administrators did outlives the pod
    }
    assert all(one["hostPath"]["type"] == "DirectoryOrCreate" for one in volumes.values())
    theirs = {one["name"]: one for one in values["storage"]["extraVolumes"]}
    where = {one["mountPath"]: one for one in values["storage"]["extraVolumeMounts"]}
    shared = where[str(SYSTEM_RUNTIME)]
    assert theirs[shared["name"]]["hostPath"] == {"path": str(SYSTEM_RUNTIME), "type": "Directory"}
    assert all(one["readOnly"] for one in where.values())
    # Without the mark a pod would start a broker of its own while the node's is away.
    assert theirs[where[str(SYSTEM_MARK)]["name"]] == {"name": "gpushare-mark", "emptyDir": {}}


def test_the_broker_sees_the_hosts_processes_and_may_stop_them(daemon):
    """hostPID, and the rights to signal and trace."""
    assert daemon["hostPID"] is True
    assert daemon["containers"][0]["securityContext"] == {"privileged": True}


def test_both_are_on_the_nodes_that_have_gpus(daemon, values):
    """A server on a node without a broker would share nothing."""
    assert daemon["nodeSelector"] == values["nodeSelector"]
    assert daemon["tolerations"] == values["extraTolerations"]
    assert daemon["runtimeClassName"] == values["extraPodConfig"]["runtimeClassName"]


def test_what_is_run_is_ours(daemon, values):
    """A command that there is, with options that it has; and the provisioner that is registered."""
    [container] = daemon["containers"]
    assert container["command"][:2] == ["jupyter", "gpushare"]
    assert container["command"][2] in GpuShareApp.subcommands
    assert container["readinessProbe"]["exec"]["command"][2] in GpuShareApp.subcommands
    options = {word.removeprefix("--").partition("=")[0] for word in container["args"]}
    assert options <= set(BrokerCommand.aliases)
    assert values["extraEnv"]["JUPYTER_DEFAULT_PROVISIONER_NAME"] == "gpushare"
