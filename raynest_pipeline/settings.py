"""Every knob, typed and documented.

Values come from, strongest first: arguments, `RAYNEST_*` environment variables (nested keys joined
by two underscores: `RAYNEST_ALIBABA__ZONE_ID`), and the file `raynest.yaml` of the current directory
(or the one that `RAYNEST_SETTINGS` names). docs/settings.md is generated from this module.
"""

import os
from pathlib import Path
from typing import Annotated, Any

import pydantic
import pydantic_settings
import yaml
from pydantic import AfterValidator, BaseModel, Field
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from raynest_pipeline.errors import SettingsError
from raynest_pipeline.settings_batches import Gallery, Inbox, Schedule
from raynest_pipeline.settings_sections import (
    Alibaba,
    Batch,
    Deadlines,
    Endpoint,
    Health,
    Kubeconfig,
    Profile,
    Sandbox,
    valid_name,
)
from raynest_pipeline.settings_service import RayServiceSettings, Toleration

__all__ = [
    "Alibaba",
    "Batch",
    "Deadlines",
    "Endpoint",
    "Gallery",
    "Health",
    "Inbox",
    "Kubeconfig",
    "Profile",
    "RayServiceSettings",
    "Sandbox",
    "Schedule",
    "Settings",
    "Toleration",
    "load_settings",
    "settings_file",
]

SETTINGS_FILE_VARIABLE = "RAYNEST_SETTINGS"
DEFAULT_SETTINGS_FILE = "raynest.yaml"


class Settings(BaseSettings):
    """All settings of raynest."""

    model_config = SettingsConfigDict(
        env_prefix="RAYNEST_", env_nested_delimiter="__", extra="forbid", frozen=True, populate_by_name=True
    )

    profile: Profile = Field(Profile.SANDBOX, description="sandbox | alibaba | kubeconfig.")
    name: Annotated[str, AfterValidator(valid_name)] = Field(
        "raynest", description="Name of the service instance, the cluster, and the Kubernetes namespace."
    )
    home: Path = Field(
        Path(".raynest"), description="Folder for state: kubeconfig, images, Dagster's records, the sandbox."
    )
    output: Path | str | None = Field(
        None,
        description="Where images go: a folder, or the URL of an object store (oss://bucket/prefix, s3://, "
        "gs://). Unset: <home>/images.",
    )
    alibaba: Alibaba = Field(default_factory=Alibaba)
    kubeconfig: Kubeconfig = Field(default_factory=Kubeconfig)
    ray_service: RayServiceSettings = Field(default_factory=RayServiceSettings)
    endpoint: Endpoint = Field(default_factory=Endpoint)
    batch: Batch = Field(default_factory=Batch)
    deadlines: Deadlines = Field(default_factory=Deadlines)
    health: Health = Field(default_factory=Health)
    inbox: Inbox = Field(default_factory=Inbox)
    schedule: Schedule = Field(default_factory=Schedule)
    gallery: Gallery = Field(default_factory=Gallery)
    sandbox: Sandbox = Field(default_factory=Sandbox)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, YamlConfigSettingsSource(settings_cls, yaml_file=settings_file())

    @pydantic.model_validator(mode="after")
    def _profile_is_complete(self) -> "Settings":
        if self.profile is Profile.KUBECONFIG and self.kubeconfig.path is None:
            raise ValueError("profile kubeconfig needs kubeconfig.path")
        if (self.alibaba.vpc_id is None) != (self.alibaba.vswitch_id is None):
            raise ValueError("alibaba.vpc_id and alibaba.vswitch_id go together")
        if (self.alibaba.access_key_id is None) != (self.alibaba.access_key_secret is None):
            raise ValueError("alibaba.access_key_id and alibaba.access_key_secret go together")
        if self.ray_service.code == "working_dir" and not self.ray_service.working_dir:
            raise ValueError("ray_service.code: working_dir needs ray_service.working_dir")
        return self

    @property
    def home_dir(self) -> Path:
        """`home`, absolute."""
        return self.home.expanduser().absolute()

    @property
    def output_dir(self) -> Path | str:
        """Where images go: a folder, absolute, or the URL of an object store."""
        if self.output is None:
            return self.home_dir / "images"
        if "://" in str(self.output):
            return str(self.output)
        return Path(self.output).expanduser().absolute()

    @property
    def inbox_url(self) -> str:
        """Where prompt files are dropped: an absolute folder, or a URL."""
        url = self.inbox.url
        if url is None:
            return str(self.home_dir / "inbox")
        return url if "://" in url else str(Path(url).expanduser().absolute())

    @property
    def sandbox_dir(self) -> Path:
        """State folder of the sandbox, absolute."""
        return self.home_dir / "sandbox"


def settings_file() -> Path:
    """The settings file that would be read: `$RAYNEST_SETTINGS`, else ./raynest.yaml."""
    return Path(os.environ.get(SETTINGS_FILE_VARIABLE, DEFAULT_SETTINGS_FILE))


def load_settings(**overrides: Any) -> Settings:
    """Read and validate all settings.

    Raises:
        SettingsError: Names each key, what is wrong with its value, and what is allowed.
    """
    file = settings_file()
    if SETTINGS_FILE_VARIABLE in os.environ and not file.is_file():
        raise SettingsError(
            f"The settings file {file} does not exist.", fix=f"Correct or unset {SETTINGS_FILE_VARIABLE}."
        )
    _check_file(file)
    try:
        return Settings(**overrides)
    except pydantic_settings.SettingsError as error:
        # A list or an object in a RAYNEST_* variable is JSON.
        raise SettingsError(
            f"A RAYNEST_* variable is not valid JSON: {error}.",
            why=str(error.__cause__ or ""),
            fix='Write lists and objects as JSON: ["a", "b"] or {"key": "value"}.',
        ) from None
    except pydantic.ValidationError as error:
        raise SettingsError(
            "The settings are not valid:\n" + "\n".join(describe_problem(e) for e in error.errors()),
            fix=f"Correct {file} or the RAYNEST_* variable; docs/settings.md lists every key.",
        ) from None


def _check_file(file: Path) -> None:
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except yaml.YAMLError as error:
        raise SettingsError(f"{file} is not valid YAML.", why=str(error)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file} cannot be read.", why=str(error)) from None
    if document is not None and not isinstance(document, dict):
        raise SettingsError(f"{file} must hold keys and values, not a {type(document).__name__}.")


_MAY_BE_SECRET = (
    "alibaba.access_key_secret",
    "alibaba.security_token",
    "ray_service.env",
    "ray_service.pip_index_url",
    "endpoint.url",
)
"""Keys whose values are not shown: secrets, and what people put tokens into."""


def describe_problem(error: Any) -> str:
    """A line for people about one of a ValidationError's errors, without secrets."""
    key = ".".join(str(part) for part in error["loc"]) or "settings"
    value = error.get("input")
    secret = key.startswith(_MAY_BE_SECRET)
    shown = "" if secret or isinstance(value, (dict, list, BaseModel)) else f" (it is {value!r})"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        message, shown = "there is no such setting", ""
    return f"  {key}: {message}{shown}"
