"""Every file under infra/: accepted by Ray's own validation or a strict schema, consistent, and nobody's account."""

from __future__ import annotations

import copy
import fnmatch
import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import botocore.session
import jsonschema
import pytest
import yaml
from botocore.validate import ParamValidator
from kuberay_schema import RESOURCES
from packaging.requirements import Requirement
from ray.autoscaler._private.util import prepare_config, validate_config

from effsam2_ray.commands import label
from effsam2_ray.model.backbones import BACKBONES
from effsam2_ray.pipeline.cluster import divide
from effsam2_ray.pipeline.options import RunOptions

ROOT = Path(__file__).resolve().parents[1]
INFRA = ROOT / "infra"
CLUSTERS = sorted(INFRA.glob("*/cluster.yaml"))
MANIFESTS = sorted((INFRA / "kuberay").glob("*.yaml"))
POLICIES = sorted(INFRA.glob("aws/*.json"))


def test_every_file_is_checked():
    known = {*CLUSTERS, *MANIFESTS, *POLICIES}
    names = {"Dockerfile", "Dockerfile.dockerignore", "README.md", "requirements.in", "requirements.lock"}
    assert {path for path in INFRA.rglob("*") if path.is_file()} == known | {INFRA / name for name in names}
    assert (len(CLUSTERS), len(MANIFESTS), len(POLICIES)) == (2, 2, 2)


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def manifests() -> list[tuple[str, Any]]:
    return [(path.name, document) for path in MANIFESTS for document in yaml.safe_load_all(path.read_text())]


# Clusters that `ray up` starts.


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.parent.name)
def test_ray_accepts_the_cluster(path: Path):
    validate_config(prepare_config(load(path)))


def test_ray_refuses_a_misspelt_field():
    config = load(CLUSTERS[0])
    config["available_node_types"]["cpu"]["min_worker"] = 0
    with pytest.raises(jsonschema.ValidationError, match="min_worker"):
        validate_config(prepare_config(config))


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.parent.name)
def test_the_head_does_no_work_and_workers_come_and_go(path: Path):
    config = load(path)
    types = config["available_node_types"]
    head = types.pop(config["head_node_type"])
    assert head["resources"] == {"CPU": 0}
    assert any("--num-cpus=0 --num-gpus=0" in line for line in config["head_start_ray_commands"])
    assert "MarketOptions" not in str(head) and "SPOT" not in str(head)
    assert types["gpu_spot"]["resources"] == {"CPU": 8, "GPU": 1} and types["cpu"]["resources"] == {"CPU": 8}
    for node_type in types.values():
        assert node_type["min_workers"] == 0
        assert node_type["node_config"].get("InstanceMarketOptions", {}).get("MarketType") == "spot" or (
            node_type["node_config"]["scheduling"]["provisioningModel"] == "SPOT"
        )
    assert 0 < config["idle_timeout_minutes"] <= 10 and config["provider"]["cache_stopped_nodes"] is False
    assert config["max_workers"] == sum(node_type["max_workers"] for node_type in types.values())


def test_nodes_of_aws_are_requests_that_ec2_understands():
    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    for node_type in load(INFRA / "aws" / "cluster.yaml")["available_node_types"].values():
        request = {**node_type["node_config"], "MinCount": 1, "MaxCount": 1}
        assert ParamValidator().validate(request, shape).generate_report() == ""
        request["BlockDeviceMapping"] = []
        assert "BlockDeviceMapping" in ParamValidator().validate(request, shape).generate_report()


TEXT = {"type": "string"}
DISK = {"boot": {"const": True}, "autoDelete": {"const": True}, "type": {"enum": ["PERSISTENT", "SCRATCH"]}}
DISK["initializeParams"] = {
    "type": "object",
    "properties": {"diskSizeGb": {"type": "integer"}, "diskType": TEXT, "sourceImage": TEXT},
    "required": ["sourceImage"],
    "additionalProperties": False,
}
INSTANCE = {
    "type": "object",
    "properties": {
        "machineType": {**TEXT, "pattern": r"^[a-z0-9]+-[a-z]+-\d+$"},
        "disks": {"type": "array", "items": {"type": "object", "properties": DISK, "additionalProperties": False}},
        "serviceAccounts": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"email": {**TEXT, "pattern": "@"}, "scopes": {"type": "array", "items": TEXT}},
                "required": ["email", "scopes"],
                "additionalProperties": False,
            },
        },
        "scheduling": {
            "type": "object",
            "properties": {
                "provisioningModel": {"enum": ["SPOT", "STANDARD"]},
                "instanceTerminationAction": {"enum": ["DELETE", "STOP"]},
                "onHostMaintenance": {"enum": ["TERMINATE", "MIGRATE"]},
            },
            "additionalProperties": False,
        },
    },
    "required": ["machineType", "disks"],
    "additionalProperties": False,
}


