"""A container's file system and environment, without a container runtime.

The container's file system is a folder: every volume is written to a folder of the pod, and each absolute
path that begins with a mountPath is rewritten to that folder wherever it appears in an environment value or
in the Serve configuration (PYTHONPATH=/opt/raynest becomes PYTHONPATH=<folder>/opt/raynest). A path inside
code isn't. hostPath volumes lead to the real path; a persistentVolumeClaim is a folder that outlives the pod.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from raynest_pipeline.sandbox.kube.store import Object
from raynest_pipeline.sandbox.kuberay import objects, quantities

#: Reads one object: (resource, namespace, name) -> object or None.
Lookup = Callable[[str, str, str], Object | None]
T = TypeVar("T")


class ContainerError(Exception):
    """The container can't be created: `reason` is its waiting reason, `event` the event's reason."""

    def __init__(self, reason: str, message: str, event: str = "Failed") -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.event = event


@dataclass(frozen=True)
class Mounts:
    """Where each mountPath lies on this machine, longest path first."""

    paths: Mapping[str, Path]

    def rewrite(self, value: T) -> T:
        """A value with container paths replaced, in every string however deep in lists and mappings."""
        if isinstance(value, str):
            return self._text(value)  # type: ignore[return-value]
        if isinstance(value, list):
            return [self.rewrite(each) for each in value]  # type: ignore[return-value]
        if isinstance(value, dict):
            return {key: self.rewrite(each) for key, each in value.items()}  # type: ignore[return-value]
        return value

    def _text(self, text: str) -> str:
        if not self.paths:
            return text
        # From the beginning (or a file:// URL's, or after a list separator) to the end of a component.
        options = "|".join(re.escape(path) for path in sorted(self.paths, key=len, reverse=True))
        pattern = rf"(?:(?<=^)|(?<=[:=,;\s\"']))(file://)?({options})(?=$|[/:,;\s\"'])"
        return re.sub(pattern, lambda found: (found[1] or "") + str(self.paths[found[2]]), text)


def mount(pod: Object, folder: Path, shared: Path, lookup: Lookup) -> Mounts:
    """Write the pod's volumes under `folder`; call again to bring changed ConfigMaps and Secrets up to date.

    `shared` holds the folders of persistent volume claims. Raises ContainerError for what isn't there.
    """
    volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes") or ()}
    paths: dict[str, Path] = {}
    for each in pod["spec"]["containers"][0].get("volumeMounts") or ():
        volume = volumes.get(each["name"])
        if volume is None:
            raise ContainerError("CreateContainerConfigError", f"volume {each['name']!r} not found")
        source = _volume(pod, volume, folder / "volumes", shared, lookup)
        source = source / each["subPath"] if each.get("subPath") else source
        path = str(each["mountPath"]).rstrip("/") or "/"
        if path in ("/", "/dev/shm", "/tmp/ray"):
            continue  # Ray's own folders: the sandbox keeps them short for the sake of socket paths.
        target = folder / "root" / path.lstrip("/")
        _link(target, source)
        paths[path] = target
    return Mounts(paths)


def _link(target: Path, source: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_symlink():
        if target.readlink() == source:
            return
        target.unlink()
    elif target.is_dir():
        # A folder made for a deeper mount gives way: its contents are mounted again after this one.
        shutil.rmtree(target)
    target.symlink_to(source)


def _volume(pod: Object, volume: dict[str, Any], folder: Path, shared: Path, lookup: Lookup) -> Path:
    name = volume["name"]
    if "hostPath" in volume:
        return Path(str(volume["hostPath"]["path"]))
    if "persistentVolumeClaim" in volume:
        claim = str(volume["persistentVolumeClaim"]["claimName"])
        target = shared / objects.namespace_of(pod) / claim
    else:
        target = folder / name
    target.mkdir(parents=True, exist_ok=True)
    sources = (volume.get("projected") or {}).get("sources") or [volume]
    files: dict[str, bytes] = {}
    for source in sources:
        files |= _source_files(pod, name, source, lookup)
    if files or "configMap" in volume or "secret" in volume:
        _write(target, files)
    return target


def _source_files(pod: Object, volume: str, source: dict[str, Any], lookup: Lookup) -> dict[str, bytes]:
    for key, resource, word in (("configMap", "configmaps", "configmap"), ("secret", "secrets", "secret")):
        wanted = source.get(key)
        if wanted is None:
            continue
        name = wanted.get("name") or wanted.get("secretName")
        found = lookup(resource, objects.namespace_of(pod), name)
        if found is None:
            if wanted.get("optional"):
                return {}
            message = f'MountVolume.SetUp failed for volume "{volume}" : {word} "{name}" not found'
            raise ContainerError("ContainerCreating", message, "FailedMount")
        data = contents(found)
        items = wanted.get("items")
        if not items:
            return data
        missing = [item["key"] for item in items if item["key"] not in data]
        if missing and not wanted.get("optional"):
            message = f'MountVolume.SetUp failed for volume "{volume}" : references non-existent {word} key: '
            raise ContainerError("ContainerCreating", message + missing[0], "FailedMount")
        return {item["path"]: data[item["key"]] for item in items if item["key"] in data}
    return {}


def contents(obj: Object) -> dict[str, bytes]:
    """The files of a ConfigMap (data, binaryData) or a Secret (data in base64, stringData)."""
    if obj["kind"] == "Secret":
        found = {key: base64.b64decode(value) for key, value in (obj.get("data") or {}).items()}
        return found | {key: value.encode() for key, value in (obj.get("stringData") or {}).items()}
    found = {key: value.encode() for key, value in (obj.get("data") or {}).items()}
    return found | {key: base64.b64decode(value) for key, value in (obj.get("binaryData") or {}).items()}


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    wanted = {(folder / name).resolve(): data for name, data in files.items()}
    for path in folder.rglob("*"):
        # Bytecode that Python wrote beside the files isn't the volume's.
        if path.is_file() and path.resolve() not in wanted and "__pycache__" not in path.parts:
            path.unlink()
    for path, data in wanted.items():
        if not path.is_relative_to(folder.resolve()):
            raise ContainerError(
                "CreateContainerConfigError", f"{path.name}: the path leads out of the volume"
            )
        if not path.exists() or path.read_bytes() != data:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.new")
            temporary.write_bytes(data)
            os.replace(temporary, path)


def environment(pod: Object, mounts: Mounts, lookup: Lookup) -> dict[str, str]:
    """The first container's variables, resolved and with container paths rewritten. Raises ContainerError."""
    container = pod["spec"]["containers"][0]
    namespace = objects.namespace_of(pod)
    env: dict[str, str] = {}
    for source in container.get("envFrom") or ():
        prefix = source.get("prefix", "")
        for key, resource in (("configMapRef", "configmaps"), ("secretRef", "secrets")):
            if key in source:
                found = _referenced(lookup, resource, namespace, source[key])
                data = contents(found) if found else {}
                env |= {prefix + name: value.decode() for name, value in data.items()}
    for each in container.get("env") or ():
        if "valueFrom" in each:
            value = _value_from(pod, container, each["valueFrom"], lookup)
            if value is None:
                continue
        else:
            value = str(each.get("value", ""))
        env[each["name"]] = _expand(value, env)
    return mounts.rewrite(env)


