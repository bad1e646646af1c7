"""The kubeconfig that a cluster hands out."""

from __future__ import annotations

import base64
from datetime import datetime
from typing import Any

import yaml

from raynest_pipeline.sandbox.kube.authority import ADMINS, Authority

ADMIN = "kubernetes-admin"


def admin_kubeconfig(
    authority: Authority, cluster_id: str, server: str, minutes: float
) -> tuple[str, datetime]:
    """A cluster administrator's kubeconfig in the shape of ACK's (YAML text), and its expiry in UTC.

    It has a client certificate and no token, one context, and no namespace."""
    certificate, key, expires = authority.issue_certificate(ADMIN, (ADMINS,), minutes=minutes)
    context = f"{ADMIN}-{cluster_id}"
    cluster = {"server": server, "certificate-authority-data": _base64(authority.ca_pem)}
    user = {"client-certificate-data": _base64(certificate), "client-key-data": _base64(key)}
    config: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "kubernetes", "cluster": cluster}],
        "contexts": [{"name": context, "context": {"cluster": "kubernetes", "user": ADMIN}}],
        "current-context": context,
        "preferences": {},
        "users": [{"name": ADMIN, "user": user}],
    }
    return yaml.safe_dump(config, sort_keys=False), expires


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
