"""Stills as a viewer shows them, whatever their suffix."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, features

from cosmos_distill.data.errors import DataError
from cosmos_distill.data.images import is_image, read_image
from tests.data.video_files import encode, numbered, quadrants

Transpose = Image.Transpose
# What was done to a picture that lies upright before it was stored with this orientation.
STORED = {
    1: None,
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_90,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_270,
}


def off(image: np.ndarray, wanted: np.ndarray) -> int:
    assert image.shape == wanted.shape and image.dtype == np.uint8
    return int(np.abs(image.astype(int) - wanted).max())


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_exif_orientations(tmp_path: Path, orientation: int, suffix: str) -> None:
    upright = quadrants()
    how = STORED[orientation]
    image = Image.fromarray(upright) if how is None else Image.fromarray(upright).transpose(how)
    exif = image.getexif()
    exif[0x0112] = orientation
    settings = {"jpg": {"quality": 98, "subsampling": 0}, "webp": {"lossless": True}}.get(suffix, {})
    image.save(tmp_path / f"photo.{suffix}", exif=exif, **settings)
    assert off(read_image(tmp_path / f"photo.{suffix}"), upright) < 12


@pytest.mark.parametrize(
    "kind", ["png", "gif", "webp", "bmp", "tiff", "ppm", "jpeg", "jpeg2000", "avif", "tga"]
)
@pytest.mark.parametrize("suffix", [".png", ".JPEG", ".mp4", ""])
def test_the_bytes_say_what_is_an_image(tmp_path: Path, kind: str, suffix: str) -> None:
    if kind == "avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    path = tmp_path / f"picture{suffix}"
    settings = {"webp": {"lossless": True}, "avif": {"quality": 100}, "jpeg": {"quality": 98}}.get(kind, {})
    Image.fromarray(quadrants()).save(path, format=kind, **settings)
    assert is_image(path)
    assert abs(read_image(path).astype(int) - quadrants()).mean() < 6


def test_a_video_is_no_image(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", numbered(3))
    path = path.rename(tmp_path / "a.png")
    assert not is_image(path)
    with pytest.raises(DataError, match=r"a\.png is no image"):
        read_image(path)
    (tmp_path / "list.png").write_text("ffconcat version 1.0\nfile a.png\n")
    assert not is_image(tmp_path / "list.png")


def png(pixels: np.ndarray, bits: int, chunks: Sequence[tuple[bytes, bytes]] = (), kind: int = 0) -> bytes:
    """A PNG by hand: Pillow writes only some of what it reads."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.tobytes() for row in pixels.astype(">u2" if bits == 16 else np.uint8))
    extra = b"".join(chunk(name, data) for name, data in chunks)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
        + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )  # fmt: skip


RAMP = np.linspace(0, 65535, 32 * 32).reshape(32, 32).round().astype(np.uint16)


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat((values / 257).round().astype(np.uint8)[..., None], 3, -1)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm", "big.tif"])
def test_sixteen_bits_of_grey(tmp_path: Path, name: str) -> None:
    image = Image.fromarray(RAMP)
    if name == "big.tif":
        image = Image.frombytes("I;16B", (32, 32), RAMP.astype(">u2").tobytes())
    image.save(tmp_path / name)
    assert off(read_image(tmp_path / name), grey(RAMP)) <= 1


def test_sixteen_bits_in_other_layouts(tmp_path: Path) -> None:
    colours = np.stack([RAMP, RAMP[::-1], RAMP.T], -1)
    for kind, pixels, wanted in (
        (2, colours, (colours / 257).round()),
        (4, np.stack([RAMP, np.full_like(RAMP, 65535)], -1), grey(RAMP)),
        (6, np.concatenate([colours, np.full_like(RAMP, 32896)[..., None]], -1), colours / 257 * 128 / 255),
    ):
        path = tmp_path / f"{kind}.png"
        path.write_bytes(png(pixels, 16, kind=kind))
        assert off(read_image(path), wanted) <= 2, kind
    path = tmp_path / "transparent.png"
    level = int(RAMP[16, 16])
    path.write_bytes(png(RAMP, 16, [(b"tRNS", struct.pack(">H", level))]))
    image = read_image(path)
    assert image[16, 16].max() == 0 and image[16, 15].min() > 120
    white_is_zero = Image.fromarray(RAMP)
    white_is_zero.save(tmp_path / "w.tif", tiffinfo={262: 0})
    with Image.open(tmp_path / "w.tif") as saved:
        if saved.tag_v2[262] == 0:
            assert off(read_image(tmp_path / "w.tif"), 255 - grey(RAMP)) <= 1