def test_nodes_of_gcp_are_instances_of_the_compute_api():
    for node_type in load(INFRA / "gcp" / "cluster.yaml")["available_node_types"].values():
        jsonschema.validate(node_type["node_config"], INSTANCE)


# KubeRay.


@pytest.mark.parametrize(("name", "document"), manifests(), ids=lambda value: value if isinstance(value, str) else "")
def test_manifests_fit_the_schema(name: str, document: Any):
    jsonschema.Draft202012Validator(RESOURCES[document["kind"]]).validate(document)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "backofLimit"), 3),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "minReplicas"), "0"),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("apiVersion",), "ray.io/v1alpha1"),
    ],
)
def test_the_schema_refuses_what_kuberay_would(path: tuple[Any, ...], value: Any):
    document = copy.deepcopy(next(d for _, d in manifests() if d["kind"] == "RayJob"))
    place = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, RESOURCES["RayJob"])


def test_job_and_cluster_manifests_hold_the_same_cluster():
    by_kind = {document["kind"]: document for _, document in manifests()}
    job, cluster = by_kind["RayJob"]["spec"], by_kind["RayCluster"]["spec"]
    assert job["rayClusterSpec"] == cluster
    assert job["shutdownAfterJobFinishes"] is True and job["backoffLimit"] > 0 and job["ttlSecondsAfterFinished"] < 3600
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0" and cluster["enableInTreeAutoscaling"]
    assert [group["minReplicas"] for group in cluster["workerGroupSpecs"]] == [0, 0]
    accounts = {document["metadata"]["name"] for _, document in manifests() if document["kind"] == "ServiceAccount"}
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        assert group["template"]["spec"]["serviceAccountName"] in accounts
        resources = group["template"]["spec"]["containers"][0]["resources"]
        assert resources["requests"] == resources["limits"]


def test_the_entrypoint_is_a_command_that_the_job_understands():
    job = next(document for _, document in manifests() if document["kind"] == "RayJob")
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:2] == ["python", "/app/jobs/label.py"] and (ROOT / "jobs" / "label.py").is_file()
    import argparse

    parser = argparse.ArgumentParser()
    label.add_parser(parser.add_subparsers())
    arguments = parser.parse_args(["label", *words[2:]])
    assert arguments.weights in BACKBONES and arguments.device == "cuda"
    groups = {group["groupName"]: group for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]}
    assert arguments.num_segmenters == (1, groups["gpu-spot"]["maxReplicas"])


@pytest.mark.parametrize("cpus", [8.0, 7.0], ids=["ray up", "kuberay"])
def test_a_segmenter_fits_on_a_node_that_is_yet_to_come(cpus: float):
    layout = divide(RunOptions(device="cuda", num_segmenters=(1, 32)), [{}])
    assert layout.segmenter_gpus == 1 and layout.segmenter_cpus + 0.5 <= cpus


# Rights.


@pytest.mark.parametrize("path", POLICIES, ids=lambda path: path.name)
def test_policies_allow_named_actions_on_named_things(path: Path):
    policy = json.loads(path.read_text())
    assert set(policy) == {"Version", "Statement"} and policy["Version"] == "2012-10-17"
    sids = [statement["Sid"] for statement in policy["Statement"]]
    assert len(set(sids)) == len(sids) and all(re.fullmatch("[A-Za-z0-9]+", sid) for sid in sids)
    for statement in policy["Statement"]:
        assert set(statement) <= {"Sid", "Effect", "Action", "Resource", "Condition"} and statement["Effect"] == "Allow"
        assert statement["Action"] and not any("*" in action for action in statement["Action"])
        for resource in statement["Resource"]:
            open_to_all = {"ec2:RunInstances", *(a for a in statement["Action"] if a.startswith("ec2:Describe"))}
            assert resource.startswith("arn:aws:") or "Condition" in statement or {*statement["Action"]} <= open_to_all


def test_actions_exist():
    services = {name: botocore.session.get_session().get_service_model(name) for name in ("ec2", "s3")}
    other_names = {"ListBucket": "ListObjectsV2"}  # of the same call, in policies
    for path in POLICIES:
        for statement in json.loads(path.read_text())["Statement"]:
            for action in statement["Action"]:
                service, name = action.split(":")
                if service in services:
                    assert other_names.get(name, name) in services[service].operation_names


# The image.


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", (INFRA / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = [line.strip() for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [(line.split(None, 1)[0], re.sub(r"\s+", " ", line.split(None, 1)[1])) for line in lines]


