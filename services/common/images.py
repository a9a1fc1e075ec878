"""Encoded bytes to pixels: the one way that both services decode and resize."""

import io
import warnings

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from services.common.errors import BadImage

# 64 megapixels: above any camera's frame that people label, and 192 MB once decoded.
MAX_PIXELS = 64_000_000
_JPEG = b"\xff\xd8\xff"
_QUICK_PIXELS = 64 * 64
# EXIF comes before the picture, in a segment of at most 64 kB, after at most one of JFIF.
_EXIF_WITHIN = 66_000


def decode(encoded: bytes, height: int, width: int, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """An encoded image as uint8 RGB [height, width, 3].

    Orientation is taken from EXIF; other sizes are resized with an antialiased bicubic filter.
    Raises BadImage for empty, broken, truncated and oversized input.
    """
    if not encoded:
        raise BadImage("the image is empty (0 bytes)")
    rgb = _plain_jpeg(encoded, height, width, max_pixels)
    if rgb is None:
        rgb = _any_image(encoded, height, width, max_pixels)
    if rgb.shape[:2] == (height, width):
        return rgb
    return np.asarray(Image.fromarray(rgb).resize((width, height), Image.Resampling.BICUBIC), dtype=np.uint8)


def is_quick(encoded: bytes) -> bool:
    """Whether decoding takes less time than asking a thread for it: a JPEG that says it is at most 64 x 64."""
    if not encoded.startswith(_JPEG):
        return False
    try:
        rows, columns, _, _ = simplejpeg.decode_jpeg_header(encoded)
    except ValueError:
        return False
    return bool(rows * columns <= _QUICK_PIXELS)


def _plain_jpeg(encoded: bytes, height: int, width: int, max_pixels: int) -> np.ndarray | None:
    """uint8 [H, W, 3] of an ordinary JPEG, an eighth of Pillow's time for the same pixels; None: let Pillow do it.

    Both are libjpeg-turbo. Pillow keeps what needs its judgement: orientation, CMYK, damage, and frames so large
    that it decodes them at a half, a quarter or an eighth.
    """
    if not encoded.startswith(_JPEG) or b"Exif\0\0" in encoded[:_EXIF_WITHIN]:
        return None
    try:
        rows, columns, colours, _ = simplejpeg.decode_jpeg_header(encoded)
        drafted = rows >= 4 * height and columns >= 4 * width
        if drafted or rows * columns > max_pixels or colours not in {"YCbCr", "Gray"}:
            return None
        return np.asarray(simplejpeg.decode_jpeg(encoded, "RGB"), dtype=np.uint8)
    except ValueError:
        return None


def _any_image(encoded: bytes, height: int, width: int, max_pixels: int) -> np.ndarray:
    """uint8 [H, W, 3] in the size it has, or a smaller one of at least twice the size that is wanted."""
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
                rgb = _to_rgb(ImageOps.exif_transpose(image))
    except BadImage:
        raise
    except UnidentifiedImageError as error:
        raise BadImage("not an image that can be read (JPEG, PNG, WebP, BMP and GIF can)") from error
    except Image.DecompressionBombError as error:
        raise BadImage(f"the image has too many pixels; the limit is {max_pixels} pixels") from error
    # Pillow's decoders raise many types on hostile input (OSError, SyntaxError, ValueError, struct.error, ...).
    except Exception as error:
        raise BadImage(f"the image is broken or truncated: {error}") from error
    return np.asarray(rgb, dtype=np.uint8)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Eight bits a channel. Pillow itself would cut 16-bit values off at 255: microscopy would turn white."""
    if image.mode == "F":
        raise BadImage("floating-point pixels have no known range; store them with 8 or 16 bits a channel")
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64) >> 8
        image = Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8))
    return image.convert("RGB")
