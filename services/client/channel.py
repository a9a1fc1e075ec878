"""The channel of both clients: its rules, TLS, and the token that goes with each call."""

import json

import grpc

from services.common.access import Access

MAX_MESSAGE_BYTES = 64 * 1024 * 1024

Options = list[tuple[str, str | int]]


def channel_options() -> Options:
    """Round robin over the addresses of a name, and retries with back-off on UNAVAILABLE and nothing else."""
    config = {
        "loadBalancingConfig": [{"round_robin": {}}],
        # A replica that is about to stop says so, and calls go to the others before its connection ends.
        "healthCheckConfig": {"serviceName": "connections"},
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 5,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "2s",
                    "backoffMultiplier": 3,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ],
    }
    return [
        ("grpc.service_config", json.dumps(config)),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        # A request that is larger than this buffer (256 kB by default) would silently never be retried.
        ("grpc.per_rpc_retry_buffer_size", MAX_MESSAGE_BYTES),
    ]


def open_channel(address: str, access: Access) -> grpc.Channel:
    """For blocking calls. Raises BadConfig for files of `access` that cannot be read."""
    credentials, options = _credentials(access), _options(access)
    if credentials is None:
        return grpc.insecure_channel(address, options)
    return grpc.secure_channel(address, credentials, options)


def open_aio_channel(address: str, access: Access) -> grpc.aio.Channel:
    """For awaited calls. Raises BadConfig for files of `access` that cannot be read."""
    credentials, options = _credentials(access), _options(access)
    if credentials is None:
        return grpc.aio.insecure_channel(address, options)
    return grpc.aio.secure_channel(address, credentials, options)


def _credentials(access: Access) -> grpc.ChannelCredentials | None:
    pem = access.pem()
    return None if pem is None else grpc.ssl_channel_credentials(pem.ca, pem.key, pem.cert)


def _options(access: Access) -> Options:
    options = channel_options()
    if access.server_name:
        options.append(("grpc.ssl_target_name_override", access.server_name))
    return options