@pytest.mark.parametrize("mode, name", [("F", "floating-point"), ("I", "32-bit integers")])
def test_numbers_without_white_are_refused(tmp_path: Path, mode: str, name: str) -> None:
    Image.fromarray(RAMP.astype(np.float32 if mode == "F" else np.int32)).save(tmp_path / "depth.tif")
    with pytest.raises(DataError, match=rf"depth\.tif.*{name}"):
        read_image(tmp_path / "depth.tif")


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "YCbCr", "P"])
def test_modes(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(quadrants()).convert(mode)
    image.save(tmp_path / "a.tif")
    assert off(read_image(tmp_path / "a.tif"), np.asarray(image.convert("RGB"))) < 9


def test_transparency_lies_on_black(tmp_path: Path) -> None:
    rgb = quadrants()
    alpha = np.full((48, 64), 128, np.uint8)
    alpha[:, :16] = 0
    rgba = Image.fromarray(np.dstack([rgb, alpha]))
    wanted = (rgb * (alpha[..., None] / 255)).round()
    for name in ("a.png", "a.webp", "a.tif"):
        rgba.save(tmp_path / name, **({"lossless": True, "exact": True} if name == "a.webp" else {}))
        assert off(read_image(tmp_path / name), wanted) <= 1, name
    rgba.convert("LA").save(tmp_path / "la.png")
    assert off(read_image(tmp_path / "la.png")[:, :16], np.zeros((48, 16, 3))) == 0
    palette = Image.fromarray(rgb).quantize(16)
    hidden = palette.getpixel((0, 0))
    for name in ("p.png", "p.gif"):
        palette.save(tmp_path / name, transparency=hidden)
        image = read_image(tmp_path / name)
        assert image[0, 0].max() == 0 and off(image[:24, 32:], rgb[:24, 32:]) < 8, name
    palette.save(tmp_path / "half.png", transparency=bytes([128]) * 16)
    assert off(read_image(tmp_path / "half.png"), (rgb * (128 / 255)).round()) < 6
    Image.fromarray(rgb).save(tmp_path / "key.png", transparency=(200, 30, 30))
    assert read_image(tmp_path / "key.png")[0, 0].max() == 0


def test_colours_of_a_profile_become_srgb(tmp_path: Path) -> None:
    """A profile whose red and blue are exchanged: whoever ignores it sees the wrong colours."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = srgb.replace(b"rXYZ", b"xxxx", 1).replace(b"bXYZ", b"rXYZ", 1).replace(b"xxxx", b"bXYZ", 1)
    swapped = swapped.replace("sRGB".encode("utf-16-be"), "odd ".encode("utf-16-be")).replace(
        b"sRGB", b"odd "
    )
    image = Image.fromarray(quadrants())
    image.save(tmp_path / "odd.png", icc_profile=swapped)
    assert off(read_image(tmp_path / "odd.png"), quadrants()[..., ::-1]) < 6
    rgba = image.convert("RGBA")
    rgba.putalpha(128)
    rgba.save(tmp_path / "odd-alpha.png", icc_profile=swapped)
    assert off(read_image(tmp_path / "odd-alpha.png"), quadrants()[..., ::-1] * (128 / 255)) < 6
    for name, profile in (("plain", srgb), ("broken", b"no profile at all")):
        image.save(tmp_path / f"{name}.png", icc_profile=profile)
        assert off(read_image(tmp_path / f"{name}.png"), quadrants()) == 0
    exif = image.getexif()
    exif[0x0112] = 6
    image.transpose(Transpose.ROTATE_90).save(tmp_path / "turned.png", icc_profile=swapped, exif=exif)
    assert off(read_image(tmp_path / "turned.png"), quadrants()[..., ::-1]) < 6


@pytest.mark.parametrize("kind", ["gif", "webp", "png", "avif"])
def test_what_moves_is_no_still(tmp_path: Path, kind: str) -> None:
    if kind == "avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    frames = [Image.fromarray(quadrants()), Image.fromarray(255 - quadrants())]
    frames[0].save(tmp_path / "moves", format=kind, save_all=True, append_images=frames[1:], duration=100)
    assert is_image(tmp_path / "moves")
    with pytest.raises(DataError, match="moves is an animated image of 2 frames"):
        read_image(tmp_path / "moves")


def test_pages_do_not_move(tmp_path: Path) -> None:
    """Phones store a depth map or a second eye behind the photo (MPO); scanners store pages."""
    for kind in ("mpo", "tiff"):
        pages = [Image.fromarray(quadrants()), Image.fromarray(255 - quadrants())]
        pages[0].save(tmp_path / kind, format=kind, save_all=True, append_images=pages[1:])
        assert abs(read_image(tmp_path / kind).astype(int) - quadrants()).mean() < 4, kind


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif", "tiff", "bmp", "jpeg2000"])
def test_cut_off_and_damaged(tmp_path: Path, kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = io.BytesIO()
    Image.fromarray(noise).save(whole, format=kind)
    data = whole.getvalue()
    for share in (0.1, 0.5, 0.9):
        path = tmp_path / f"cut-{share}"
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(DataError, match=f"cut-{share}"):
            read_image(path)


def test_claimed_sizes_are_bounded(tmp_path: Path) -> None:
    for side in (20_000, 2**31 - 1):
        path = tmp_path / f"{side}.png"
        path.write_bytes(
            png(np.zeros((1, 1)), 8).replace(struct.pack(">II", 1, 1), struct.pack(">II", side, side))
        )
        header = path.read_bytes()
        path.write_bytes(header[:29] + struct.pack(">I", zlib.crc32(header[12:29])) + header[33:])
        with pytest.raises(DataError, match=rf"{side}\.png"):
            read_image(path)
        with pytest.raises(DataError, match=rf"{side}\.png"):
            is_image(path)


@pytest.mark.parametrize("transfer, name", [(16, "PQ"), (18, "HLG")])
def test_hdr_is_refused(tmp_path: Path, transfer: int, name: str) -> None:
    path = tmp_path / "bright.png"
    path.write_bytes(png(quadrants(), 8, [(b"cICP", bytes([9, transfer, 0, 1]))], kind=2))
    with pytest.raises(DataError, match=rf"bright\.png is HDR \({name}\)"):
        read_image(path)
    path.write_bytes(png(quadrants(), 8, [(b"cICP", bytes([1, 13, 0, 1]))], kind=2))
    assert off(read_image(path), quadrants()) == 0
    if features.check("avif"):
        Image.fromarray(quadrants()).save(tmp_path / "bright.avif")
        data = (tmp_path / "bright.avif").read_bytes()
        at = data.index(b"colrnclx") + 8
        (tmp_path / "bright.avif").write_bytes(data[: at + 2] + bytes([0, transfer]) + data[at + 4 :])
        with pytest.raises(DataError, match=rf"bright\.avif is HDR \({name}\)"):
            read_image(tmp_path / "bright.avif")


def test_formats_that_run_a_program_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "figure.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    assert not is_image(path)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", tmp_path, Path("/dev/zero"), tmp_path / "none.png"):
        with pytest.raises(DataError):
            is_image(path)
        with pytest.raises(DataError):
            read_image(path)


def test_what_a_png_says_of_light_is_found_behind_long_texts_and_nowhere_else(tmp_path: Path) -> None:
    path, bright = tmp_path / "a.png", (b"cICP", bytes([9, 16, 0, 1]))
    path.write_bytes(png(quadrants(), 8, [(b"tEXt", b"prompt\0" + b"x" * 2**17), bright], kind=2))
    with pytest.raises(DataError, match=r"a\.png is HDR \(PQ\)"):
        read_image(path)
    path.write_bytes(png(quadrants(), 8, [(b"tEXt", b"about\0cICP\x10\x10\x10\x10")], kind=2))
    assert off(read_image(path), quadrants()) == 0
