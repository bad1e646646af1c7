"""A scripted Kubernetes API server on loopback: TLS, a token, recorded answers, broken connections."""

import base64
import contextlib
import datetime as dt
import ipaddress
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DATA = Path(__file__).parent / "data"
TOKEN = "s3cr3t-t0ken-for-tests"


@dataclass
class Asked:
    """A request as it arrived."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any
    raw_query: str = ""


@dataclass
class Answer:
    """What to answer. `lines` is streamed as a watch; `cut` ends it in the middle of a chunk."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    lines: list[Any] | None = None
    cut: bool = False


Responder = Callable[[Asked], Answer | None]


class ApiServer:
    """Answers from `answers` (method and path -> answers in turn, the last one for ever), else 404."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.answers: dict[str, list[Answer | Responder]] = {}
        self.url = ""
        self.require_token = True

    def on(self, what: str, *answers: Answer | Responder | Any) -> None:
        """`what` is e.g. "GET /version"; a bare JSON value is a 200."""
        ready = [a if isinstance(a, Answer) or callable(a) else Answer(body=a) for a in answers]
        self.answers[what] = ready

    def calls(self, what: str) -> list[Asked]:
        return [a for a in self.asked if f"{a.method} {a.path}" == what]

    def answer(self, asked: Asked) -> Answer:
        self.asked.append(asked)
        if self.require_token and asked.headers.get("authorization") != f"Bearer {TOKEN}":
            return Answer(401, status_object(401, "Unauthorized", "Unauthorized"))
        script = self.answers.get(f"{asked.method} {asked.path}")
        if not script:
            return Answer(404, "404 page not found\n", {"Content-Type": "text/plain"})
        item = script.pop(0) if len(script) > 1 else script[0]
        answer = item(asked) if callable(item) else item
        assert answer is not None
        return answer


def status_object(code: int, reason: str, message: str) -> dict[str, Any]:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "reason": reason,
        "message": message,
        "code": code,
    }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        raw = self.rfile.read(length)
        asked = Asked(
            self.command,
            parts.path,
            dict(parse_qsl(parts.query)),
            {k.lower(): v for k, v in self.headers.items()},
            json.loads(raw) if raw else None,
            parts.query,
        )
        answer = self.server.api.answer(asked)
        if answer.lines is not None:
            self._stream(answer)
            return
        body = answer.body
        data = (
            body
            if isinstance(body, bytes)
            else body.encode()
            if isinstance(body, str)
            else json.dumps(body).encode()
        )
        self.send_response(answer.status)
        headers = {"Content-Type": "application/json", **answer.headers, "Content-Length": str(len(data))}
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, answer: Answer) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for line in answer.lines or []:
            data = (line if isinstance(line, str) else json.dumps(line)).encode() + b"\n"
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        if answer.cut:
            self.wfile.write(b'ff\r\n{"type":"MOD')
            self.wfile.flush()
            self.close_connection = True
            return
        self.wfile.write(b"0\r\n\r\n")

    do_GET = do_POST = do_PATCH = do_DELETE = do_PUT = _serve

    def log_message(self, format: str, *args: Any) -> None: ...


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that refuse our certificate or hang up are part of the tests."""


@dataclass(frozen=True)
class Pki:
    """A certificate authority made for the test session, and what it signed."""

    ca: bytes
    server: tuple[bytes, bytes]
    client: tuple[bytes, bytes]
    client_end: dt.datetime


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _make(common: str, issuer: tuple[x509.Name, ec.EllipticCurvePrivateKey] | None) -> tuple[Any, Any]:
    key = ec.generate_private_key(ec.SECP256R1())
    now = dt.datetime.now(dt.UTC).replace(microsecond=0)
    issuer_name, issuer_key = issuer or (_name(common), key)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(common))
        .issuer_name(issuer_name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=2))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("kubernetes.default")]
            ),
            critical=False,
        )
    )
    return builder.sign(issuer_key, hashes.SHA256()), key


def _pem(certificate: Any, key: Any) -> tuple[bytes, bytes]:
    form = serialization
    return certificate.public_bytes(form.Encoding.PEM), key.private_bytes(
        form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()
    )


