"""Schemas of the built-in kinds that the sandbox serves."""

from __future__ import annotations

from raynest_pipeline.sandbox.kube import pod_schema, schema
from raynest_pipeline.sandbox.kube.schema import BOOLEAN, INTEGER, QUANTITY, STRING, Schema

_STRINGS = schema.map_of(STRING)
_OPEN = schema.object_of({}, open=True)
_OPEN_LIST = schema.list_of(_OPEN)


def metadata() -> Schema:
    """ObjectMeta, with the list types that server-side apply needs."""
    owner = schema.object_of(
        {
            "apiVersion": STRING,
            "blockOwnerDeletion": BOOLEAN,
            "controller": BOOLEAN,
            "kind": STRING,
            "name": STRING,
            "uid": STRING,
        },
        required=("apiVersion", "kind", "name", "uid"),
    )
    owner["x-kubernetes-map-type"] = "atomic"
    return schema.object_of(
        {
            "annotations": _STRINGS,
            "creationTimestamp": STRING | {"nullable": True},
            "deletionGracePeriodSeconds": INTEGER,
            "deletionTimestamp": STRING,
            "finalizers": schema.list_of(STRING, unique=True),
            "generateName": STRING,
            "generation": INTEGER,
            "labels": _STRINGS,
            "managedFields": _OPEN_LIST,
            "name": STRING,
            "namespace": STRING,
            "ownerReferences": schema.list_of(owner, keys=("uid",)),
            "resourceVersion": STRING,
            "selfLink": STRING,
            "uid": STRING,
        }
    )


def kind_of(**parts: Schema) -> Schema:
    """A whole kind: apiVersion, kind, metadata and its own parts."""
    return schema.object_of({"apiVersion": STRING, "kind": STRING, "metadata": metadata(), **parts})


def _conditions() -> Schema:
    return schema.list_of(schema.object_of({"type": STRING}, open=True), keys=("type",))


def pod() -> Schema:
    """core/v1 Pod."""
    addresses = schema.list_of(schema.object_of({"ip": STRING}), keys=("ip",))
    status = schema.object_of({"conditions": _conditions(), "podIPs": addresses}, open=True)
    return kind_of(spec=pod_schema.pod_spec(), status=status)


def service() -> Schema:
    """core/v1 Service."""
    port = schema.object_of(
        {
            "appProtocol": STRING,
            "name": STRING,
            "nodePort": INTEGER,
            "port": INTEGER,
            "protocol": STRING | {"default": "TCP"},
            "targetPort": QUANTITY,
        },
        required=("port",),
    )
    spec = schema.object_of(
        {
            "allocateLoadBalancerNodePorts": BOOLEAN,
            "clusterIP": STRING,
            "clusterIPs": schema.list_of(STRING),
            "externalIPs": schema.list_of(STRING),
            "externalName": STRING,
            "externalTrafficPolicy": STRING,
            "healthCheckNodePort": INTEGER,
            "internalTrafficPolicy": STRING,
            "ipFamilies": schema.list_of(STRING),
            "ipFamilyPolicy": STRING,
            "loadBalancerClass": STRING,
            "loadBalancerIP": STRING,
            "loadBalancerSourceRanges": schema.list_of(STRING),
            "ports": schema.list_of(port, keys=("port", "protocol")),
            "publishNotReadyAddresses": BOOLEAN,
            "selector": schema.map_of(STRING, atomic=True),
            "sessionAffinity": STRING,
            "sessionAffinityConfig": _OPEN,
            "trafficDistribution": STRING,
            "type": STRING,
        }
    )
    return kind_of(spec=spec, status=_OPEN)


def config_map() -> Schema:
    """core/v1 ConfigMap."""
    return kind_of(binaryData=_STRINGS, data=_STRINGS, immutable=BOOLEAN)


def secret() -> Schema:
    """core/v1 Secret."""
    return kind_of(data=_STRINGS, immutable=BOOLEAN, stringData=_STRINGS, type=STRING)


def namespace() -> Schema:
    """core/v1 Namespace."""
    spec = schema.object_of({"finalizers": schema.list_of(STRING)})
    return kind_of(spec=spec, status=schema.object_of({"conditions": _conditions()}, open=True))


def node() -> Schema:
    """core/v1 Node: what the kubelet writes is taken as it is."""
    return kind_of(spec=_OPEN, status=schema.object_of({"conditions": _conditions()}, open=True))


def event() -> Schema:
    """core/v1 Event, with the fields that events.k8s.io ones are converted to."""
    return kind_of(
        action=STRING,
        count=INTEGER,
        eventTime=STRING | {"nullable": True},
        firstTimestamp=STRING | {"nullable": True},
        involvedObject=_OPEN | {"x-kubernetes-map-type": "atomic"},
        lastTimestamp=STRING | {"nullable": True},
        message=STRING,
        reason=STRING,
        related=_OPEN,
        reportingComponent=STRING,
        reportingInstance=STRING,
        series=_OPEN,
        source=_OPEN,
        type=STRING,
    )


def endpoints() -> Schema:
    """core/v1 Endpoints."""
    return kind_of(subsets=_OPEN_LIST)


def endpoint_slice() -> Schema:
    """discovery.k8s.io/v1 EndpointSlice."""
    return kind_of(addressType=STRING, endpoints=_OPEN_LIST, ports=_OPEN_LIST)


def service_account() -> Schema:
    """core/v1 ServiceAccount."""
    return kind_of(automountServiceAccountToken=BOOLEAN, imagePullSecrets=_OPEN_LIST, secrets=_OPEN_LIST)


def with_open_spec() -> Schema:
    """A kind that is stored and shown but not interpreted."""
    return kind_of(spec=_OPEN, status=_OPEN)


def free_form() -> Schema:
    """Review objects: taken as they are."""
    return schema.object_of({"apiVersion": STRING, "kind": STRING, "metadata": metadata()}, open=True)
