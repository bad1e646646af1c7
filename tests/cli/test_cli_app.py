"""The command line over a chain in memory: exit codes, words, and JSON that a script can read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from chain_clock import denied, no_balance, throttled
from chain_kube import FakeKube, status_of, unreachable
from chain_world import World

from raynest_pipeline import errors
from raynest_pipeline.chain.chain import Chain
from raynest_pipeline.chain.report import StatusReport
from raynest_pipeline.errors import RaynestError, RemoteError, Verdict, exit_code_of

Raynest = Callable[..., Any]
pytestmark = pytest.mark.usefixtures("opened")
COMMANDS = (
    *("up", "generate", "imagine", "status", "plan", "down"),
    *("doctor", "kubeconfig", "open", "dev", "demo", "sandbox", "prompts"),
)


class TestHelp:
    def test_every_command_is_there_and_described(self, raynest: Raynest) -> None:
        said = raynest("--help")
        assert said.code == 0
        assert all(command in said.out for command in COMMANDS)

    @pytest.mark.parametrize("command", COMMANDS)
    def test_every_command_explains_itself(self, raynest: Raynest, command: str) -> None:
        said = raynest(command, "--help")
        assert said.code == 0 and len(said.out) > 80

    @pytest.mark.parametrize("arguments", [["nope"], ["up", "--nope"], ["imagine"]])
    def test_what_it_does_not_know_is_exit_code_2(self, raynest: Raynest, arguments: list[str]) -> None:
        assert raynest(*arguments).code == 2

    def test_without_arguments_it_shows_its_help(self, raynest: Raynest) -> None:
        said = raynest()
        assert "Usage" in said.out + said.err


class TestExitCodes:
    def test_each_class_of_error_has_its_own(self) -> None:
        codes = {
            "SettingsError": 2,
            "InputError": 2,
            "AccessError": 3,
            "RefusedError": 4,
            "NotReadyError": 5,
            "BatchError": 6,
            "UnreachableError": 7,
            "StorageError": 8,
        }
        assert {name: getattr(errors, name)("x").exit_code for name in codes} == codes
        assert exit_code_of(RaynestError("x")) == 1

    @pytest.mark.parametrize(
        ("error", "code"),
        [
            (RemoteError("x", verdict=Verdict.PERMANENT, status=401), 3),
            (RemoteError("x", verdict=Verdict.PERMANENT, status=403), 3),
            (RemoteError("x", verdict=Verdict.RETRYABLE, status=503), 7),
            (RemoteError("x", verdict=Verdict.UNKNOWN), 7),
            (RemoteError("x", verdict=Verdict.PERMANENT, status=400), 1),
            (denied(), 3),
        ],
    )
    def test_a_remote_error_by_its_verdict(self, error: RemoteError, code: int) -> None:
        assert exit_code_of(error) == code

    @pytest.mark.parametrize("as_json", [False, True])
    def test_wrong_settings_are_told_before_anything_else(
        self, raynest: Raynest, world: World, monkeypatch: pytest.MonkeyPatch, as_json: bool
    ) -> None:
        monkeypatch.setenv("RAYNEST_ALIBABA__WORKER_COUNT", "none")
        said = raynest("up", *(["--json"] if as_json else []))
        assert said.code == 2 and world.calls == []
        if as_json:
            assert "alibaba.worker_count" in json.loads(said.out)["error"]["what"]
        else:
            assert "alibaba.worker_count" in said.err and said.out == ""

    def test_ctrl_c_is_130_and_says_what_to_do(
        self, raynest: Raynest, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("raynest_pipeline.cli.jobs.run_job", interrupt)
        said = raynest("up")
        assert said.code == 130
        assert "Run the same command again" in said.err

    def test_words_with_brackets_are_shown_as_they_are(
        self, raynest: Raynest, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: Any, **__: Any) -> None:
            raise errors.NotReadyError("no [gpu] here", why="[bold]x[/]", fix="pip install 'raynest[local]'")

        monkeypatch.setattr("raynest_pipeline.cli.jobs.run_job", fail)
        said = raynest("up")
        assert said.code == 5
        for text in ("no [gpu] here", "[bold]x[/]", "raynest[local]"):
            assert text in said.err


class TestUpAndDown:
    def test_up_then_down(self, raynest: Raynest, chain: Chain, world: World) -> None:
        said = raynest("up")
        assert said.code == 0
        for link in ("preflight", "cluster", "public_ip", "kubeconfig", "ray_service"):
            assert link in said.out
        assert world.bought[0] in said.out
        assert "cluster: buying the cluster" in said.err, "progress goes to stderr"
        assert all(seen.ready for seen in chain.observe())
        said = raynest("down", "--yes")
        assert said.code == 0 and world.alive() == []
        assert "Audit: nothing is left" in said.out

    def test_up_as_json_is_the_status_document_and_nothing_else(self, raynest: Raynest) -> None:
        said = raynest("up", "--json")
        document = json.loads(said.out)
        jsonschema.validate(document, StatusReport.model_json_schema())
        assert document["ready"] is True and said.err == ""

    def test_down_as_json(self, raynest: Raynest, up: Chain) -> None:
        document = json.loads(raynest("down", "--yes", "--json").out)
        assert document["left"] == []
        assert {change["link"] for change in document["changes"]} == {
            "cluster",
            "public_ip",
            "kubeconfig",
            "ray_service",
        }

    def test_down_asks_where_somebody_can_answer_and_refuses_elsewhere(
        self, raynest: Raynest, up: Chain, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
        said = raynest("down")
        assert said.code == 2 and "--yes" in said.err
        assert len(world.alive()) == 2

    def test_down_of_nothing(self, raynest: Raynest) -> None:
        said = raynest("down", "--yes")
        assert said.code == 0 and "nothing to remove" in said.out

    @pytest.mark.parametrize("as_json", [False, True])
    def test_a_refusal_is_exit_code_4(self, raynest: Raynest, world: World, as_json: bool) -> None:
        world.stock = []
        said = raynest("up", *(["--json"] if as_json else []))
        assert said.code == 4 and world.bought == []
        if as_json:
            error = json.loads(said.out)["error"]
            assert "sold out" in error["what"] and error["fix"]
        else:
            assert "sold out" in said.err and "What to do:" in said.err

    @pytest.mark.parametrize(
        ("call", "error", "code"),
        [
            ("create_instance", denied(), 3),
            ("create_instance", no_balance(), 1),
            ("create_instance", throttled(), 7),
            ("caller", denied(), 3),
        ],
    )
    def test_what_the_cloud_says_decides_the_code(
        self, raynest: Raynest, world: World, call: str, error: RemoteError, code: int
    ) -> None:
        world.faults[call] = [error, error, error]
        said = raynest("up")
        assert said.code == code and "Traceback" not in said.err

    def test_a_failed_deployment_is_exit_code_5_and_says_why(self, raynest: Raynest, world: World) -> None:
        world.deploy_fate = "DeployedFailed"
        said = raynest("up")
        assert said.code == 5
        assert "quota of vCPUs exceeded" in said.err.replace("\n", " ")


class TestStatusAndPlan:
    def document(self, raynest: Raynest) -> tuple[int, dict[str, Any]]:
        said = raynest("status", "--json")
        document: dict[str, Any] = json.loads(said.out)
        jsonschema.validate(document, StatusReport.model_json_schema())
        assert said.err == ""
        return said.code, document

    def test_of_a_chain_that_is_up(self, raynest: Raynest, up: Chain, world: World) -> None:
        code, document = self.document(raynest)
        assert code == 0 and document["ready"]
        assert world.kubeconfig_token not in json.dumps(document)
        said = raynest("status")
        assert said.code == 0
        assert "raynest open endpoint" in said.out and str(up.kubeconfig_path) in said.out.replace("\n", "")

    def test_of_a_chain_that_is_not(self, raynest: Raynest) -> None:
        code, document = self.document(raynest)
        assert code == 5 and not document["ready"]

    def test_of_one_that_is_broken(self, raynest: Raynest, up: Chain, kube: FakeKube) -> None:
        key = ("RayService", "raynest", "stable-diffusion")
        kube.objects[key]["status"] = status_of("DEPLOY_FAILED", message="CUDA out of memory")
        assert self.document(raynest)[0] == 5
        assert "CUDA out of memory" in " ".join(raynest("status").out.split())

    def test_of_one_that_cannot_be_seen(self, raynest: Raynest, up: Chain, kube: FakeKube) -> None:
        kube.fail["get"] = [unreachable()]
        assert self.document(raynest)[0] == 7

    def test_it_does_not_start_a_sandbox(self, raynest: Raynest, opened: list[dict[str, Any]]) -> None:
        raynest("status")
        assert [call["start_sandbox"] for call in opened] == [False]

    def test_a_plan_has_the_price_and_buys_nothing(self, raynest: Raynest, world: World) -> None:
        said = raynest("plan")
        assert said.code == 0 and world.bought == []
        assert "19.09 CNY" in " ".join(said.out.split())
        said = raynest("plan", "--json")
        assert [item["action"] for item in json.loads(said.out)][0] == "create"
        assert said.err == ""


class TestPrompts:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            (None, "does not exist"),
            (b"", "prompts.csv"),
            (b"id,prompt\na,\n", "prompts.csv"),
            (b"id,prmpt\na,b\n", "prompts.csv"),
            (b"id,prompt\na,x\na,y\n", "prompts.csv"),
            (b"id,prompt\n../a,x\n", "prompts.csv"),
            (b"id,prompt\na,\xff\xfe\n", "prompts.csv"),
        ],
    )
    @pytest.mark.parametrize("as_json", [False, True])
    def test_bad_prompts_are_exit_code_2_before_anything_is_contacted(
        self,
        raynest: Raynest,
        world: World,
        tmp_path: Path,
        opened: list[dict[str, Any]],
        text: bytes | None,
        words: str,
        as_json: bool,
    ) -> None:
        path = tmp_path / "prompts.csv"
        if text is not None:
            path.write_bytes(text)
        said = raynest("generate", "--prompts", str(path), *(["--json"] if as_json else []))
        assert said.code == 2
        assert words in " ".join((said.out + said.err).split())
        assert world.calls == [] and opened == []
        assert not (tmp_path / "home").exists(), "nothing was written either"
        if as_json:
            assert json.loads(said.out)["error"]["what"]

    def test_generate_without_a_chain_says_what_to_do(self, raynest: Raynest, tmp_path: Path) -> None:
        (tmp_path / "p.txt").write_text("a red apple\n")
        said = raynest("generate", "--prompts", str(tmp_path / "p.txt"))
        assert said.code == 5
        assert "raynest up" in said.err

    @pytest.mark.parametrize("arguments", [["", "-o", "x.png"], ["apple", "--size", "63"], ["x" * 200_000]])
    def test_a_prompt_that_cannot_be_drawn_is_exit_code_2(
        self, raynest: Raynest, opened: list[dict[str, Any]], arguments: list[str]
    ) -> None:
        assert raynest("imagine", *arguments).code == 2
        assert opened == []

    def test_imagine_without_a_chain_says_what_to_do_and_leaves_no_file(
        self, raynest: Raynest, tmp_path: Path
    ) -> None:
        said = raynest("imagine", "a blue star")
        assert said.code == 5 and "raynest up" in said.err
        assert [item.name for item in tmp_path.iterdir() if "output" in item.name] == []

    def test_imagine_to_a_folder_that_is_not_there(
        self, raynest: Raynest, opened: list[dict[str, Any]]
    ) -> None:
        said = raynest("imagine", "a blue star", "-o", "nowhere/x.png")
        assert said.code == 8 and opened == []


class TestKubeconfigAndOpen:
    def test_the_path_alone_is_printed(self, raynest: Raynest, up: Chain) -> None:
        said = raynest("kubeconfig")
        assert (said.code, said.out) == (0, f"{up.kubeconfig_path}\n")

    def test_before_there_is_one(self, raynest: Raynest) -> None:
        said = raynest("kubeconfig")
        assert said.code == 5 and said.out == "" and "raynest up" in said.err

    def test_open_what_is_not_there(self, raynest: Raynest) -> None:
        said = raynest("open", "sesame")
        assert said.code == 2 and "dashboard" in said.err

    def test_open_without_a_chain(self, raynest: Raynest) -> None:
        assert raynest("open", "dashboard").code == 5
