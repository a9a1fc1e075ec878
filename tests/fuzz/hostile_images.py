"""Images that want to hurt: files of every kind that Pillow opens, damaged, lying about themselves, or bombs."""

import io
import random
import struct
import zlib
from collections.abc import Callable
from functools import cache

from hypothesis import strategies as st
from PIL import Image

from tests.tiny_models import png

_PNG = b"\x89PNG\r\n\x1a\n"
SIDES = (0, 1, 7, 8, 300, 8_000, 9_000, 16_383, 65_535, 65_536, 40_000_000, 2**31 - 1, 2**32 - 1)


def chunk(kind: bytes, data: bytes, crc: int | None = None) -> bytes:
    checksum = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def lying_png(width: int, height: int, bits: int = 8, colour: int = 2, pixels: bytes = b"") -> bytes:
    """A PNG that says any size; its pixels are zlib's, or none."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return _PNG + chunk(b"IHDR", header) + chunk(b"IDAT", pixels or zlib.compress(b"")) + chunk(b"IEND", b"")


def segment(marker: int, data: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", 2 + len(data)) + data


def empty_scans(jpeg: bytes, count: int) -> bytes:
    """A progressive JPEG with that many scans of nothing before its first one."""
    first = jpeg.index(b"\xff\xda")
    table = segment(0xC4, struct.pack(">B16BB", 0x10, 1, *[0] * 15, 0xE0))
    scan = segment(0xDA, bytes((1, 1, 0, 1, 63, 0))) + bytes(3)
    return jpeg[:first] + table + scan * count + jpeg[first:]


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@cache
def whole_images() -> tuple[bytes, ...]:
    """Small and valid, one of each kind."""
    noise = random.Random(0).randbytes(64 * 64 * 3)
    rgb = Image.frombytes("RGB", (64, 64), noise)
    frames = [rgb, rgb.rotate(90), rgb.rotate(180)]
    return (
        png(),
        *(_saved(rgb.convert(mode), "PNG") for mode in ("L", "LA", "P", "RGB", "RGBA", "1", "I;16")),
        *(_saved(rgb.convert(mode), "JPEG") for mode in ("L", "RGB", "CMYK")),
        _saved(rgb.convert("L"), "JPEG", progressive=True),
        _saved(rgb, "JPEG", progressive=True, exif=b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"),
        _saved(rgb.resize((300, 200)), "JPEG", quality=30),
        *(_saved(rgb, kind, save_all=True, append_images=frames) for kind in ("GIF", "PNG", "WEBP", "TIFF")),
        _saved(rgb, "WEBP", lossless=True),
        *(_saved(rgb.convert(mode), "BMP") for mode in ("1", "P", "RGB")),
        _saved(Image.new("F", (8, 8), 0.5), "TIFF"),
        *(_saved(rgb, "TIFF", compression=name) for name in ("tiff_lzw", "jpeg", "tiff_deflate")),
        *(_saved(rgb, kind) for kind in ("EPS", "PPM", "ICO", "JPEG2000", "TGA")),
    )


@cache
def bombs() -> tuple[bytes, ...]:
    """Few bytes that say, or are, very many pixels."""
    progressive = _saved(Image.new("L", (8_000, 8_000)), "JPEG", progressive=True)
    small = _saved(Image.new("L", (64, 64)), "JPEG", progressive=True)
    grey = _saved(Image.new("1", (7_990, 7_990)), "PNG")
    thin = _saved(Image.new("1", (2_000_000, 1)), "PNG")
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(5_000_000)))
    profile = chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(5_000_000)))
    return (
        grey,
        thin,
        *(png()[:33] + extra * 20 + png()[33:] for extra in (text, profile)),
        *(empty_scans(progressive, count) for count in (90, 5_000)),
        *(empty_scans(small, count) for count in (90, 1_000, 20_000)),
        png()[:33] + chunk(b"juNk", b"") * 20_000 + png()[33:],
        small[:2] + segment(0xE1, b"Exif\0\0") + segment(0xFE, b"") * 50_000 + small[2:],
        b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0xF7, 0, 0) + bytes(768) + b";",
    )


# ---- what is done to a whole image ------------------------------------------------------------------------

_Damage = Callable[[random.Random, bytes], bytes]


def truncated(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def flipped(rng: random.Random, data: bytes) -> bytes:
    damaged = bytearray(data)
    for _ in range(rng.choice((1, 3, 30)) if damaged else 0):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def zeroed(rng: random.Random, data: bytes) -> bytes:
    first = rng.randrange(len(data) + 1)
    return data[:first] + bytes(rng.randrange(64)) + data[first + rng.randrange(64) :]


def stuffed(rng: random.Random, data: bytes) -> bytes:
    first = rng.randrange(len(data) + 1)
    return data[:first] + rng.randbytes(rng.choice((1, 4, 1000))) + data[first:]


def repeated(rng: random.Random, data: bytes) -> bytes:
    return data * rng.choice((2, 5))


def with_other_size(rng: random.Random, data: bytes) -> bytes:
    """The size that the header says becomes another one."""
    width, height = rng.choice(SIDES), rng.choice(SIDES)
    if data.startswith(_PNG):
        header = struct.pack(">II", width, height) + data[24:29]
        return data[:8] + chunk(b"IHDR", header) + data[33:]
    frame = next((at for kind in (b"\xff\xc0", b"\xff\xc2") if (at := data.find(kind)) > 0), -1)
    if data.startswith(b"\xff\xd8") and frame > 0:
        return data[: frame + 5] + struct.pack(">HH", height & 0xFFFF, width & 0xFFFF) + data[frame + 9 :]
    if data.startswith(b"GIF8"):
        return data[:6] + struct.pack("<HH", width & 0xFFFF, height & 0xFFFF) + data[10:]
    if data.startswith(b"BM"):
        return data[:18] + struct.pack("<II", width, height) + data[26:]
    return data


def with_bad_crc(rng: random.Random, data: bytes) -> bytes:
    return data[:29] + rng.randbytes(4) + data[33:] if data.startswith(_PNG) else data


def with_garbage_exif(rng: random.Random, data: bytes) -> bytes:
    start = rng.choice((b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b"", b"II*\0\xff\xff\xff\xff"))
    exif = b"Exif\0\0" + start + rng.randbytes(rng.choice((0, 2, 30, 5000)))
    if data.startswith(b"\xff\xd8"):
        return data[:2] + segment(0xE1, exif) + data[2:]
    return data[:33] + chunk(b"eXIf", exif[6:]) + data[33:] if data.startswith(_PNG) else data


def with_another_start(rng: random.Random, data: bytes) -> bytes:
    return rng.choice((b"\xff\xd8\xff", _PNG, b"GIF89a", b"BM", b"RIFF\0\0\0\0WEBP", b"%!PS-Adobe")) + data[8:]


_DAMAGE: tuple[_Damage, ...] = (
    truncated, flipped, zeroed, stuffed, repeated, with_other_size, with_bad_crc, with_garbage_exif, with_another_start
)  # fmt: skip

_damaged = st.builds(
    lambda image, damage, seed: _all(image, damage, random.Random(seed)),
    st.sampled_from(whole_images()),
    st.lists(st.sampled_from(_DAMAGE), min_size=0, max_size=3),
    st.integers(0, 2**32 - 1),
)
_lying = st.builds(
    lying_png,
    st.sampled_from(SIDES),
    st.sampled_from(SIDES),
    st.sampled_from((0, 1, 8, 16, 255)),
    st.sampled_from((0, 2, 3, 4, 6, 9)),
)
_text = st.sampled_from(
    (b"", b"\0", b"hello, this is text", b"<svg onload='x'/>", b"%!PS\n(x) run", b"\xff\xd8\xff", bytes(100_000))
)

# Half of a fuzz run's images; a bomb takes up to a second of CPU, so that there are few.
images = st.one_of(_damaged, _damaged, _damaged, _damaged, _damaged, _lying, _text | st.binary(max_size=200))
# With something behind each, or hypothesis would run out of them.
bomb_images = st.builds(lambda bomb, tail: bomb + tail, st.sampled_from(bombs()), st.binary(max_size=4))


def _all(image: bytes, damage: list[_Damage], rng: random.Random) -> bytes:
    for one in damage:
        image = one(rng, image)
    return image
