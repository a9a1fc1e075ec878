"""The server's certificate, read again when its files change: cert-manager and others rotate them."""

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import structlog

from services.common.errors import BadConfig
from services.common.files import signature

log = structlog.get_logger()

_CERT, _KEY, _CLIENT_CA = "INFERENCE_TLS_CERT_FILE", "INFERENCE_TLS_KEY_FILE", "INFERENCE_TLS_CLIENT_CA_FILE"


class Certificates:
    """PEM files of the server; with `client_ca` every client must show a certificate that it has signed."""

    def __init__(self, cert: Path, key: Path, client_ca: Path | None = None) -> None:
        """Raises BadConfig, naming the variable and the file, for one that cannot be used."""
        self._cert, self._key, self._client_ca = cert, key, client_ca
        self._files = (cert, key, *([client_ca] if client_ca else []))
        # The signature of what is read must be older than the reading, or a change in between is missed.
        self._seen = self._signature()
        self._configuration = self._read()

    def credentials(self) -> grpc.ServerCredentials:
        changed: Callable[[], Any] = self._changed  # may give None, which the stubs do not know
        return grpc.dynamic_ssl_server_credentials(self._configuration, changed, self._client_ca is not None)

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Asked before every handshake; None: as before. A pair half replaced must not end the service."""
        seen = self._signature()
        if seen == self._seen:
            return None
        self._seen = seen
        try:
            changed = self._read()
        except BadConfig as error:
            log.warning("certificates_kept", problem=str(error))
            return None
        log.info("certificates_read", cert=str(self._cert))
        return changed

    def _signature(self) -> object:
        """None while a file is away, of which reading tells more."""
        try:
            return signature(*self._files)
        except OSError:
            return None

    def _read(self) -> grpc.ServerCertificateConfiguration:
        cert, key = _pem(_CERT, self._cert), _pem(_KEY, self._key)
        # gRPC would take anything and fail at each handshake.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self._cert, self._key, password="")
        except (ssl.SSLError, OSError, ValueError) as error:
            raise BadConfig(
                f"{_CERT} {self._cert} and {_KEY} {self._key}: not a PEM certificate and its own key, "
                f"without a password ({getattr(error, 'reason', None) or error})"
            ) from error
        client_ca = None
        if self._client_ca:
            client_ca = _pem(_CLIENT_CA, self._client_ca)
            try:
                context.load_verify_locations(self._client_ca)
            except (ssl.SSLError, OSError) as error:
                raise BadConfig(f"{_CLIENT_CA}: {self._client_ca} is not a PEM certificate") from error
        return grpc.ssl_server_certificate_configuration([(key, cert)], client_ca)


def _pem(variable: str, file: Path) -> bytes:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise BadConfig(f"{variable}: cannot read {file}: {error.strerror or error}") from error
    if b"-----BEGIN " not in content:
        raise BadConfig(f"{variable}: {file} is not a PEM file")
    return content
