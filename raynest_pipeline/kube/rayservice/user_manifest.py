"""A user's own RayService YAML, taken as it is: the stock ray-service.stable-diffusion.yaml included."""

from dataclasses import dataclass
from pathlib import Path

import httpx
import yaml

from raynest_pipeline.errors import InputError, UnreachableError
from raynest_pipeline.kube.kinds import Object, Objects, mapping, mappings, name_of, text
from raynest_pipeline.kube.rayservice import serve_config

_MOST_BYTES = 2_000_000
_DELETED_MODEL = "stabilityai/stable-diffusion-2"
_STOCK_IMPORT_PATH = "stable_diffusion.stable_diffusion:entrypoint"
CLUSTER_WIDE = frozenset(
    {
        "Namespace",
        "ClusterRole",
        "ClusterRoleBinding",
        "PersistentVolume",
        "StorageClass",
        "CustomResourceDefinition",
        "PriorityClass",
    }
)


@dataclass(frozen=True)
class UserManifest:
    """What a user's YAML holds."""

    objects: Objects
    """In the file's order."""
    ray_service: Object
    """The one RayService; the same object as in `objects`."""
    notes: tuple[str, ...]
    """What a person should know before it is applied."""


def load_user_manifest(path_or_url: str, *, namespace: str | None = None) -> UserManifest:
    """Read and check a file or an http(s) URL.

    Args:
        path_or_url: Where it is.
        namespace: For objects that name none.

    Raises:
        InputError: Names the source, the document in it, and the problem.
        UnreachableError: The URL does not answer.
    """
    source = path_or_url.strip()
    body = (
        _download(source) if source.startswith(("http://", "https://")) else _read(Path(source).expanduser())
    )
    objects = _documents(source, body)
    services = [obj for obj in objects if obj["kind"] == "RayService"]
    if len(services) != 1:
        found = ", ".join(sorted(obj["kind"] for obj in objects)) or "nothing"
        raise InputError(
            f"{source} must hold exactly one RayService; it holds {len(services)}.",
            why=f"found: {found}",
            fix="Give a file with one RayService, and what it needs, as YAML documents.",
        )
    ray_service = services[0]
    _check_ray_service(source, ray_service)
    if namespace:
        for obj in objects:
            if obj["kind"] not in CLUSTER_WIDE:
                obj["metadata"].setdefault("namespace", namespace)
    return UserManifest(objects, ray_service, _notes(ray_service, body))


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InputError(f"{path} is too large for a manifest (more than {_MOST_BYTES} bytes).")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"The manifest {path} cannot be read.",
            why=error.strerror or type(error).__name__,
            fix="Correct ray_service.manifest.",
        ) from error
    except UnicodeDecodeError:
        raise InputError(f"The manifest {path} is not text in UTF-8.") from None


def _download(url: str) -> str:
    try:
        with (
            httpx.Client(timeout=30, follow_redirects=True) as client,
            client.stream("GET", url) as response,
        ):
            if response.status_code != httpx.codes.OK:
                raise InputError(
                    f"{url} answers HTTP {response.status_code} instead of a manifest.",
                    fix="Correct ray_service.manifest.",
                )
            chunks = bytearray()
            for chunk in response.iter_bytes():
                chunks += chunk
                if len(chunks) > _MOST_BYTES:
                    raise InputError(f"{url} is too large for a manifest (more than {_MOST_BYTES} bytes).")
            return chunks.decode("utf-8")
    except httpx.InvalidURL as error:
        raise InputError(f"{url} is not a URL.", why=str(error)) from error
    except httpx.HTTPError as error:
        raise UnreachableError(
            f"The manifest {url} cannot be downloaded.",
            why=str(error) or type(error).__name__,
            fix="Download it elsewhere and give the file's path as ray_service.manifest.",
        ) from error
    except UnicodeDecodeError:
        raise InputError(f"{url} is not text in UTF-8.") from None


def _documents(source: str, body: str) -> Objects:
    try:
        documents = [document for document in yaml.safe_load_all(body) if document is not None]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "cannot be parsed"
        raise InputError(f"{source}{where}: not valid YAML.", why=str(problem)) from None
    flat: list[object] = []
    for document in documents:
        is_list = isinstance(document, dict) and document.get("kind") == "List"
        flat.extend(document.get("items") or [] if is_list else [document])
    for number, document in enumerate(flat, 1):
        _check_object(f"{source}, document {number}", document)
    return [document for document in flat if isinstance(document, dict)]


def _check_object(where: str, document: object) -> None:
    if not isinstance(document, dict):
        raise InputError(f"{where}: not a Kubernetes object, but {type(document).__name__}.")
    for key in ("apiVersion", "kind"):
        if not isinstance(document.get(key), str) or not document[key]:
            raise InputError(f"{where}: has no {key}.")
    if not isinstance(document.get("metadata"), dict) or not name_of(document):
        raise InputError(f"{where}: has no metadata.name.")


def _check_ray_service(source: str, ray_service: Object) -> None:
    where = f"{source}, RayService {name_of(ray_service)}"
    if not ray_service["apiVersion"].startswith("ray.io/"):
        raise InputError(f"{where}: apiVersion {ray_service['apiVersion']} is not ray.io/v1.")
    spec = ray_service.get("spec")
    if not isinstance(spec, dict) or not isinstance(spec.get("rayClusterConfig"), dict):
        raise InputError(f"{where}: has no spec.rayClusterConfig.")
    if not isinstance(spec.get("serveConfigV2"), str):
        raise InputError(
            f"{where}: has no spec.serveConfigV2, or it is not a text.",
            fix="It is a YAML text inside the YAML: `serveConfigV2: |`.",
        )
    try:
        names = serve_config.app_names(ray_service)
    except InputError as error:
        raise InputError(f"{where}: {error.what}") from None
    if not names:
        raise InputError(f"{where}: serveConfigV2 names no application.")


def _notes(ray_service: Object, body: str) -> tuple[str, ...]:
    notes = []
    imports = [
        text(app.get("import_path")) for app in mappings(serve_config.read(ray_service).get("applications"))
    ]
    if _DELETED_MODEL in body or _STOCK_IMPORT_PATH in imports:
        # The stock sample doesn't name the model in its YAML: it is written in the application it loads.
        notes.append(
            f"This manifest serves {_DELETED_MODEL}, which was deleted from Hugging Face in November 2025: "
            "the application will fail with Repository Not Found. Unset ray_service.manifest to use "
            "raynest's own."
        )
    config = mapping(mapping(ray_service.get("spec")).get("rayClusterConfig"))
    template = mapping(mapping(config.get("headGroupSpec")).get("template"))
    images = [text(item.get("image")) for item in mappings(mapping(template.get("spec")).get("containers"))]
    if any("ray-ml:" in image for image in images):
        notes.append(
            "rayproject/ray-ml images are no longer published; the pull may fail or take 15 minutes."
        )
    return tuple(notes)
