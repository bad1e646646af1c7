"""The PodSpec schema as a compact table, with the list types that decide how apply merges.

Source: the Kubernetes API reference, core/v1. Rare volume sources are open objects; everything that a Ray
pod template uses is declared, so a misspelt field is refused as on a real server.

Notation of a field: `name:type`, `!` after the type when required. Types: s string, i integer, b boolean,
q quantity, p int-or-string, o open object, {s} map, [x] atomic list, [x]=k,l list keyed by
k and l, <s> atomic map, or the name of another row.
"""

from __future__ import annotations

import re
from functools import cache

from raynest_pipeline.sandbox.kube import schema
from raynest_pipeline.sandbox.kube.schema import Schema

_ROWS = {
    "PodSpec": """activeDeadlineSeconds:i affinity:Affinity automountServiceAccountToken:b
        containers:[Container]=name! dnsConfig:DNSConfig dnsPolicy:s enableServiceLinks:b
        ephemeralContainers:[EphemeralContainer]=name hostAliases:[HostAlias]=ip hostIPC:b hostNetwork:b
        hostPID:b hostUsers:b hostname:s imagePullSecrets:[LocalObjectReference]=name
        initContainers:[Container]=name nodeName:s nodeSelector:<s> os:Named overhead:{q}
        preemptionPolicy:s priority:i priorityClassName:s readinessGates:[ReadinessGate]
        resourceClaims:[PodResourceClaim]=name resources:Resources restartPolicy:s runtimeClassName:s
        schedulerName:s schedulingGates:[Named]=name securityContext:PodSecurityContext serviceAccount:s
        serviceAccountName:s setHostnameAsFQDN:b shareProcessNamespace:b subdomain:s
        terminationGracePeriodSeconds:i tolerations:[Toleration]
        topologySpreadConstraints:[TopologySpread]=topologyKey,whenUnsatisfiable volumes:[Volume]=name""",
    "Container": """args:[s] command:[s] env:[EnvVar]=name envFrom:[EnvFrom] image:s imagePullPolicy:s
        lifecycle:Lifecycle livenessProbe:Probe name:s! ports:[ContainerPort]=containerPort,protocol
        readinessProbe:Probe resizePolicy:[ResizePolicy] resources:Resources restartPolicy:s
        restartPolicyRules:[o] securityContext:SecurityContext startupProbe:Probe stdin:b stdinOnce:b
        terminationMessagePath:s terminationMessagePolicy:s tty:b volumeDevices:[VolumeDevice]=devicePath
        volumeMounts:[VolumeMount]=mountPath workingDir:s""",
    "EphemeralContainer": """args:[s] command:[s] env:[EnvVar]=name image:s imagePullPolicy:s name:s!
        resources:Resources stdin:b targetContainerName:s tty:b volumeMounts:[VolumeMount]=mountPath""",
    "EnvVar": "name:s! value:s valueFrom:EnvVarSource",
    "EnvVarSource": """configMapKeyRef:KeySelector fieldRef:FieldRef fileKeyRef:o
        resourceFieldRef:ResourceFieldRef secretKeyRef:KeySelector""",
    "KeySelector": "key:s! name:s optional:b",
    "FieldRef": "apiVersion:s fieldPath:s!",
    "ResourceFieldRef": "containerName:s divisor:q resource:s!",
    "EnvFrom": "configMapRef:EnvSource prefix:s secretRef:EnvSource",
    "EnvSource": "name:s optional:b",
    "Lifecycle": "postStart:Handler preStop:Handler stopSignal:s",
    "Handler": "exec:Exec httpGet:HTTPGet sleep:Sleep tcpSocket:TCPSocket",
    "Exec": "command:[s]",
    "HTTPGet": "host:s httpHeaders:[HTTPHeader] path:s port:p! scheme:s",
    "HTTPHeader": "name:s! value:s!",
    "Sleep": "seconds:i!",
    "TCPSocket": "host:s port:p!",
    "GRPC": "port:i! service:s",
    "Probe": """exec:Exec failureThreshold:i grpc:GRPC httpGet:HTTPGet initialDelaySeconds:i periodSeconds:i
        successThreshold:i tcpSocket:TCPSocket terminationGracePeriodSeconds:i timeoutSeconds:i""",
    "ContainerPort": "containerPort:i! hostIP:s hostPort:i name:s protocol:s",
    "ResizePolicy": "resourceName:s! restartPolicy:s!",
    "Resources": "claims:[Claim]=name limits:{q} requests:{q}",
    "Claim": "name:s! request:s",
    "SecurityContext": """allowPrivilegeEscalation:b appArmorProfile:Profile capabilities:Capabilities
        privileged:b procMount:s readOnlyRootFilesystem:b runAsGroup:i runAsNonRoot:b runAsUser:i
        seLinuxOptions:SELinux seccompProfile:Profile windowsOptions:o""",
    "PodSecurityContext": """appArmorProfile:Profile fsGroup:i fsGroupChangePolicy:s runAsGroup:i
        runAsNonRoot:b runAsUser:i seLinuxChangePolicy:s seLinuxOptions:SELinux seccompProfile:Profile
        supplementalGroups:[i] supplementalGroupsPolicy:s sysctls:[HTTPHeader] windowsOptions:o""",
    "Profile": "localhostProfile:s type:s!",
    "Capabilities": "add:[s] drop:[s]",
    "SELinux": "level:s role:s type:s user:s",
    "VolumeDevice": "devicePath:s! name:s!",
    "VolumeMount": """mountPath:s! mountPropagation:s name:s! readOnly:b recursiveReadOnly:s subPath:s
        subPathExpr:s""",
    "DNSConfig": "nameservers:[s] options:[DNSOption] searches:[s]",
    "DNSOption": "name:s value:s",
    "HostAlias": "hostnames:[s] ip:s!",
    "LocalObjectReference": "name:s",
    "Named": "name:s!",
    "ReadinessGate": "conditionType:s!",
    "PodResourceClaim": "name:s! resourceClaimName:s resourceClaimTemplateName:s",
    "Toleration": "effect:s key:s operator:s tolerationSeconds:i value:s",
    "TopologySpread": """labelSelector:LabelSelector matchLabelKeys:[s] maxSkew:i! minDomains:i
        nodeAffinityPolicy:s nodeTaintsPolicy:s topologyKey:s! whenUnsatisfiable:s!""",
    "LabelSelector": "matchExpressions:[Requirement] matchLabels:{s}",
    "Requirement": "key:s! operator:s! values:[s]",
    "Affinity": "nodeAffinity:NodeAffinity podAffinity:PodAffinity podAntiAffinity:PodAffinity",
    "NodeAffinity": """preferredDuringSchedulingIgnoredDuringExecution:[PreferredTerm]
        requiredDuringSchedulingIgnoredDuringExecution:NodeSelector""",
    "PreferredTerm": "preference:NodeSelectorTerm! weight:i!",
    "NodeSelector": "nodeSelectorTerms:[NodeSelectorTerm]!",
    "NodeSelectorTerm": "matchExpressions:[Requirement] matchFields:[Requirement]",
    "PodAffinity": """preferredDuringSchedulingIgnoredDuringExecution:[WeightedTerm]
        requiredDuringSchedulingIgnoredDuringExecution:[AffinityTerm]""",
    "WeightedTerm": "podAffinityTerm:AffinityTerm! weight:i!",
    "AffinityTerm": """labelSelector:LabelSelector matchLabelKeys:[s] mismatchLabelKeys:[s]
        namespaceSelector:LabelSelector namespaces:[s] topologyKey:s!""",
    "Volume": """awsElasticBlockStore:o azureDisk:o azureFile:o cephfs:o cinder:o configMap:ConfigMapVolume
        csi:CSI downwardAPI:DownwardVolume emptyDir:EmptyDir ephemeral:o fc:o flexVolume:o flocker:o
        gcePersistentDisk:o gitRepo:o glusterfs:o hostPath:HostPath image:ImageVolume iscsi:o name:s!
        nfs:NFS persistentVolumeClaim:ClaimVolume photonPersistentDisk:o portworxVolume:o
        projected:Projected quobyte:o rbd:o scaleIO:o secret:SecretVolume storageos:o vsphereVolume:o""",
    "ConfigMapVolume": "defaultMode:i items:[KeyToPath] name:s optional:b",
    "SecretVolume": "defaultMode:i items:[KeyToPath] optional:b secretName:s",
    "KeyToPath": "key:s! mode:i path:s!",
    "CSI": """driver:s! fsType:s nodePublishSecretRef:LocalObjectReference readOnly:b
        volumeAttributes:{s}""",
    "DownwardVolume": "defaultMode:i items:[DownwardFile]",
    "DownwardFile": "fieldRef:FieldRef mode:i path:s! resourceFieldRef:ResourceFieldRef",
    "EmptyDir": "medium:s sizeLimit:q",
    "HostPath": "path:s! type:s",
    "ImageVolume": "pullPolicy:s reference:s",
    "NFS": "path:s! readOnly:b server:s!",
    "ClaimVolume": "claimName:s! readOnly:b",
    "Projected": "defaultMode:i sources:[o]",
}

