"""The only reader of the environment in this service. Every variable begins with INFERENCE_."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from services.common import images
from services.common.cpus import available_cpus
from services.common.registry import MAX_BATCH_SIZE, is_campaign_name

_CHECKOUT_DATA = Path("../shared/data")


def _default_data_dir() -> Path:
    return _CHECKOUT_DATA if _CHECKOUT_DATA.is_dir() else Path(".querent/data")


class Settings(BaseSettings):
    """Configuration of one inference replica."""

    # An empty variable counts as not set: compose files pass those on.
    model_config = SettingsConfigDict(env_prefix="INFERENCE_", frozen=True, env_ignore_empty=True)

    grpc_host: str = "127.0.0.1"
    grpc_port: int = Field(default=8001, ge=0, le=65_535)
    # A port of its own for grpc.health.v1 without TLS, for probes that know none; unset: on the gRPC port only.
    health_port: int | None = Field(default=None, ge=0, le=65_535)
    # TLS: certificate and key as PEM files; with a CA of clients each of them must show a certificate of its own.
    tls_cert_file: Path | None = None
    tls_key_file: Path | None = None
    tls_client_ca_file: Path | None = None
    # Bearer tokens; a file may hold several, one a line. None of them set: no token is asked for.
    predict_token: SecretStr = SecretStr("")
    predict_token_file: Path | None = None
    admin_token: SecretStr = SecretStr("")
    admin_token_file: Path | None = None
    metrics_host: str = "127.0.0.1"
    metrics_port: int = Field(default=8002, ge=0, le=65_535)

    registry_dir: Path = Path(".querent/registry")
    # An object store that the registry lies in, such as s3://bucket/prefix: registry_dir is this replica's copy then.
    registry_bucket: str = ""
    sources_dir: Path = Path(".querent/sources")
    embeddings_dir: Path = Path(".querent/embeddings")
    # This replica's journals; the trainer imports them by an explicit command.
    feedback_dir: Path = Path(".querent/feedback")
    data_dir: Path = Field(default_factory=_default_data_dir, validation_alias="QUERENT_DATA_DIR")

    # Campaigns to serve, separated by commas; empty: all in the registry.
    models: Annotated[tuple[str, ...], NoDecode] = ()
    # Model versions held in memory at once.
    max_loaded: int = Field(default=4, ge=1)
    poll_seconds: float = Field(default=1.0, gt=0)

    # Images in one run of the network, and how long a run waits for more while another is going on.
    # 0: 8 on a CPU, where larger batches leave the caches and cost more an image (measured), 64 on a GPU.
    max_batch: int = Field(default=0, ge=0, le=MAX_BATCH_SIZE)
    max_delay_ms: float = Field(default=2.0, ge=0)
    # Images of Predict that may be in the service at once, for each model.
    queue_limit: int = Field(default=1024, ge=1)
    # Calls in the service at once, of every kind; one more is refused.
    max_concurrent_rpcs: int = Field(default=1000, ge=1)
    # When to ask clients to connect again, so that they find new replicas; 0: never.
    max_connection_age_seconds: float = Field(default=0.0, ge=0, le=1_000_000)
    # Images in one Predict request.
    max_images: int = Field(default=256, ge=1)

    # 0: as many as the cgroup's CPU quota and the affinity allow.
    threads: int = Field(default=0, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    # Which of a version's graphs answers; auto: fp16 on CUDA, int8 on CPUs with VNNI, where they were published.
    precision: Literal["auto", "fp32", "fp16", "int8"] = "auto"
    # The rest is for CUDA only. Input and outputs in buffers that are made once for each batch size.
    io_binding: bool = True
    # Captured when a version is loaded, one for each batch size; needs io_binding.
    cuda_graphs: bool = True
    cudnn_conv_algo_search: Literal["HEURISTIC", "EXHAUSTIVE", "DEFAULT"] = "HEURISTIC"
    cuda_tf32: bool = False
    cuda_prefer_nhwc: bool = False
    # Load the CUDA libraries that came as wheels, before the first session.
    preload_dlls: bool = True
    # Of onnxruntime's arena, for each session; 0: no limit.
    gpu_mem_limit_bytes: int = Field(default=0, ge=0)

    # After SIGTERM: go on serving while load balancers notice, then finish what is running.
    lame_duck_seconds: float = Field(default=1.0, ge=0)
    grace_seconds: float = Field(default=10.0, ge=0)

    max_message_bytes: int = Field(default=64 * 1024 * 1024, ge=1024)
    max_pixels: int = Field(default=images.MAX_PIXELS, ge=1)

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_style: Literal["json", "console"] = "json"

    @field_validator("models", mode="before")
    @classmethod
    def _split_names(cls, value: object) -> object:
        return tuple(n.strip() for n in value.split(",") if n.strip()) if isinstance(value, str) else value

    @field_validator("models")
    @classmethod
    def _check_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not is_campaign_name(name):
                raise ValueError(f"{name!r} is not a campaign name (a-z, 0-9 and -, at most 63)")
        return value

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _queue_holds_a_request(self) -> "Settings":
        if self.queue_limit < self.max_images:
            raise ValueError(f"queue_limit ({self.queue_limit}) must be at least max_images ({self.max_images})")
        return self

    @model_validator(mode="after")
    def _tls_is_whole(self) -> "Settings":
        if bool(self.tls_cert_file) != bool(self.tls_key_file):
            raise ValueError("INFERENCE_TLS_CERT_FILE and INFERENCE_TLS_KEY_FILE go together: set both or none")
        if self.tls_client_ca_file and not self.tls_cert_file:
            raise ValueError("INFERENCE_TLS_CLIENT_CA_FILE needs INFERENCE_TLS_CERT_FILE and INFERENCE_TLS_KEY_FILE")
        return self

    @property
    def cpu_threads(self) -> int:
        return self.threads or available_cpus()
