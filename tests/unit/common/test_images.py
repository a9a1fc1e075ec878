import io
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from services.common.errors import BadImage
from services.common.images import decode, is_quick


def encoded(width: int, height: int, kind: str = "PNG", mode: str = "RGB", **save: object) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (width, height), 128).save(buffer, kind, **save)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "I;16"])
def test_every_colour_mode_becomes_uint8_rgb(mode):
    pixels = decode(encoded(9, 7, mode=mode), 32, 16)
    assert pixels.shape == (32, 16, 3)
    assert pixels.dtype == np.uint8


def test_sixteen_bit_greys_keep_their_range():
    ramp = np.linspace(0, 65_535, 32 * 32).astype(np.uint16).reshape(32, 32)
    buffer = io.BytesIO()
    Image.fromarray(ramp).save(buffer, "PNG")
    pixels = decode(buffer.getvalue(), 32, 32)
    assert np.array_equal(pixels[:, :, 0], (ramp >> 8).astype(np.uint8))


def test_floating_point_pixels_are_refused_not_guessed():
    buffer = io.BytesIO()
    Image.new("F", (8, 8), 0.5).save(buffer, "TIFF")
    with pytest.raises(BadImage, match="no known range"):
        decode(buffer.getvalue(), 8, 8)


def test_an_image_of_the_right_size_keeps_its_pixels():
    rng = np.random.default_rng(0)
    original = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(original).save(buffer, "PNG")
    assert np.array_equal(decode(buffer.getvalue(), 32, 32), original)


def test_exif_orientation_is_applied():
    image = Image.new("RGB", (8, 4), (255, 0, 0))
    image.paste((0, 0, 255), (4, 0, 8, 4))  # red on the left, blue on the right
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise: red is on top
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    pixels = decode(buffer.getvalue(), 8, 4)
    assert pixels[0, 0, 0] > 200
    assert pixels[7, 0, 2] > 200


def test_zero_bytes_are_refused():
    with pytest.raises(BadImage, match="empty"):
        decode(b"", 32, 32)


