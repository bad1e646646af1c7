"""What a person sees: bars on a terminal, plain lines elsewhere, nothing where a script reads."""

import io
from typing import Any

import pytest
from rich.console import Console

from raynest_pipeline.chain.link import Change, Observation, State, Step
from raynest_pipeline.chain.report import LinkStatus, StatusReport
from raynest_pipeline.cli import view as view_module
from raynest_pipeline.cli.view import View, changes_table, links_table, show_error, times_table
from raynest_pipeline.errors import NotReadyError
from raynest_pipeline.images.result import Progress

WIDTH = 200


def text_of(table: Any) -> str:
    console = Console(file=io.StringIO(), width=WIDTH)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Stderr as a terminal; what is drawn on it."""
    drawn = io.StringIO()

    def console(**more: Any) -> Console:
        assert more.pop("stderr") is True
        return Console(file=drawn, force_terminal=True, width=WIDTH, **more)

    monkeypatch.setattr(view_module, "Console", console)
    return drawn


def batch(done: int, seconds: float = 1.0) -> Progress:
    return Progress(made=done, reused=0, failed=0, total=12, seconds=seconds)


class TestPlain:
    def test_each_message_is_a_line_once(self, capsys: pytest.CaptureFixture[str]) -> None:
        view = View()
        with view:
            for message in ("a", "a", "b", "a"):
                view(Step("cluster", message))
            view(Step("public_ip", "a"))
            view(Observation("cluster", State.READY, facts={"seconds": 1.5}))
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.splitlines() == [
            "cluster: a",
            "cluster: b",
            "cluster: a",
            "public_ip: a",
            "cluster: ready in 1.5 s",
        ]

    def test_a_batch_is_told_at_a_calm_pace_and_at_its_end(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = 1000.0
        monkeypatch.setattr(view_module.time, "monotonic", lambda: now)
        view = View()
        for done in range(1, 12):
            now += 1
            view(batch(done))
        view(batch(12))
        lines = capsys.readouterr().err.splitlines()
        assert 2 <= len(lines) <= 3
        assert lines[-1].startswith("images: 12 of 12")

    def test_quiet_says_nothing_and_still_keeps(self, capsys: pytest.CaptureFixture[str]) -> None:
        view = View(quiet=True)
        error = NotReadyError("x")
        with view:
            view(Step("cluster", "a"))
            view(Observation("cluster", State.READY))
            view(batch(12))
            view(error)
            view([Change("cluster", "none", "x")])
        assert capsys.readouterr() == ("", "")
        assert [seen.link for seen in view.links] == ["cluster"]
        assert view.error is error
        assert view.results == [[Change("cluster", "none", "x")]]


class TestTerminal:
    def test_bars_are_drawn_and_ended(self, terminal: io.StringIO) -> None:
        view = View()
        with view:
            view(Step("cluster", "Deploying 30%", 0.3))
            view(Step("cluster", "Deploying"))
            view(Observation("cluster", State.READY, facts={"seconds": 2}))
            view(batch(3))
            view(batch(12))
        drawn = terminal.getvalue()
        assert "cluster" in drawn and "ready in 2 s" in drawn and "12 of 12" in drawn
        assert "\x1b[?25h" in drawn, "the cursor is shown again"

    def test_the_cursor_comes_back_after_an_interrupt(self, terminal: io.StringIO) -> None:
        with pytest.raises(KeyboardInterrupt), View() as view:
            view(Step("cluster", "a"))
            raise KeyboardInterrupt
        assert "\x1b[?25h" in terminal.getvalue()

    def test_words_with_brackets_are_shown_as_they_are(self, terminal: io.StringIO) -> None:
        with View() as view:
            view(Step("ray_service", "pod x: [gpu] 0/1 [/nodes]"))
        assert "[gpu] 0/1 [/nodes]" in terminal.getvalue()


def test_plain_words_with_brackets_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    view = View()
    view(Step("ray_service", "0/1 nodes: 1 Insufficient [nvidia.com/gpu] [/x]"))
    view(Observation("ray_service", State.READY, facts={"seconds": 1}))
    assert "[nvidia.com/gpu] [/x]" in capsys.readouterr().err


class TestTables:
    def report(self, *links: LinkStatus) -> StatusReport:
        return StatusReport(
            schema_version=1,
            profile="alibaba",
            name="raynest",
            wanted=True,
            ready=False,
            links=list(links),
            kubeconfig="/x",
            endpoint=None,
            dashboard=None,
        )

    def test_a_link_shows_its_cause_else_its_facts(self) -> None:
        text = text_of(
            links_table(
                self.report(
                    LinkStatus(name="cluster", state=State.READY, cause="", facts={"instance_id": "si-1"}),
                    LinkStatus(name="public_ip", state=State.BROKEN, cause="it is gone", facts={"ip": "1"}),
                )
            )
        )
        assert "instance_id=si-1" in text and "it is gone" in text and "ip=1" not in text

    def test_causes_with_brackets_are_shown_as_they_are(self) -> None:
        link = LinkStatus(name="cluster", state=State.BROKEN, cause="no [gpu] and [/this] too", facts={})
        assert "no [gpu] and [/this] too" in text_of(links_table(self.report(link)))

    def test_changes_with_brackets_are_shown_as_they_are(self) -> None:
        assert "a [/b] c" in text_of(changes_table([Change("cluster", "create", "a [/b] c", "[x]")]))

    def test_times_show_what_was_made(self) -> None:
        text = text_of(
            times_table(
                [
                    Observation("preflight", State.READY, facts={"seconds": 0.5}),
                    Observation("cluster", State.READY, facts={"seconds": 9.26, "instance_id": "si-1"}),
                    Observation("kubeconfig", State.READY, facts={"path": "/home/kc.yaml"}),
                ]
            )
        )
        assert "9.3" in text and "si-1" in text and "/home/kc.yaml" in text

    def test_every_state_has_a_colour(self) -> None:
        assert set(view_module.COLOURS) == set(State)


def test_an_error_without_why_and_fix_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    show_error(Console(stderr=True), NotReadyError("just this"), as_json=False)
    assert capsys.readouterr().err == "just this\n"


def test_an_error_as_json_is_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    show_error(Console(stderr=True), NotReadyError("a", why="b", fix="c"), as_json=True)
    said = capsys.readouterr()
    assert said.out == '{"error": {"what": "a", "why": "b", "fix": "c"}}\n' and said.err == ""
