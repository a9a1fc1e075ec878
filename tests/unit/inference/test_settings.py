from pathlib import Path

import pytest
from pydantic import ValidationError

from services.inference.settings import Settings


def test_defaults_are_those_of_the_readme() -> None:
    settings = Settings()
    assert (settings.grpc_host, settings.grpc_port, settings.metrics_port) == ("127.0.0.1", 8001, 8002)
    assert settings.registry_dir == Path(".querent/registry")
    assert (settings.max_batch, settings.poll_seconds, settings.models) == (0, 1.0, ())


def test_the_environment_is_read_and_settings_do_not_change(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("INFERENCE_MODELS", "one, two")
    monkeypatch.setenv("INFERENCE_LOG_LEVEL", "debug")
    monkeypatch.setenv("QUERENT_DATA_DIR", str(tmp_path))
    settings = Settings()
    assert (settings.models, settings.log_level, settings.data_dir) == (("one", "two"), "DEBUG", tmp_path)
    with pytest.raises(ValidationError):
        settings.grpc_port = 1  # type: ignore[misc]


def test_every_mistake_is_told_at_once() -> None:
    with pytest.raises(ValidationError) as caught:
        Settings(grpc_port=70_000, device="abacus", models=("../x",))  # type: ignore[arg-type]
    assert {error["loc"][0] for error in caught.value.errors()} == {"grpc_port", "device", "models"}


def test_a_queue_that_cannot_hold_one_request_is_refused() -> None:
    with pytest.raises(ValidationError, match="at least max_images"):
        Settings(queue_limit=10, max_images=20)


def test_half_a_pair_of_tls_files_is_refused() -> None:
    for given in ({"tls_cert_file": "a"}, {"tls_key_file": "a"}):
        with pytest.raises(ValidationError, match="go together: set both or none"):
            Settings(**given)  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="INFERENCE_TLS_CLIENT_CA_FILE needs"):
        Settings(tls_client_ca_file=Path("a"))


def test_settings_never_show_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERENCE_PREDICT_TOKEN", "s3cret")
    monkeypatch.setenv("INFERENCE_ADMIN_TOKEN", "s3cret")
    settings = Settings()
    assert settings.admin_token.get_secret_value() == "s3cret"
    assert "s3cret" not in f"{settings!r} {settings} {settings.model_dump_json()}"


def test_cuda_is_configured_by_variables_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "PRECISION": "fp16",
        "IO_BINDING": "false",
        "CUDA_GRAPHS": "false",
        "CUDNN_CONV_ALGO_SEARCH": "EXHAUSTIVE",
        "CUDA_TF32": "true",
        "CUDA_PREFER_NHWC": "true",
        "PRELOAD_DLLS": "false",
        "GPU_MEM_LIMIT_BYTES": "1000",
    }.items():
        monkeypatch.setenv(f"INFERENCE_{name}", value)
    given = Settings()
    assert given.precision == "fp16"
    assert (given.io_binding, given.cuda_graphs, given.preload_dlls) == (False, False, False)
    assert (given.cudnn_conv_algo_search, given.cuda_tf32, given.cuda_prefer_nhwc) == ("EXHAUSTIVE", True, True)
    assert given.gpu_mem_limit_bytes == 1000
