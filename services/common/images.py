"""Encoded bytes to pixels: the one way that both services decode and resize."""

import io
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from services.common.errors import BadImage

# 64 megapixels: above any camera's frame that people label, and 192 MB once decoded.
MAX_PIXELS = 64_000_000


def decode(encoded: bytes, height: int, width: int, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """An encoded image as uint8 RGB [height, width, 3].

    Orientation is taken from EXIF; other sizes are resized with an antialiased bicubic filter.
    Raises BadImage for empty, broken, truncated and oversized input.
    """
    if not encoded:
        raise BadImage("the image is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            # Pillow's own bomb limit only warns; ours is checked before a pixel is decoded.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(encoded)) as image:
                if image.width * image.height > max_pixels:
                    raise BadImage(
                        f"the image has {image.width} x {image.height} pixels; the limit is {max_pixels} pixels"
                    )
                image.draft("RGB", (2 * width, 2 * height))
                rgb = ImageOps.exif_transpose(image).convert("RGB")
    except BadImage:
        raise
    except UnidentifiedImageError as error:
        raise BadImage("not an image that can be read (JPEG, PNG, WebP, BMP and GIF can)") from error
    except Image.DecompressionBombError as error:
        raise BadImage(f"the image has too many pixels; the limit is {max_pixels} pixels") from error
    # Pillow's decoders raise many types on hostile input (OSError, SyntaxError, ValueError, struct.error, ...).
    except Exception as error:
        raise BadImage(f"the image is broken or truncated: {error}") from error
    if rgb.size != (width, height):
        rgb = rgb.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(rgb, dtype=np.uint8)
