"""Encoded bytes to pixels: the one way that both services decode and resize."""

import io
import re
import warnings

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from services.common.errors import BadImage

# 64 megapixels: above any camera's frame that people label, and 192 MB once decoded.
MAX_PIXELS = 64_000_000
# The longest side that a JPEG can have. Resizing a PNG of 40,000,000 x 1 takes 1.3 GB for its filter alone.
MAX_SIDE = 65_535
# A progressive JPEG has about ten. Each goes over all the pixels, and a scan of nothing takes 13 bytes of the file.
MAX_SCANS = 100
# Everything else that Pillow knows stays shut: its reader of EPS starts another program.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
_JPEG = b"\xff\xd8\xff"
_START_OF_SCAN = b"\xff\xda"
# What begins a segment: neither a stuffed byte of a scan's data, nor a restart inside it, nor filling.
_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
_END_OF_IMAGE = 0xD9
_QUICK_PIXELS = 64 * 64
_QUICK_BYTES = 64 * 1024
# EXIF comes before the picture, in a segment of at most 64 kB, after at most one of JFIF.
_EXIF_WITHIN = 66_000


def decode(encoded: bytes, height: int, width: int, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """An encoded image as uint8 RGB [height, width, 3].

    Orientation is taken from EXIF; other sizes are resized with an antialiased bicubic filter.
    Raises BadImage for empty, broken, truncated and oversized input.
    """
    if not encoded:
        raise BadImage("the image is empty (0 bytes)")
    _check_scans(encoded)
    rgb = _plain_jpeg(encoded, height, width, max_pixels)
    if rgb is None:
        return np.asarray(_resized(_any_image(encoded, height, width, max_pixels), height, width), dtype=np.uint8)
    if rgb.shape[:2] == (height, width):
        return rgb
    return np.asarray(_resized(Image.fromarray(rgb), height, width), dtype=np.uint8)


def is_quick(encoded: bytes) -> bool:
    """Whether decoding takes less time than asking a thread for it: a JPEG that says it is at most 64 x 64."""
    if not encoded.startswith(_JPEG) or len(encoded) > _QUICK_BYTES:
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


def _any_image(encoded: bytes, height: int, width: int, max_pixels: int) -> Image.Image:
    """RGB in the size it has, or a smaller one of at least twice the size that is wanted."""
    try:
        with warnings.catch_warnings():
            # Pillow's own bomb limit only warns; ours is checked before a pixel is decoded.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
                _check_size(image, max_pixels)
                image.draft("RGB", (2 * width, 2 * height))
                # In place, and no copy of what is RGB already: one of 64 megapixels takes 256 MB.
                ImageOps.exif_transpose(image, in_place=True)
                image.load()
                return _to_rgb(image)
    except BadImage:
        raise
    except UnidentifiedImageError as error:
        raise BadImage("not an image that can be read (JPEG, PNG, WebP, BMP, GIF and TIFF can)") from error
    except Image.DecompressionBombError as error:
        raise BadImage(f"the image has too many pixels; the limit is {max_pixels} pixels") from error
    # Pillow's decoders raise many types on hostile input (OSError, SyntaxError, ValueError, struct.error, ...).
    except Exception as error:
        raise BadImage(f"the image is broken or truncated{_reason(error)}") from error


def _check_size(image: Image.Image, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise BadImage(f"the image has {image.width} x {image.height} pixels; the limit is {max_pixels} pixels")
    if max(image.size) > MAX_SIDE:
        raise BadImage(f"the image has {image.width} x {image.height} pixels; the limit is {MAX_SIDE} a side")


def _check_scans(encoded: bytes) -> None:
    """Raises BadImage for a JPEG of more scans than anybody makes."""
    # Nearly always enough: inside a scan's data these two bytes cannot stand. After the end of the picture, as in
    # the film that a telephone adds, and in metadata they can.
    if not encoded.startswith(_JPEG) or encoded.count(_START_OF_SCAN) <= MAX_SCANS:
        return
    at, scans = len(_JPEG) - 1, 0
    while scans <= MAX_SCANS and (marker := _MARKER.search(encoded, at)) and marker[1][0] != _END_OF_IMAGE:
        scans += marker[0] == _START_OF_SCAN
        at = marker.end() + int.from_bytes(encoded[marker.end() : marker.end() + 2])
    if scans > MAX_SCANS:
        raise BadImage(f"the JPEG has more than {MAX_SCANS} scans")


def _reason(error: Exception) -> str:
    """What Pillow says in words for people; what its parsers stumble over says nothing to a caller."""
    return f": {error}" if type(error) in {OSError, SyntaxError} and str(error) else ""


def _resized(image: Image.Image, height: int, width: int) -> Image.Image:
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Eight bits a channel. Pillow itself would cut 16-bit values off at 255: microscopy would turn white."""
    if image.mode == "F":
        raise BadImage("floating-point pixels have no known range; store them with 8 or 16 bits a channel")
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64) >> 8
        image = Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")
