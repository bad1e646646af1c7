"""From a kubeconfig, or a pod's service account, to a private API client.

The kubernetes library resolves the credentials (tokens, exec plugins, OIDC), but the TLS context is
ours: it serves httpx and aiohttp as well, and the certificate files exist only while it is built.
"""

import ssl as tls
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raynest_pipeline.errors import AccessError, InputError
from raynest_pipeline.kube import kubeconfig
from raynest_pipeline.kube.http import is_loopback

if TYPE_CHECKING:
    from kubernetes.client import ApiClient, Configuration

CONNECT_SECONDS = 10.0
READ_SECONDS = 60.0

# The library remembers its certificate files per process; two loads at once could share one that the
# other is about to remove.
_loading = threading.Lock()


@dataclass(frozen=True)
class Connection:
    """An API client and what others need to talk to the same server."""

    api: "ApiClient" = field(repr=False)
    server: str
    ssl: tls.SSLContext | None = field(repr=False)
    server_hostname: str | None

    def authorization(self) -> Mapping[str, str]:
        """The headers that authenticate a request now; an expired exec token is renewed."""
        value = self.api.configuration.get_api_key_with_prefix("BearerToken")
        return {"Authorization": str(value)} if value else {}


def from_kubeconfig(path: Path, context: str | None) -> Connection:
    """A connection by a kubeconfig file.

    Raises:
        InputError: The file, the context, or a certificate in it is wrong.
    """
    from kubernetes import config
    from kubernetes.config.config_exception import ConfigException

    document = kubeconfig.load(path)
    kubeconfig.check_context(document, context)
    configuration = _new_configuration()
    with _loading, tempfile.TemporaryDirectory(prefix="raynest-") as folder:
        try:
            config.load_kube_config(
                config_file=str(path),
                context=context or document["current-context"],
                client_configuration=configuration,
                persist_config=False,
                temp_file_path=folder,
            )
        except (ConfigException, ValueError):
            # From None: the library's messages quote the file, credentials included.
            raise InputError(
                f"The credentials in the kubeconfig {path} are not usable.",
                why="a file it names is missing, or its data is not base64",
                fix="Fetch the kubeconfig again.",
            ) from None
        return _connect(configuration, f"the kubeconfig {path}")


def from_service_account() -> Connection:
    """A connection by the service account of the pod this runs in.

    Raises:
        AccessError: This is not a pod, or it has no service account token.
    """
    from kubernetes import config
    from kubernetes.config.config_exception import ConfigException

    configuration = _new_configuration()
    try:
        config.load_incluster_config(client_configuration=configuration)
    except ConfigException as error:
        raise AccessError(
            "There is no Kubernetes service account here.",
            why=str(error),
            fix="Outside a cluster give a kubeconfig.",
        ) from error
    return _connect(configuration, "the pod's service account")


def _new_configuration() -> "Configuration":
    from kubernetes.client import Configuration

    # Configuration() would start from the process-wide default that some other library may have set.
    return type.__call__(Configuration)


def _connect(configuration: "Configuration", source: str) -> Connection:
    import urllib3

    context = _tls_context(configuration, source) if configuration.host.startswith("https") else None
    # The files are about to go; from here on only the context counts.
    configuration.ssl_ca_cert = configuration.cert_file = configuration.key_file = None
    # One silent repeat covers a keep-alive connection that the server closed; POST and PATCH never repeat.
    configuration.retries = urllib3.Retry(total=1, redirect=0, status=0, backoff_factor=0)
    if is_loopback(configuration.host):
        configuration.proxy = None
    api = _api_client(configuration)
    if context is not None:
        api.rest_client.pool_manager.connection_pool_kw["ssl_context"] = context
    return Connection(
        api=api,
        server=configuration.host.rstrip("/"),
        ssl=context,
        server_hostname=configuration.tls_server_name or None,
    )


def _tls_context(configuration: "Configuration", source: str) -> tls.SSLContext:
    try:
        context = tls.create_default_context(cafile=configuration.ssl_ca_cert or None)
        if configuration.cert_file:
            context.load_cert_chain(configuration.cert_file, configuration.key_file or None)
    except (tls.SSLError, OSError) as error:
        raise InputError(
            f"A certificate or key in {source} is not usable.",
            why=getattr(error, "reason", None) or error.strerror or type(error).__name__,
            fix="Fetch the kubeconfig again.",
        ) from None
    # Python 3.13 refuses CA certificates without key identifiers, as many clusters have.
    context.verify_flags &= ~tls.VERIFY_X509_STRICT
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = tls.CERT_NONE
    return context


def _api_client(configuration: "Configuration") -> "ApiClient":
    from kubernetes.client import ApiClient

    class PatientClient(ApiClient):  # type: ignore[misc]  # the library is untyped
        """An ApiClient that never waits forever: the library's default is no timeout at all."""

        def request(self, method: str, url: str, query_params: Any = None, **options: Any) -> Any:
            if not options.get("_request_timeout"):
                options["_request_timeout"] = (CONNECT_SECONDS, _read_seconds(query_params))
            return super().request(method, url, query_params=query_params, **options)

    client = PatientClient(configuration=configuration)
    client.user_agent = "raynest"
    return client


def _read_seconds(query: Any) -> float:
    """A watch is silent for as long as nothing happens; the server ends it after timeoutSeconds."""
    pairs = query.items() if isinstance(query, Mapping) else query or ()
    for key, value in pairs:
        if key == "timeoutSeconds":
            return float(value) + 15.0
    return READ_SECONDS
