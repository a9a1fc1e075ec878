from pathlib import Path

import pytest

from services.common.access import Access
from services.common.errors import BadConfig
from services.common.tokens import Tokens


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text("old-token\n")
    return path


def test_a_file_holds_several_tokens_and_stands_beside_the_setting(file: Path) -> None:
    file.write_text("one\n\n  two \n")
    assert Tokens("T", "given", file).current() == ("given", "one", "two")
    assert Tokens("T").current() == ()
    assert not Tokens("T")


def test_a_changed_file_is_read_again(file: Path) -> None:
    tokens = Tokens("T", file=file)
    file.write_text("old-token\nnew-token\n")
    assert tokens.current() == ("old-token", "new-token")
    file.write_text("new-token\n")
    assert tokens.current() == ("new-token",)


def test_an_emptied_file_has_no_token_but_tokens_are_still_asked_for(file: Path) -> None:
    tokens = Tokens("T", file=file)
    file.write_text("")
    assert tokens.current() == ()
    assert tokens


def test_a_file_that_vanishes_or_is_damaged_leaves_the_last_tokens(file: Path) -> None:
    tokens = Tokens("T", file=file)
    file.unlink()
    assert tokens.current() == tokens.current() == ("old-token",)
    file.write_bytes(b"\xff\xfe two words\n")
    assert tokens.current() == ("old-token",)
    file.write_text("new-token\n")
    assert tokens.current() == ("new-token",)


@pytest.mark.parametrize("content", [b"", b"\n \n", b"good\ntwo words\n", "schlüssel\n".encode(), b"\xff\n"])
def test_a_file_that_holds_no_usable_token_is_refused_without_showing_it(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(BadConfig, match=r"T_FILE: .*tokens") as caught:
        Tokens("T", file=file)
    assert "words" not in str(caught.value)
    assert "schl" not in str(caught.value)


@pytest.mark.parametrize("blank", [" ", "\n"])
def test_a_blank_token_is_refused_and_not_taken_for_none(blank: str) -> None:
    with pytest.raises(BadConfig, match="T is blank"):
        Tokens("T", blank)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match=r"T_FILE: cannot read .*nowhere: No such file"):
        Tokens("T", file=tmp_path / "nowhere")


def test_the_first_token_of_a_file_goes_with_each_call_and_follows_the_file(file: Path) -> None:
    metadata = Access(token_file=file).bearer().metadata
    assert metadata() == (("authorization", "Bearer old-token"),)
    file.write_text("new-token\nold-token\n")
    assert metadata() == (("authorization", "Bearer new-token"),)
    assert Access().bearer().metadata() == ()


def test_access_never_shows_its_token() -> None:
    assert "s3cret" not in repr(Access(token="s3cret"))


def test_half_a_pair_two_tokens_and_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="go together"):
        Access(cert_file=tmp_path / "cert").pem()
    with pytest.raises(BadConfig, match="one of them"):
        Access(token="a", token_file=tmp_path / "b").bearer()
    with pytest.raises(BadConfig, match=r"cannot read .*nowhere"):
        Access(ca_file=tmp_path / "nowhere").pem()
    assert Access().pem() is None
    assert Access(tls=True).pem() is not None