def pins() -> dict[str, str]:
    lines = (INFRA / "requirements.lock").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def test_the_image_is_built_in_an_order_that_works():
    steps = instructions()
    words = {"FROM", "RUN", "ENV", "WORKDIR", "COPY", "USER", "ARG", "CMD"}
    assert {word for word, _ in steps} == words and steps[0][0] == "FROM"
    assert re.fullmatch(r"[a-z/]+:3\.11-[a-z-]+", steps[0][1])
    runs = [text for word, text in steps if word == "RUN"]
    apt, lock, sam2, package = (next(t for t in runs if part in t) for part in ("apt-get", ".lock", "sam2==", " ."))
    assert "--no-install-recommends" in apt and apt.endswith("rm -rf /var/lib/apt/lists/*")
    assert runs.index(lock) < runs.index(sam2) < runs.index(package), "sam2 imports torch while it builds"
    assert "SAM2_BUILD_CUDA=0" in sam2
    for run in (lock, sam2, package):
        assert "--no-cache-dir" in run and "--no-deps" in run
    for run in (sam2, package):
        assert "--no-build-isolation" in run


def test_the_image_runs_as_nobody_special_and_holds_weights_only_if_asked():
    steps = instructions()
    users = [text for word, text in steps if word == "USER"]
    assert users == ["1000:1000"]
    last_user = steps.index(("USER", "1000:1000"))
    assert ("ARG", 'WEIGHTS=""') in steps[last_user:], "the cache belongs to the user"
    assert 'if [ -n "$WEIGHTS" ]' in steps[-2][1]
    assert steps[-1][0] == "CMD" and json.loads(steps[-1][1])[1] == "jobs/label.py"


def test_what_is_copied_into_the_image_is_there_and_not_ignored():
    patterns = (INFRA / "Dockerfile.dockerignore").read_text().split()
    assert patterns[0] == "*"
    for word, text in instructions():
        if word == "COPY":
            for source in text.split()[:-1]:
                assert (ROOT / source).exists()
                assert any(fnmatch.fnmatch(f"!{source}", pattern) for pattern in patterns[1:])


def test_the_lock_meets_every_requirement_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = [line.split("#")[0] for line in (INFRA / "requirements.in").read_text().splitlines()]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["sam1"], *filter(str.strip, extra)]
    sam2 = next(text for word, text in instructions() if word == "RUN" and "sam2==" in text).rpartition("==")[2]
    locked = {**pins(), "sam2": sam2}
    for text in wanted:
        requirement = Requirement(text)
        assert requirement.specifier.contains(locked[requirement.name.lower()]), text
    assert "nvidia-cuda-runtime" in locked, "torch's wheels bring the CUDA runtime"


def test_ray_is_the_same_in_image_and_manifests():
    for _, document in manifests():
        if document["kind"] != "ServiceAccount":
            spec = document["spec"].get("rayClusterSpec", document["spec"])
            assert spec["rayVersion"] == pins()["ray"]


# Placeholders.


def test_nothing_names_an_account():
    """Images, accounts, buckets and projects are REPLACE_ME until somebody edits them."""
    for path in [*CLUSTERS, *MANIFESTS, *POLICIES]:
        text = path.read_text()
        assert re.search("REPLACE[-_]ME", text)
        assert not re.search(r"\b\d{12}\b", text), "an AWS account"
        assert not re.search(r"\bami-[0-9a-f]{8,}", text) and not re.search(r"AKIA|BEGIN .*PRIVATE", text)
        for bucket in re.findall(r"(?:s3|gs)://([^/\s]+)|arn:aws:s3:::([^/\"]+)", text):
            assert "REPLACE" in "".join(bucket)
        for account in re.findall(r"arn:aws:(?:iam|ec2):[^:]*:([^:]*):", text):
            assert account == "REPLACE_ME_ACCOUNT"


def test_the_readme_tells_every_placeholder():
    readme = (INFRA / "README.md").read_text()
    for path in [*CLUSTERS, *MANIFESTS, *POLICIES]:
        for placeholder in re.findall(r"(?:ami-)?REPLACE[-_]ME(?:[-_][A-Z]+)*", path.read_text()):
            name = placeholder if placeholder.startswith("ami") else placeholder.replace("-", "_")
            assert name == "REPLACE_ME" or f"`{name}`" in readme, f"{name} of {path.name}"


@pytest.mark.parametrize(
    ("key", "allowed"),
    [
        ("_meta/attempts/u.json", True),
        ("_meta/driver.json", True),
        ("low_latency/_meta/attempts/u.merge.json", True),  # --preset a,b
        ("runs/grid-32/_meta/driver.json", True),  # evaluate
        ("per_image/part-grid-32-u.parquet", True),  # its scores, made anew
        ("part-u.parquet", False),
        ("low_latency/part-u.parquet", False),
        ("low_latency/_meta/work_list.parquet", False),
    ],
)
def test_only_signs_of_work_and_scores_may_be_removed(key: str, allowed: bool):
    statements = load(INFRA / "aws" / "data-policy.json")["Statement"]
    [resources] = [s["Resource"] for s in statements if s["Action"] == ["s3:DeleteObject"]]
    resource = f"arn:aws:s3:::REPLACE_ME_OUTPUT_BUCKET/REPLACE_ME_OUTPUT_PREFIX/{key}"
    assert any(fnmatch.fnmatchcase(resource, pattern) for pattern in resources) == allowed
