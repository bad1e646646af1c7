"""serveConfigV2, the YAML text inside a RayService: its applications, and the marks that raynest sets in it.

The operator compares this text only; an identical apply heals nothing, all the way down, while another
value in an application's env_vars makes Serve build it anew in place, on the same GPU (facts:
kuberay-and-serve.md, 2.5). Serve shows the same env_vars again in what it has deployed, so that a mark tells
which configuration it runs.
"""

import copy
from collections.abc import Mapping
from typing import Any

import yaml

from raynest_pipeline.errors import InputError
from raynest_pipeline.kube.kinds import Object, mapping, mappings, name_of, text

NONCE_VARIABLE = "RAYNEST_REDEPLOY_NONCE"
"""Another value rebuilds the application."""
MANIFEST_VARIABLE = "RAYNEST_MANIFEST"
"""Digest of everything that was applied together."""
_MARKS = (NONCE_VARIABLE, MANIFEST_VARIABLE)


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
    return with_variables(ray_service, {NONCE_VARIABLE: nonce})


def with_variables(ray_service: Mapping[str, Any], more: Mapping[str, str]) -> Object:
    """A copy in which every application has these environment variables, too."""
    changed = copy.deepcopy(dict(ray_service))
    document = read(changed)
    for app in document.get("applications") or []:
        if isinstance(app, dict):
            environment = mapping(app.get("runtime_env"))
            variables = {**mapping(environment.get("env_vars")), **more}
            app["runtime_env"] = {**environment, "env_vars": variables}
    changed["spec"] = {
        **changed.get("spec", {}),
        "serveConfigV2": yaml.safe_dump(document, sort_keys=False, width=1000),
    }
    return changed


def nonce_of(ray_service: Mapping[str, Any]) -> str | None:
    """The nonce of its first application; None when it has none."""
    found = (app.get(NONCE_VARIABLE) for app in marks_of(ray_service).values())
    return next((nonce for nonce in found if nonce is not None), None)


def marks_of(ray_service: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Application -> raynest's marks in its env_vars; empty for one that has none."""
    return {
        text(app.get("name")) or "default": {
            key: str(value) for key, value in variables_of(app).items() if key in _MARKS
        }
        for app in mappings(read(ray_service).get("applications"))
    }


def variables_of(app: Mapping[str, Any]) -> Mapping[str, Any]:
    """The env_vars of an application's configuration, in serveConfigV2 as in Serve's own report."""
    return mapping(mapping(app.get("runtime_env")).get("env_vars"))
