"""Still images as a viewer shows them: turned as EXIF says, transparent ones on black, 16 bits scaled to 8.

The bytes decide what a file is, not its suffix. An image that moves (GIF, WebP, PNG or AVIF of several
frames) is refused: it is neither a still nor a video. Colours of an embedded ICC profile become sRGB's.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from cosmos_distill.data.display import HDR, on_black
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.opening import open_regular
from cosmos_distill.members import File

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

_NO_IMAGES = {"EPS", "WMF", "MPEG", "FPX", "MIC", "BUFR", "GRIB", "HDF5", "IPTC", "FITS"}
"""Formats of Pillow that run another program, hold no picture, or need a plug-in of somebody's."""
_MOVING = {"GIF", "WEBP", "PNG", "AVIF"}
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0


def is_image(path: File) -> bool:
    """Whether Pillow takes the file for an image. DataError when it cannot be opened or claims to be huge."""
    with _opened(path) as image:
        return image is not None


def read_image(path: File) -> np.ndarray:
    """RGB uint8 [H, W, 3]. Raises DataError, naming file and reason, when it cannot be shown."""
    with _opened(path) as image:
        if image is None:
            raise DataError(f"{path} is no image")
        frames = getattr(image, "n_frames", 1)
        if image.format in _MOVING and frames > 1:
            raise DataError(
                f"{path} is an animated image of {frames} frames, neither a still nor a video: save the one "
                "you mean as PNG, or make it a video (ffmpeg -i)"
            )
        try:
            image.load()
            return _rgb(image, path)
        except DataError:
            raise
        except Exception as error:  # each plug-in of Pillow has its own ways to say that a file is broken
            raise DataError(f"{path}: damaged or cut off image ({error or type(error).__name__})") from error


@contextmanager
def _opened(path: File) -> Iterator[Picture | None]:
    from PIL import Image, UnidentifiedImageError

    Image.init()
    with open_regular(path) as raw, io.BufferedReader(raw) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd tags; what cannot be read raises
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image = Image.open(file, formats=sorted(set(Image.OPEN) - _NO_IMAGES))
        except UnidentifiedImageError:
            image = None
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise DataError(f"{path} claims too many pixels ({error}): make it smaller") from error
        except Exception as error:
            raise DataError(f"{path}: damaged image ({error or type(error).__name__})") from error
        yield image


def _rgb(image: Picture, path: File) -> np.ndarray:
    from PIL import ImageOps

    _refuse_hdr(image, path)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        image = _eight_bits(image)
    elif image.mode in ("I", "F"):
        kind = "32-bit integers" if image.mode == "I" else "floating-point numbers"
        raise DataError(f"{path} holds {kind}, which say no black and no white: save it with 8 or 16 bits")
    image = ImageOps.exif_transpose(_srgb(image))
    if image.has_transparency_data:
        return on_black(np.asarray(image.convert("RGBA")))
    return np.asarray(image.convert("RGB"))


def _eight_bits(image: Picture) -> Picture:
    """16 bits, or the fewer that a TIFF says it uses of them, scaled to 8."""
    from PIL import Image

    values, white, tags = np.asarray(image).astype(np.float32), 65535, getattr(image, "tag_v2", {})
    if image.format == "TIFF":
        white = 2 ** tags.get(_BITS_PER_SAMPLE, (16,))[0] - 1
    grey = values.clip(0, white) * (255 / white)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        grey = 255 - grey
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 0
    small = Image.fromarray(grey.round().astype(np.uint8))
    small.info = {key: value for key, value in image.info.items() if key != "transparency"}
    small.getexif().update(image.getexif())
    return small


def _srgb(image: Picture) -> Picture:
    """The image with the colours of its ICC profile turned into sRGB's; a broken profile is passed over."""
    from PIL import ImageCms

    profile = image.info.get("icc_profile")
    if not profile:
        return image
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        name = ImageCms.getProfileDescription(own)
        mode = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}.get(own.profile.xcolor_space.strip(), "")
        if name.startswith("sRGB") or not mode:
            return image
        colour = (
            image if image.mode == mode else image.convert("RGBA" if mode == "RGB" else mode).convert(mode)
        )
        result = ImageCms.profileToProfile(colour, own, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image
    if result is None:
        return image
    if image.has_transparency_data:
        result.putalpha(image.convert("RGBA").getchannel("A"))
    result.getexif().update(image.getexif())
    return result


def _png_chunk(file: io.RawIOBase, wanted: bytes) -> bytes:
    """The first bytes of a chunk that comes before the pixels, however long the texts before it are; nothing
    where there is none."""
    file.seek(8)
    while len(header := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", header)
        if kind == wanted:
            return file.read(min(length, 16))
        if kind == b"IDAT":
            break
        file.seek(length + 4, io.SEEK_CUR)
    return b""


def _refuse_hdr(image: Picture, path: File) -> None:
    """Raises DataError for PQ and HLG. PNG says so in its chunk cICP and AVIF in its box colr, as numbers of
    ITU-T H.273; Pillow passes over both."""
    if image.format not in ("PNG", "AVIF"):
        return
    with open_regular(path) as file:
        if image.format == "PNG":
            transfer = _png_chunk(file, b"cICP")[1:2]
        else:
            transfer = file.read(2**16).partition(b"colrnclx")[2][3:4]
    kind = HDR.get(int.from_bytes(transfer))
    if kind:
        raise DataError(f"{path} is HDR ({kind}), which is not tone-mapped here: save it in sRGB")