# References are owned as a whole (structType=atomic in the API).
_ATOMIC = (
    "FieldRef",
    "KeySelector",
    "LabelSelector",
    "LocalObjectReference",
    "NodeSelector",
    "NodeSelectorTerm",
    "ResourceFieldRef",
)

_SCALARS = {
    "s": schema.STRING,
    "i": schema.INTEGER,
    "b": schema.BOOLEAN,
    "q": schema.QUANTITY,
    "p": schema.QUANTITY,
    "o": schema.object_of({}, open=True),
}


@cache
def row(name: str) -> Schema:
    """The schema of one row of the table, such as `PodSpec` or `Toleration`."""
    fields: dict[str, Schema] = {}
    required = []
    for entry in _ROWS[name].split():
        field, _, notation = entry.partition(":")
        if notation.endswith("!"):
            required.append(field)
        fields[field] = _type(notation.rstrip("!"))
    if name == "ContainerPort":
        fields["protocol"] = schema.STRING | {"default": "TCP"}
    whole = schema.object_of(fields, required=tuple(required))
    return whole | {"x-kubernetes-map-type": "atomic"} if name in _ATOMIC else whole


def _type(notation: str) -> Schema:
    if notation in _SCALARS:
        return _SCALARS[notation]
    match = re.fullmatch(r"([\[{<])(\w+)[\]}>](?:=([\w,]+))?", notation)
    if match is None:
        return row(notation)
    bracket, inner, keys = match.groups()
    if bracket == "[":
        return schema.list_of(_type(inner), keys=tuple(keys.split(",")) if keys else ())
    return schema.map_of(_type(inner), atomic=bracket == "<")


def pod_spec() -> Schema:
    """core/v1 PodSpec."""
    return row("PodSpec")


def pod_template() -> Schema:
    """PodTemplateSpec as CRDs embed it: metadata with labels and annotations, and a PodSpec."""
    metadata = schema.object_of(
        {
            "annotations": schema.map_of(schema.STRING),
            "finalizers": schema.list_of(schema.STRING),
            "labels": schema.map_of(schema.STRING),
            "name": schema.STRING,
            "namespace": schema.STRING,
        }
    )
    return schema.object_of({"metadata": metadata, "spec": pod_spec()})