def _expand(value: str, env: Mapping[str, str]) -> str:
    """$(NAME) from the variables before it; $$(NAME) is an escape; an unknown one stays, as in a pod."""

    def replaced(found: re.Match[str]) -> str:
        if found[0].startswith("$$"):
            return found[0][1:]
        return env.get(found[1], found[0])

    return re.sub(r"\$?\$\(([-._a-zA-Z0-9]+)\)", replaced, value)


def _value_from(
    pod: Object, container: Mapping[str, Any], source: Mapping[str, Any], lookup: Lookup
) -> str | None:
    if "fieldRef" in source:
        return _field(pod, source["fieldRef"]["fieldPath"])
    if "resourceFieldRef" in source:
        amount = quantities.limit(container, source["resourceFieldRef"]["resource"].split(".", 1)[1])
        return str(int(amount or 0))
    for key, resource, word in (
        ("secretKeyRef", "secrets", "Secret"),
        ("configMapKeyRef", "configmaps", "ConfigMap"),
    ):
        if key in source:
            reference = source[key]
            found = _referenced(lookup, resource, objects.namespace_of(pod), reference)
            data = contents(found) if found else {}
            if reference["key"] in data:
                return data[reference["key"]].decode()
            if reference.get("optional"):
                return None
            where = f"{objects.namespace_of(pod)}/{reference['name']}"
            message = f"couldn't find key {reference['key']} in {word} {where}"
            raise ContainerError("CreateContainerConfigError", message)
    raise ContainerError("CreateContainerConfigError", f"unsupported valueFrom: {sorted(source)}")


def _referenced(lookup: Lookup, resource: str, namespace: str, reference: Mapping[str, Any]) -> Object | None:
    found = lookup(resource, namespace, reference["name"])
    if found is None and not reference.get("optional"):
        word = resource.removesuffix("s")
        raise ContainerError("CreateContainerConfigError", f'{word} "{reference["name"]}" not found')
    return found


def _field(pod: Object, path: str) -> str:
    keyed = re.fullmatch(r"metadata\.(labels|annotations)\['([^']+)'\]", path)
    if keyed:
        return str((pod["metadata"].get(keyed[1]) or {}).get(keyed[2], ""))
    value: Any = pod
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return "" if value is None else str(value)
