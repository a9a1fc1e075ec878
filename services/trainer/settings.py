"""The trainer's only reader of the environment."""

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.common.access import Access
from services.common.cpus import available_cpus


def _beside_checkout(name: str, otherwise: str) -> Path:
    """../shared/<name> in a development checkout, else a folder of our own."""
    shared = Path("../shared") / name
    return shared if shared.is_dir() else Path(otherwise)


class Settings(BaseSettings):
    """TRAINER_* variables; every mistake is reported at once and at start."""

    model_config = SettingsConfigDict(env_prefix="TRAINER_", frozen=True, env_ignore_empty=True)

    database_url: str = "sqlite:///.querent/trainer.db"
    redis_url: str = "redis://127.0.0.1:6379/0"
    # Two databases must not share a queue: their workers would take each other's messages.
    queue: str = Field(default="querent", min_length=1)
    # host:port of one replica, or a DNS name that resolves to all of them.
    inference_address: str = "127.0.0.1:8001"
    # TLS to inference: with the system's authorities, or with a CA file; certificate and key where it asks for them.
    inference_tls: bool = False
    inference_ca_file: Path | None = None
    inference_cert_file: Path | None = None
    inference_key_file: Path | None = None
    # An admin token of inference, or a file whose first line is one: scoring a pool is more than predicting.
    inference_token: SecretStr = SecretStr("")
    inference_token_file: Path | None = None
    registry_dir: Path = Path(".querent/registry")
    # An object store that the registry lies in, such as s3://bucket/prefix: registry_dir is this machine's copy then.
    registry_bucket: str = ""
    sources_dir: Path = Path(".querent/sources")
    embeddings_dir: Path = Path(".querent/embeddings")
    reports_dir: Path = Path(".querent/reports")
    # Exported backbones and what was measured on them: safe to delete, costly to make again.
    cache_dir: Path = Path(".querent/cache")
    data_dir: Path = Field(
        default_factory=lambda: _beside_checkout("data", ".querent/data"), validation_alias="QUERENT_DATA_DIR"
    )
    weights_dir: Path = Field(
        default_factory=lambda: _beside_checkout("weights", ".querent/weights"),
        validation_alias="QUERENT_WEIGHTS_DIR",
    )
    metrics_host: str = "127.0.0.1"
    # 0: no metrics server.
    metrics_port: int = Field(default=8003, ge=0, le=65535)
    # A file that a working worker touches every few seconds, for probes; none: no heartbeat.
    heartbeat_file: Path | None = None
    # How long a worker owns a campaign without a sign of life, in seconds.
    lease_seconds: float = Field(default=30.0, gt=0)
    # How often a worker looks for tasks that are due, in seconds.
    due_seconds: float = Field(default=10.0, gt=0)
    # After SIGTERM: how long work may take to come to a point where it can be left, in seconds. Then the worker ends
    # without it, and another goes on from the last checkpoint.
    grace_seconds: float = Field(default=7.0, gt=0)
    # Shards of the pool that are scored side by side; about the number of inference replicas.
    scoring_parallelism: int = Field(default=2, ge=1)
    # Torch, BLAS and onnxruntime threads; 0: as many as this process may use.
    threads: int = Field(default=0, ge=0)
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_style: Literal["json", "console"] = "json"

    @property
    def inference_access(self) -> Access:
        return Access(
            self.inference_tls,
            self.inference_ca_file,
            self.inference_cert_file,
            self.inference_key_file,
            token=self.inference_token.get_secret_value(),
            token_file=self.inference_token_file,
        )

    @property
    def thread_count(self) -> int:
        return self.threads or available_cpus()
