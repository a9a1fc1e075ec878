"""Small pictures inside the page."""

import base64
import io

import numpy as np
from PIL import Image

# Pixels a side: what a card shows on a usual screen.
LARGEST = 112
# Up to here PNG is as small as JPEG, and every pixel counts.
_SMALL = 48
_QUALITY = 82


def data_uri(image: np.ndarray) -> str:
    """Of uint8 RGB [H, W, 3], at most LARGEST pixels a side."""
    buffer = io.BytesIO()
    thumbnail = Image.fromarray(image)
    thumbnail.thumbnail((LARGEST, LARGEST))
    kind = "png" if max(thumbnail.size) <= _SMALL else "jpeg"
    thumbnail.save(buffer, kind.upper(), quality=_QUALITY, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
