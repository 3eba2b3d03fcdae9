"""The part of KubeRay's `ray.io/v1` resources that our manifests use, as a strict JSON schema: no other field passes.

From ray-operator/apis/ray/v1/{rayjob,raycluster}_types.go and Kubernetes' own core/v1.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

NAME: Schema = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"}
COUNT: Schema = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
TEXTS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
QUANTITIES: Schema = {
    "type": "object",
    "additionalProperties": {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|Ki|Mi|Gi|Ti)?$"},
}


def fields(required: str, optional: str = "", **schemas: Schema) -> Schema:
    """Return the schema of an object with just these fields."""
    assert set(schemas) == {*required.split(), *optional.split()}
    return {
        "type": "object",
        "properties": schemas,
        "required": required.split(),
        "additionalProperties": False,
    }


def list_of(item: Schema) -> Schema:
    return {"type": "array", "items": item, "minItems": 1}


METADATA = fields("name", "labels annotations", name=NAME, labels=TEXTS, annotations=TEXTS)
CONTAINER = fields(
    "name image resources",
    "ports env",
    name=NAME,
    image={"type": "string", "pattern": "^[^:]+:(?!latest$)[^:]+$"},
    resources=fields("requests limits", requests=QUANTITIES, limits=QUANTITIES),
    ports=list_of(fields("name containerPort", name=NAME, containerPort={"type": "integer", "maximum": 65535})),
    env=list_of(fields("name value", name={"type": "string"}, value={"type": "string"})),
)
TOLERATION = fields(
    "key operator effect",
    key={"type": "string"},
    operator={"enum": ["Exists", "Equal"]},
    effect={"enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"]},
)
TEMPLATE = fields(
    "spec",
    "metadata",
    metadata=fields("", "labels annotations", labels=TEXTS, annotations=TEXTS),
    spec=fields(
        "containers",
        "serviceAccountName securityContext nodeSelector tolerations",
        containers=list_of(CONTAINER),
        serviceAccountName=NAME,
        securityContext=fields(
            "runAsNonRoot runAsUser", "fsGroup", runAsNonRoot={"const": True}, runAsUser=COUNT, fsGroup=COUNT
        ),
        nodeSelector=TEXTS,
        tolerations=list_of(TOLERATION),
    ),
)
CLUSTER = fields(
    "headGroupSpec workerGroupSpecs rayVersion",
    "enableInTreeAutoscaling autoscalerOptions",
    rayVersion={"type": "string"},
    enableInTreeAutoscaling={"type": "boolean"},
    autoscalerOptions=fields(
        "",
        "idleTimeoutSeconds upscalingMode",
        idleTimeoutSeconds=COUNT,
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
    ),
    headGroupSpec=fields("rayStartParams template", rayStartParams=TEXTS, template=TEMPLATE),
    workerGroupSpecs=list_of(
        fields(
            "groupName minReplicas maxReplicas rayStartParams template",
            "replicas",
            groupName=NAME,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            rayStartParams=TEXTS,
            template=TEMPLATE,
        )
    ),
)
JOB = fields(
    "entrypoint rayClusterSpec",
    "submissionMode backoffLimit submitterConfig shutdownAfterJobFinishes ttlSecondsAfterFinished "
    "activeDeadlineSeconds",
    entrypoint={"type": "string", "minLength": 1},
    rayClusterSpec=CLUSTER,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},
    backoffLimit=COUNT,
    submitterConfig=fields("backoffLimit", backoffLimit=COUNT),
    shutdownAfterJobFinishes={"type": "boolean"},
    ttlSecondsAfterFinished=COUNT,
    activeDeadlineSeconds={**COUNT, "minimum": 1},
)


def resource(api_version: str, kind: str, **spec: Schema) -> Schema:
    return fields(
        " ".join(["apiVersion", "kind", "metadata", *spec]),
        apiVersion={"const": api_version},
        kind={"const": kind},
        metadata=METADATA,
        **spec,
    )


RESOURCES = {
    "ServiceAccount": resource("v1", "ServiceAccount"),
    "RayCluster": resource("ray.io/v1", "RayCluster", spec=CLUSTER),
    "RayJob": resource("ray.io/v1", "RayJob", spec=JOB),
}