def test_what_is_no_image_is_refused():
    with pytest.raises(BadImage, match="not an image"):
        decode(b"hello, this is text", 32, 32)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_truncated_image_is_refused(kind):
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, kind)
    with pytest.raises(BadImage, match=r"truncated|broken"):
        decode(buffer.getvalue()[: len(buffer.getvalue()) // 2], 32, 32)


@pytest.mark.parametrize("side", [9_000, 20_000])  # above our limit; above Pillow's own as well
def test_a_decompression_bomb_is_refused_before_it_is_decoded(side):
    bomb = encoded(side, side, mode="1")
    assert len(bomb) < 100_000
    with pytest.raises(BadImage, match="the limit is 64000000 pixels"):
        decode(bomb, 32, 32)


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {"subsampling": 0}),
        ("RGB", {"subsampling": 1}),
        ("RGB", {"subsampling": 2}),
        ("RGB", {"progressive": True}),
        ("RGB", {"quality": 30, "optimize": True}),
        ("L", {}),
        ("CMYK", {}),
    ],
)
@pytest.mark.parametrize("size", [(32, 32), (31, 45), (100, 70), (300, 200)])
def test_a_jpeg_has_the_pixels_that_pillow_gives_it(mode, options, size):
    noise = np.random.default_rng(0).integers(0, 256, (size[1] // 4 + 1, size[0] // 4 + 1, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize(size).convert(mode).save(buffer, "JPEG", **options)
    with Image.open(io.BytesIO(buffer.getvalue())) as image:
        image.draft("RGB", (64, 64))
        expected = image.convert("RGB")
    if expected.size != (32, 32):
        expected = expected.resize((32, 32), Image.Resampling.BICUBIC)
    assert np.array_equal(decode(buffer.getvalue(), 32, 32), np.asarray(expected))


def test_a_jpeg_with_a_true_start_and_a_false_rest_is_refused():
    whole = encoded(32, 32, "JPEG")
    for broken in (whole[:3], whole[:40], whole[:-40], whole[:100] + bytes(200), b"\xff\xd8\xff" + bytes(500)):
        with pytest.raises(BadImage):
            decode(broken, 32, 32)


def test_only_small_jpegs_are_quick():
    assert is_quick(encoded(64, 64, "JPEG"))
    assert not is_quick(encoded(65, 64, "JPEG"))
    assert not is_quick(encoded(8, 8, "PNG"))
    assert not is_quick(encoded(8, 8, "JPEG")[:20])
    assert not is_quick(b"")


def progressive(side: int = 64) -> bytes:
    return encoded(side, side, "JPEG", "L", progressive=True)


def with_empty_scans(jpeg: bytes, count: int) -> bytes:
    """`count` scans of nothing before the first one of the picture: each goes over every pixel."""
    first = jpeg.index(b"\xff\xda")
    # One Huffman code, "this band of coefficients is zero in the 16,384 blocks that follow", and scans made of it.
    table = b"\xff\xc4" + struct.pack(">HB16BB", 20, 0x10, 1, *[0] * 15, 0xE0)
    scan = b"\xff\xda" + struct.pack(">HB2B3B", 8, 1, 1, 0, 1, 63, 0) + bytes(3)
    return jpeg[:first] + table + scan * count + jpeg[first:]


def test_a_jpeg_of_a_thousand_empty_scans_is_refused_before_it_is_decoded():
    with pytest.raises(BadImage, match="more than 100 scans"):
        decode(with_empty_scans(progressive(), 1000), 32, 32)
    assert decode(with_empty_scans(progressive(), 50), 32, 32).shape == (32, 32, 3)


def test_what_looks_like_scans_behind_a_jpeg_and_in_its_metadata_is_none():
    whole = progressive()
    film = b"\xff\xda\x00\x08" * 1000
    comment = b"\xff\xfe" + struct.pack(">H", 2 + len(film)) + film
    assert np.array_equal(decode(whole + film, 32, 32), decode(whole, 32, 32))
    assert np.array_equal(decode(whole[:2] + comment + whole[2:], 32, 32), decode(whole, 32, 32))


def test_a_side_longer_than_any_jpeg_has_is_refused_since_resizing_it_takes_gigabytes():
    with pytest.raises(BadImage, match="65536 x 1 pixels; the limit is 65535 a side"):
        decode(encoded(65_536, 1, mode="1"), 32, 32)
    assert decode(encoded(65_535, 1, mode="1"), 32, 32).shape == (32, 32, 3)


@pytest.mark.parametrize("kind", ["EPS", "PPM", "PCX", "JPEG2000", "ICO", "TGA"])
def test_formats_that_nobody_was_promised_are_not_even_tried(kind):
    with pytest.raises(BadImage, match="not an image that can be read"):
        decode(encoded(32, 32, kind), 32, 32)


def test_a_jpeg_that_is_quick_has_few_bytes_too():
    assert is_quick(encoded(64, 64, "JPEG") + bytes(60_000))
    assert not is_quick(encoded(64, 64, "JPEG") + bytes(70_000))


def test_what_a_parser_stumbled_over_is_not_told_to_the_caller(monkeypatch):
    def stumbles(*arguments, **options):
        raise KeyError("a secret detail")

    monkeypatch.setattr("services.common.images.Image.open", stumbles)
    with pytest.raises(BadImage) as caught:
        decode(b"anything", 32, 32)
    assert str(caught.value) == "the image is broken or truncated"


def test_decoding_many_pixels_takes_no_more_memory_than_the_picture_itself():
    bomb = encoded(7_000, 7_000, mode="RGB")  # 196 MB in Pillow, which has four bytes a pixel
    program = (
        "import sys, resource; from services.common.images import decode;"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024;"
        "before = peak(); decode(sys.stdin.buffer.read(), 32, 32); print(peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", program], input=bomb, capture_output=True, check=True)
    assert float(done.stdout) < 1.3 * 196