@pytest.fixture(scope="session")
def pki() -> Pki:
    # On purpose without key identifiers, as many clusters have it: Python 3.13 refuses that by default.
    ca, ca_key = _make("test-ca", None)
    server = _make("server", (ca.subject, ca_key))
    client = _make("client", (ca.subject, ca_key))
    return Pki(_pem(ca, ca_key)[0], _pem(*server), _pem(*client), client[0].not_valid_after_utc)


@contextlib.contextmanager
def serving(pki: Pki | None, tmp: Path, *, client_certificates: bool = False) -> Iterator[ApiServer]:
    api = ApiServer()
    server = _Server(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.api = api  # type: ignore[attr-defined]
    scheme = "http"
    if pki is not None:
        scheme = "https"
        (tmp / "tls.crt").write_bytes(pki.server[0])
        (tmp / "tls.key").write_bytes(pki.server[1])
        (tmp / "ca.crt").write_bytes(pki.ca)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp / "tls.crt", tmp / "tls.key")
        if client_certificates:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(tmp / "ca.crt")
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    api.url = f"{scheme}://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()


def kubeconfig_text(url: str, pki: Pki | None, user: dict[str, Any] | None = None, **cluster: Any) -> str:
    body: dict[str, Any] = {"server": url, **cluster}
    if pki is not None:
        body["certificate-authority-data"] = base64.b64encode(pki.ca).decode()
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "there",
            "clusters": [{"name": "c", "cluster": body}],
            "contexts": [{"name": "there", "context": {"cluster": "c", "user": "u", "namespace": "demo"}}],
            "users": [{"name": "u", "user": {"token": TOKEN} if user is None else user}],
        }
    )


def client_user(pki: Pki) -> dict[str, str]:
    certificate, key = pki.client
    return {
        "client-certificate-data": base64.b64encode(certificate).decode(),
        "client-key-data": base64.b64encode(key).decode(),
    }


@dataclass
class Tools:
    """What tests need from here; under importlib mode they cannot import it."""

    Answer: type[Answer] = Answer
    token: str = TOKEN
    kubeconfig_text: Callable[..., str] = kubeconfig_text
    client_user: Callable[..., dict[str, str]] = client_user
    serving: Callable[..., Any] = serving
    status_object: Callable[..., dict[str, Any]] = status_object

    def data(self, name: str) -> Any:
        """A recording of tests/kube/data."""
        return json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def tools() -> Tools:
    return Tools()


@pytest.fixture
def api(pki: Pki, tmp_path: Path) -> Iterator[ApiServer]:
    """The scripted server, with discovery as a real one has it."""
    with serving(pki, tmp_path) as server:
        objects = json.loads((DATA / "objects.json").read_text(encoding="utf-8"))
        server.on("GET /version", objects["version"])
        server.on(
            "GET /apis",
            {"kind": "APIGroupList", "groups": [_group("ray.io"), _group("authorization.k8s.io")]},
        )
        server.on("GET /apis/ray.io/v1", objects["discovery_ray"])
        server.on("GET /api/v1", {"kind": "APIResourceList", "groupVersion": "v1", "resources": _core()})
        yield server


def _group(name: str) -> dict[str, Any]:
    version = {"groupVersion": f"{name}/v1", "version": "v1"}
    return {"name": name, "versions": [version], "preferredVersion": version}


def _core() -> list[dict[str, Any]]:
    verbs = ["create", "delete", "get", "list", "patch", "watch"]
    kinds = {
        "namespaces": "Namespace", "nodes": "Node", "pods": "Pod", "services": "Service",
        "secrets": "Secret", "configmaps": "ConfigMap", "events": "Event",
    }  # fmt: skip
    found: list[dict[str, Any]] = [
        {
            "name": n,
            "singularName": "",
            "namespaced": n not in ("namespaces", "nodes"),
            "kind": k,
            "verbs": verbs,
        }
        for n, k in kinds.items()
    ]
    return [
        *found,
        {"name": "pods/log", "singularName": "", "namespaced": True, "kind": "Pod", "verbs": ["get"]},
    ]


@pytest.fixture
def config_file(api: ApiServer, pki: Pki, tmp_path: Path) -> Path:
    path = tmp_path / "kubeconfig.yaml"
    path.write_text(kubeconfig_text(api.url, pki))
    return path
