"""How a client reaches a server: TLS files and a bearer token. gRPC objects are made where gRPC is known."""

from dataclasses import dataclass, field
from pathlib import Path

from services.common.errors import BadConfig
from services.common.tokens import Tokens


@dataclass(frozen=True)
class Pem:
    """Contents of PEM files; None where there is none."""

    ca: bytes | None = None
    key: bytes | None = field(default=None, repr=False)
    cert: bytes | None = None


@dataclass(frozen=True)
class Access:
    """`tls` alone trusts the system's authorities; a CA file or a certificate of one's own implies TLS."""

    tls: bool = False
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    # The name in the server's certificate, where the address is another one.
    server_name: str = ""
    token: str = field(default="", repr=False)
    # The first token in it is sent; looked at before every call, so that rotation needs no restart.
    token_file: Path | None = None

    def pem(self) -> Pem | None:
        """None without TLS. Raises BadConfig for half a pair and for a file that cannot be read."""
        if bool(self.cert_file) != bool(self.key_file):
            raise BadConfig("a client certificate and its key go together: give both files or none")
        if not (self.tls or self.ca_file or self.cert_file):
            return None
        return Pem(_read(self.ca_file), _read(self.key_file), _read(self.cert_file))

    def bearer(self) -> "Bearer":
        """Raises BadConfig for a token file that cannot be read or is empty, and for a token beside a token file."""
        if self.token and self.token_file:
            raise BadConfig("a token and a token file are given: give one of them")
        return Bearer(Tokens("TOKEN", self.token, self.token_file))


class Bearer:
    """Metadata for each call."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    def metadata(self) -> tuple[tuple[str, str], ...]:
        return tuple(("authorization", f"Bearer {token}") for token in self._tokens.current()[:1])


def _read(file: Path | None) -> bytes | None:
    if file is None:
        return None
    try:
        return file.read_bytes()
    except OSError as error:
        raise BadConfig(f"cannot read {file}: {error.strerror or error}") from error
