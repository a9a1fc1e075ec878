from typer.testing import CliRunner

from services.inference.server import app


def test_help_names_the_command_and_gives_examples() -> None:
    assert "serve" in CliRunner().invoke(app, ["--help"]).output
    text = CliRunner().invoke(app, ["serve", "--help"]).output
    assert "Examples" in text
    assert "INFERENCE_GRPC_PORT" in text
