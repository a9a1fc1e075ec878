"""Prediction ids: everything that feedback needs to know of a prediction, in one opaque text.

The id itself is the memory: any replica understands it, after any restart, and none has to store it. Its checksum
finds an id that was cut or mangled; it is no signature, and nothing that it opens would need one.
"""

import base64
import binascii
import os
import struct
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from services.common.errors import BadRequest
from services.common.manifest import Manifest
from services.common.registry import is_campaign_name

_FORMAT = 1
# Format, version, round, class index, time in ms, nonce of the request, place in it, sample id, name's length.
_FIXED = struct.Struct("!BIIIQ8sI16sB")
_CRC = struct.Struct("!I")
# In base64, with the longest name that a campaign can have.
_LONGEST = 4 * (_FIXED.size + 63 + _CRC.size) // 3 + 1
_NO_SAMPLE = bytes(16)


@dataclass(frozen=True)
class Predicted:
    """What a prediction was: by which version, which class, of which sample ("": raw pixels), when (Unix time)."""

    campaign: str
    version: int
    round: int
    class_index: int
    sample_id: str
    predicted_at: float


def prediction_ids(manifest: Manifest, class_indices: np.ndarray, sample_ids: Sequence[str]) -> list[str]:
    """An id for each prediction of one request.  (N,) most probable classes; N sample ids, or none for raw pixels"""
    name = manifest.campaign.encode()
    # Two requests with the same image in the same millisecond are still two predictions.
    now, nonce = time.time_ns() // 1_000_000, os.urandom(8)
    ids = []
    for place, class_index in enumerate(class_indices.tolist()):
        sample = bytes.fromhex(sample_ids[place]) if sample_ids else _NO_SAMPLE
        fixed = _FIXED.pack(
            _FORMAT, manifest.version, manifest.round, class_index, now, nonce, place, sample, len(name)
        )
        content = fixed + name
        ids.append(_text(content + _CRC.pack(zlib.crc32(content))))
    return ids


def parse(prediction_id: str) -> Predicted:
    """Raises BadRequest for what is not a whole id of ours."""
    try:
        if len(prediction_id) > _LONGEST:
            raise _mangled(prediction_id)
        whole = base64.b64decode(prediction_id + "=" * (-len(prediction_id) % 4), altchars=b"-_", validate=True)
        content, crc = whole[: -_CRC.size], _CRC.unpack(whole[-_CRC.size :])[0]
        form, version, round_no, class_index, when, _, _, sample, length = _FIXED.unpack_from(content)
        name = content[_FIXED.size :].decode("ascii")
    except (ValueError, binascii.Error, struct.error) as error:
        raise _mangled(prediction_id) from error
    # Several texts decode to the same bytes, and a prediction must have one id to be counted once.
    if crc != zlib.crc32(content) or form != _FORMAT or len(name) != length or _text(whole) != prediction_id:
        raise _mangled(prediction_id)
    # Whoever makes ids up can have these right; but to the store "" is whichever campaign there is, and 0 a version.
    if not is_campaign_name(name) or version < 1:
        raise _mangled(prediction_id)
    return Predicted(name, version, round_no, class_index, "" if sample == _NO_SAMPLE else sample.hex(), when / 1000)


def _text(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _mangled(prediction_id: str) -> BadRequest:
    return BadRequest(
        f"{prediction_id[:80]!r} is not a prediction id; send one back unchanged as Predict gave it "
        "(with_feedback_id = true)"
    )
