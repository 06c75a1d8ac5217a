"""Secret settings are read from files."""

from pathlib import Path

import pytest
import typer

from dispatcher.cli.secret_files import read_secret_files


@pytest.mark.parametrize("name", ["DISPATCHER_URL", "DISPATCHER_HTTP_TOKEN"])
@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_the_text_of_the_file_becomes_the_value(name: str, end: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(f" päss word{end}".encode())
    environment = {f"{name}_FILE": str(tmp_path / "secret"), "OTHER": "1"}
    read_secret_files(environment)
    assert environment == {name: " päss word", "OTHER": "1"}


def test_an_empty_variable_names_no_file() -> None:
    environment = {"DISPATCHER_URL_FILE": "", "DISPATCHER_URL": "mongodb://db"}
    read_secret_files(environment)
    assert environment["DISPATCHER_URL"] == "mongodb://db"


def test_a_value_and_a_file_together_are_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("mongodb://file")
    environment = {"DISPATCHER_URL_FILE": str(tmp_path / "secret"), "DISPATCHER_URL": "mongodb://db"}
    with pytest.raises(typer.BadParameter, match="DISPATCHER_URL is set, too") as refused:
        read_secret_files(environment)
    assert refused.value.param_hint == "DISPATCHER_URL_FILE"


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "can't be read: No such file or directory"), (b"\xff\xfe\xff", "is not text in UTF-8")],
)
def test_a_file_that_cannot_be_read_is_named(content: bytes | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(typer.BadParameter, match=words) as refused:
        read_secret_files({"DISPATCHER_HTTP_TOKEN_FILE": str(path)})
    assert str(path) in str(refused.value)
    assert refused.value.param_hint == "DISPATCHER_HTTP_TOKEN_FILE"
