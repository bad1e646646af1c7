"""serveConfigV2, the YAML text inside a RayService: its applications, and the nonce that rebuilds them.

The operator compares this text only; an identical apply heals nothing, all the way down, while another
value in an application's env_vars makes Serve build it anew in place, on the same GPU (facts:
kuberay-and-serve.md, 2.5).
"""

import copy
from collections.abc import Mapping
from typing import Any

import yaml

from raynest_pipeline.errors import InputError
from raynest_pipeline.kube.kinds import Object, mapping, mappings, name_of, text

NONCE_VARIABLE = "RAYNEST_REDEPLOY_NONCE"


def read(ray_service: Mapping[str, Any]) -> Object:
    """serveConfigV2 as data; empty when there is none.

    Raises:
        InputError: It is not a YAML mapping.
    """
    config = text(mapping(ray_service.get("spec")).get("serveConfigV2"))
    name = name_of(ray_service)
    try:
        document = yaml.safe_load(config) if config else {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at its line {mark.line + 1}" if mark else ""
        raise InputError(f"serveConfigV2 of RayService {name} is not valid YAML{where}.") from None
    if not isinstance(document, dict):
        raise InputError(f"serveConfigV2 of RayService {name} is not a YAML mapping.")
    return document


def app_names(ray_service: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of its applications; "default" is Serve's own name for one without."""
    return tuple(
        text(app.get("name")) or "default" for app in mappings(read(ray_service).get("applications"))
    )


def with_nonce(ray_service: Mapping[str, Any], nonce: str) -> Object:
    """A copy in which every application carries `nonce`, so that Serve rebuilds it in place."""
    changed = copy.deepcopy(dict(ray_service))
    document = read(changed)
    for app in document.get("applications") or []:
        if isinstance(app, dict):
            environment = mapping(app.get("runtime_env"))
            variables = {**mapping(environment.get("env_vars")), NONCE_VARIABLE: nonce}
            app["runtime_env"] = {**environment, "env_vars": variables}
    changed["spec"] = {
        **changed.get("spec", {}),
        "serveConfigV2": yaml.safe_dump(document, sort_keys=False, width=1000),
    }
    return changed


def nonce_of(ray_service: Mapping[str, Any]) -> str | None:
    """The nonce of its first application; None when it has none."""
    for app in mappings(read(ray_service).get("applications")):
        variables = mapping(mapping(app.get("runtime_env")).get("env_vars"))
        if NONCE_VARIABLE in variables:
            return str(variables[NONCE_VARIABLE])
    return None
