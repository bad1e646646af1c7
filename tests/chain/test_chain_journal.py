"""What is on disk survives a crash, a full disk and garbage, and is its owner's alone."""

import errno
import json
import os
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raynest_pipeline.chain.intent import is_wanted, state_dir, want
from raynest_pipeline.chain.journal import Intent, Journal
from raynest_pipeline.errors import RefusedError, StorageError
from raynest_pipeline.files import private_dir, read_json, write_atomic
from raynest_pipeline.settings import Settings


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "state" / "journal.json")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def fail_with(code: int) -> object:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


class TestJournal:
    def test_an_intention_is_on_disk_before_begin_returns(self, journal: Journal, tmp_path: Path) -> None:
        intent = journal.begin("cluster", secret="z pass")
        again = Journal(tmp_path / "state" / "journal.json").read("cluster")
        assert again == intent == Intent(intent.token, secret="z pass")

    def test_a_killed_purchase_goes_on_with_the_same_token_and_secret(self, journal: Journal) -> None:
        first = journal.begin("cluster", secret="first")
        assert journal.begin("cluster", secret="second") == first

    def test_a_recorded_id_keeps_the_token_and_forgets_the_secret(
        self, journal: Journal, tmp_path: Path
    ) -> None:
        first = journal.begin("cluster", region="r", account="a", secret="pass-word", order={"n": 1})
        journal.record("cluster", "si-1")
        assert journal.read("cluster") == Intent(first.token, "si-1", "r", "a")
        assert "pass-word" not in (tmp_path / "state" / "journal.json").read_text()

    def test_another_order_keeps_token_and_secret(self, journal: Journal) -> None:
        first = journal.begin("cluster", secret="s", order={"workers": 1})
        assert journal.amend("cluster", {"workers": 2}) == journal.read("cluster")
        assert journal.read("cluster") == Intent(first.token, secret="s", order={"workers": 2})

    @pytest.mark.parametrize(
        ("region", "account", "refused"),
        [("r", "a", False), ("r", "", False), ("q", "", True), ("q", "a", True), ("r", "b", True)],
    )
    def test_what_was_bought_elsewhere_is_refused(self, region: str, account: str, refused: bool) -> None:
        intent = Intent("t", "si-1", "r", "a")
        if not refused:
            intent.refuse_elsewhere(region=region, account=account)
            return
        with pytest.raises(RefusedError, match="made elsewhere") as caught:
            intent.refuse_elsewhere(region=region, account=account)
        assert "si-1" in caught.value.why and "take it down first" in caught.value.fix

    def test_an_ended_intention_is_followed_by_a_new_token(self, journal: Journal) -> None:
        first = journal.begin("cluster")
        journal.end("cluster")
        assert journal.read("cluster") is None
        assert journal.begin("cluster").token != first.token

    def test_keys_do_not_touch_each_other(self, journal: Journal) -> None:
        cluster, eip = journal.begin("cluster"), journal.begin("public_ip")
        journal.end("cluster")
        assert cluster.token != eip.token
        assert journal.read("public_ip") == eip

    def test_ending_what_never_began_writes_nothing(self, journal: Journal, tmp_path: Path) -> None:
        journal.end("cluster")
        assert not (tmp_path / "state").exists()

    def test_a_token_is_one_that_the_cloud_takes(self, journal: Journal) -> None:
        token = journal.begin("cluster").token
        assert 1 <= len(token) <= 64 and token.isascii()

    def test_file_and_folder_are_private(self, journal: Journal, tmp_path: Path) -> None:
        journal.begin("cluster", secret="pass")
        assert mode(tmp_path / "state") == 0o700
        assert mode(tmp_path / "state" / "journal.json") == 0o600

    def test_the_secret_is_not_in_an_intents_repr(self, journal: Journal) -> None:
        assert "pass-word" not in repr(journal.begin("cluster", secret="pass-word"))

    @given(
        garbage=st.one_of(
            st.text(max_size=40),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.text(max_size=5),
                lambda inner: (
                    st.lists(inner, max_size=3)
                    | st.dictionaries(
                        st.sampled_from(["cluster", "token", "remote_id", "x"]), inner, max_size=3
                    )
                ),
                max_leaves=8,
            ).map(json.dumps),
        )
    )
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
    def test_garbage_is_read_as_no_intention(self, journal: Journal, tmp_path: Path, garbage: str) -> None:
        private_dir(tmp_path / "state")
        (tmp_path / "state" / "journal.json").write_bytes(garbage.encode("utf-8", "surrogatepass"))
        known = journal.read("cluster")
        assert known is None or isinstance(known.token, str)
        assert journal.begin("cluster").token

    def test_a_full_disk_says_so_and_keeps_what_was_there(
        self, journal: Journal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = journal.begin("cluster")
        with monkeypatch.context() as patch:
            patch.setattr("raynest_pipeline.files.os.fsync", fail_with(errno.ENOSPC))
            with pytest.raises(StorageError, match="Cannot write") as caught:
                journal.record("cluster", "si-1")
        assert caught.value.why == "the disk is full"
        assert caught.value.exit_code == 8
        assert journal.read("cluster") == first


class TestFiles:
    @pytest.mark.parametrize("step", ["os.fsync", "os.chmod", "os.replace"])
    def test_an_interrupted_write_leaves_the_old_text_and_no_rubbish(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> None:
        target = tmp_path / "state.json"
        write_atomic(target, "old")

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(f"raynest_pipeline.files.{step}", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_atomic(target, "new")
        assert target.read_text() == "old"
        assert [path.name for path in tmp_path.iterdir()] == ["state.json"]

    def test_a_write_is_private_whatever_the_umask(self, tmp_path: Path) -> None:
        before = os.umask(0)
        try:
            write_atomic(tmp_path / "a", "text")
            private_dir(tmp_path / "deep" / "er")
        finally:
            os.umask(before)
        assert mode(tmp_path / "a") == 0o600
        assert mode(tmp_path / "deep" / "er") == 0o700

    def test_an_open_file_is_closed_to_others_by_the_next_write(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_text("old")
        (tmp_path / "a").chmod(0o644)
        write_atomic(tmp_path / "a", "new")
        assert ((tmp_path / "a").read_text(), mode(tmp_path / "a")) == ("new", 0o600)

    def test_a_folder_that_is_there_keeps_its_permissions(self, tmp_path: Path) -> None:
        (tmp_path / "open").mkdir(mode=0o755)
        private_dir(tmp_path / "open" / "mine")
        assert (mode(tmp_path / "open"), mode(tmp_path / "open" / "mine")) == (0o755, 0o700)

    def test_a_file_in_the_way_is_told(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(StorageError, match="file") as caught:
            private_dir(tmp_path / "file" / "inner")
        assert "permissions" in caught.value.fix

    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
    def test_every_way_of_being_full_is_full(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
    ) -> None:
        monkeypatch.setattr("raynest_pipeline.files.tempfile.mkstemp", fail_with(code))
        with pytest.raises(StorageError) as caught:
            write_atomic(tmp_path / "a", "x")
        assert caught.value.why == "the disk is full"
        assert "Free some space" in caught.value.fix

    def test_no_permission_is_told_as_such(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("raynest_pipeline.files.tempfile.mkstemp", fail_with(errno.EACCES))
        with pytest.raises(StorageError) as caught:
            write_atomic(tmp_path / "a", "x")
        assert caught.value.why == "Permission denied"

    @pytest.mark.parametrize("text", ["", "[1]", "null", "{", "\x00"])
    def test_what_is_no_object_reads_as_empty(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "a").write_text(text)
        assert read_json(tmp_path / "a") == {}

    def test_what_is_not_there_reads_as_empty(self, tmp_path: Path) -> None:
        assert read_json(tmp_path / "a") == {}

    def test_bytes_that_are_no_text_read_as_empty(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"\xff\xfe\x00")
        assert read_json(tmp_path / "a") == {}


class TestWanted:
    def test_is_remembered_both_ways(self, tmp_path: Path) -> None:
        chain = Settings(home=tmp_path / "home")
        assert not is_wanted(chain)
        want(chain, False)
        assert not chain.home_dir.exists(), "nothing to remember, nothing written"
        want(chain, True)
        assert is_wanted(chain)
        assert mode(state_dir(chain) / "wanted.json") == 0o600
        want(chain, False)
        assert not is_wanted(chain)

    def test_other_profiles_and_names_have_their_own(self, tmp_path: Path) -> None:
        chain = Settings(home=tmp_path)
        want(chain, True)
        assert not is_wanted(Settings(home=tmp_path, profile="alibaba"))  # type: ignore[arg-type]
        assert not is_wanted(Settings(home=tmp_path, name="other"))

    def test_garbage_is_not_wanted(self, tmp_path: Path) -> None:
        chain = Settings(home=tmp_path)
        private_dir(state_dir(chain))
        for text in ("{", '{"up": 1}', '{"up": "true"}', "[]"):
            (state_dir(chain) / "wanted.json").write_text(text)
            assert not is_wanted(chain), text
