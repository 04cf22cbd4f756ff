"""Geometry, transparency and colours of decoded frames, as a player shows them."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from cosmos_distill.data.boxes import Crop
from cosmos_distill.data.clips import decode, probe, window
from cosmos_distill.data.display import Display
from cosmos_distill.data.errors import DataError
from tests.data.video_files import add_clean_aperture, encode, quadrants


def first(path: Path) -> np.ndarray:
    """The first frame, after checking that nothing but decoding tells another size."""
    frames, _ = decode(path)
    info = probe(path)
    assert frames[0].shape == (info.height, info.width, 3) and frames[0].dtype == np.uint8
    assert (window(path, range(0, 1)).frames[0] == frames[0]).all()
    return frames[0]


def off(image: np.ndarray, wanted: np.ndarray) -> int:
    assert image.shape == wanted.shape
    return int(np.abs(image.astype(int) - wanted).max())


FLIPS = ("", "left-right", "top-bottom")
TURNS = [(name, turn, flip) for name in ("mp4", "mov") for turn in (0, 90, 180, 270) for flip in FLIPS]


@pytest.mark.parametrize(
    ("container", "turn", "flip"), [*TURNS, *(("mkv", turn, "") for turn in (90, 180, 270))]
)  # Matroska knows turns only
def test_turned_and_mirrored(tmp_path: Path, container: str, turn: int, flip: str) -> None:
    stored = quadrants()
    path = tmp_path / f"clip.{container}"
    encode(
        path, [stored] * 3, container="matroska" if container == "mkv" else None,
        prepare=lambda s: s.set_display_rotation(turn, flip == "left-right", flip == "top-bottom"),
    )  # fmt: skip
    shown = np.rot90(stored, turn // 90)  # both count against the clock
    shown = shown[:, ::-1] if flip == "left-right" else shown[::-1] if flip == "top-bottom" else shown
    assert off(first(path), shown) < 4


@pytest.mark.parametrize("turn", [0, 90, 180, -90])
def test_a_turn_beside_what_pyav_has_no_name_for(turn: int) -> None:
    class Frame:
        """As of a stereo clip: the list of side data cannot be made, the angle is known."""

        width, height, rotation, color_trc, colorspace = 64, 48, turn, 1, 1
        format = av.VideoFrame(64, 48, "rgb24").format

        @property
        def side_data(self) -> None:
            raise ValueError("99 is not a valid Type")

        def reformat(self, **_: object) -> av.VideoFrame:
            return av.VideoFrame.from_ndarray(quadrants(), format="rgb24")

        color_range = 1

    shown = Display(Path("clip.mov"), None, Crop(0, 0, 0, 0)).rgb(Frame())
    assert off(shown, np.rot90(quadrants(), turn // 90)) == 0


def test_an_angle_in_between_is_refused(tmp_path: Path) -> None:
    path = encode(tmp_path / "tilted.mp4", [quadrants()] * 3, prepare=lambda s: s.set_display_rotation(30))
    for read in (probe, decode):
        with pytest.raises(
            DataError, match=r"tilted\.mp4: is shown turned by an angle that is no quarter turn"
        ):
            read(path)


@pytest.mark.parametrize("container", ["mp4", "mkv", "avi", "ts"])
@pytest.mark.parametrize(
    "aspect, size", [(Fraction(2), (48, 128)), (Fraction(1, 2), (96, 64)), (Fraction(12, 11), (48, 70))]
)
def test_pixels_become_square(
    tmp_path: Path, container: str, aspect: Fraction, size: tuple[int, int]
) -> None:
    path = encode(
        tmp_path / f"clip.{container}", [quadrants()] * 9, pix_fmt="yuv420p",
        container={"mkv": "matroska", "ts": "mpegts"}.get(container),
        prepare=lambda s: setattr(s.codec_context, "sample_aspect_ratio", aspect),
    )  # fmt: skip
    image = first(path)
    assert image.shape[:2] == size
    corners = [image[y, x] for y in (8, -9) for x in (8, -9)]
    assert off(np.array(corners), np.array([quadrants()[y, x] for y in (8, -9) for x in (8, -9)])) < 8


def test_wide_pixels_of_a_portrait_clip(tmp_path: Path) -> None:
    def prepare(stream: av.VideoStream) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(2)
        stream.set_display_rotation(90)

    image = first(encode(tmp_path / "clip.mp4", [quadrants()] * 3, prepare=prepare))
    assert image.shape == (128, 48, 3)  # made square as stored, then turned
    assert off(image[10, 10], quadrants()[10, -10]) < 4 and off(image[-10, 10], quadrants()[10, 10]) < 4


def test_an_absurd_pixel_aspect_takes_no_memory(tmp_path: Path) -> None:
    path = encode(
        tmp_path / "thin.mp4", [quadrants()] * 2,
        prepare=lambda s: setattr(s.codec_context, "sample_aspect_ratio", Fraction(2)),
    )  # fmt: skip
    data = path.read_bytes()
    assert data.count(b"pasp\0\0\0\2\0\0\0\1") == 1
    path.write_bytes(data.replace(b"pasp\0\0\0\2", b"pasp\0\1\0\0"))
    with pytest.raises(DataError, match=r"thin\.mp4: 4194304 x 48 pixels"):
        probe(path)


def test_clean_aperture(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mp4", [quadrants()] * 3)
    whole = first(path)
    add_clean_aperture(path, 40, 24, right=8, down=-4)
    assert (first(path) == whole[10:34, 16:56]).all()
    add_clean_aperture(outside := encode(tmp_path / "outside.mp4", [quadrants()] * 3), 80, 24)
    assert (first(outside) == whole).all()


def test_cropping_in_the_stream(tmp_path: Path) -> None:
    """H.264 stores whole blocks of 16 pixels and says how many are shown."""
    stored = quadrants(46, 62)
    assert off(first(encode(tmp_path / "clip.mp4", [stored] * 3)), stored) < 4


TRANSPARENT = {
    "qtrle.mov": ("qtrle", "argb"), "png.mov": ("png", "rgba"), "prores.mov": ("prores_ks", "yuva444p10le"),
    "ffv1.mkv": ("ffv1", "yuva420p"), "huffyuv.avi": ("huffyuv", "bgra"),
    "vp9.webm": ("libvpx-vp9", "yuva420p"),
    "vp8.webm": ("libvpx", "yuva420p"), "grey.mkv": ("ffv1", "ya8"),
}  # fmt: skip


@pytest.mark.parametrize("name", TRANSPARENT)
@pytest.mark.parametrize("tagged", [False, True])
def test_transparency_lies_on_black(tmp_path: Path, name: str, tagged: bool) -> None:
    codec, pix_fmt = TRANSPARENT[name]
    colours = quadrants().mean(-1, keepdims=True).repeat(3, -1) if name == "grey.mkv" else quadrants()
    alpha = np.full((48, 64, 1), 128)
    alpha[:, :16] = 0
    stored = np.concatenate([colours, alpha], -1).astype(np.uint8)
    container = "matroska" if name.endswith("mkv") else None
    quality = {"auto-alt-ref": "0", "b": "2M", "crf": "4"} if codec == "libvpx" else {}
    path = encode(
        tmp_path / name, [stored] * 3, codec=codec, pix_fmt=pix_fmt, container=container, options=quality,
        prepare=(lambda s: s.metadata.update(alpha_mode="1")) if tagged and "webm" in name else None,
    )  # fmt: skip
    wanted = colours * (alpha / 255)
    image = first(path)
    inner = np.abs(image - wanted)[4:-4, :].max(-1)
    edges = np.r_[12:20, 28:36]  # what is lossy blurs edges
    assert np.delete(inner, edges, 1)[np.r_[0:16, 24:40]].max() < (40 if name == "grey.mkv" else 14)
    assert len(decode(path)[0]) == probe(path).frames == 3


MATRICES = {"BT.709": (1, 1), "BT.601": (5, 6), "BT.601 625": (5, 5), "BT.2020": (9, 9), "SMPTE 240M": (7, 7)}


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p", "yuv422p10le"])
def test_colours_are_those_of_the_matrix_and_range(
    tmp_path: Path, matrix: str, full: bool, pix_fmt: str
) -> None:
    number, tag = MATRICES[matrix]
    path = encode(
        tmp_path / "clip.mp4", [quadrants()] * 2, pix_fmt=pix_fmt, matrix=number, full=full,
        tags={"colorspace": tag, "color_range": 2 if full else 1},
    )  # fmt: skip
    rows, columns = np.r_[0:18, 30:48], np.r_[0:26, 38:64]  # halved chroma mixes what meets
    assert off(first(path)[rows][:, columns], quadrants()[rows][:, columns]) < 6


@pytest.mark.parametrize(
    "size, matrix", [((48, 64), 5), ((576, 720), 5), ((480, 854), 5), ((720, 1280), 1), ((1280, 720), 1)]
)
def test_untagged_colours_are_what_players_take_them_for(
    tmp_path: Path, size: tuple[int, int], matrix: int
) -> None:
    stored = quadrants(*size)
    path = encode(tmp_path / "clip.mkv", [stored], matrix=matrix, container="matroska")
    with av.open(str(path)) as file:
        assert int(next(file.decode(video=0)).colorspace) == 2
    assert off(first(path), stored) < 6


@pytest.mark.parametrize(
    "pix_fmt", ["bgr0", "bgra", "gbrp10le", "gray", "gray10le", "gray16le", "yuv410p", "yuv444p16le"]
)
def test_layouts_of_pixels(tmp_path: Path, pix_fmt: str) -> None:
    grey = quadrants().mean(-1, keepdims=True).repeat(3, -1).round().astype(np.uint8)
    stored = grey if "gray" in pix_fmt or "410" in pix_fmt else quadrants()
    path = encode(tmp_path / "clip.mkv", [stored] * 2, codec="ffv1", pix_fmt=pix_fmt, container="matroska")
    image = first(path).astype(int)
    if "gray" in pix_fmt or "410" in pix_fmt:
        assert np.ptp(image, -1).max() < 4
    assert off(image, stored) < 4


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (17, 33), (47, 63)])
def test_odd_sizes(tmp_path: Path, size: tuple[int, int]) -> None:
    stored = np.full((*size, 3), 90, np.uint8)
    path = encode(tmp_path / "clip.mkv", [stored] * 2, codec="ffv1", container="matroska")
    assert off(first(path), stored) < 4


@pytest.mark.parametrize("transfer, name", [(16, "PQ"), (18, "HLG"), (8, "linear"), (9, "logarithmic")])
@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_what_is_no_ordinary_video_light_is_refused(
    tmp_path: Path, transfer: int, name: str, container: str
) -> None:
    tags = {"color_trc": transfer, "color_primaries": 9, "colorspace": 9, "color_range": 1}
    path = encode(
        tmp_path / f"bright.{container}", [quadrants()] * 3, codec="libx265", pix_fmt="yuv420p10le", matrix=9,
        tags=tags, options={"x265-params": "log-level=none"}, container={"mkv": "matroska"}.get(container),
    )  # fmt: skip
    for read in (probe, decode, lambda p: window(p, range(0, 2))):
        with pytest.raises(DataError, match=rf"bright.*{name}"):
            read(path)


def test_an_unknown_matrix_is_refused(tmp_path: Path) -> None:
    path = encode(tmp_path / "ycgco.mp4", [quadrants()] * 3, tags={"colorspace": 8})
    with pytest.raises(DataError, match=r"ycgco\.mp4: colour matrix 8"):
        probe(path)


def test_frames_of_another_size_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "changing.mkv"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mjpeg", rate=24)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuvj420p"
        for i in range(8):
            height = 32 if i < 4 else 48
            encoder = av.CodecContext.create("mjpeg", "w")
            encoder.width, encoder.height, encoder.pix_fmt = 32, height, "yuvj420p"
            encoder.time_base = Fraction(1, 24)
            frame = av.VideoFrame(32, height, "yuvj420p")
            frame.pts = i
            for packet in encoder.encode(frame):
                packet.stream, packet.time_base = stream, Fraction(1, 24)
                packet.pts = packet.dts = i
                out.mux(packet)
    assert len(window(path, range(0, 4)).frames) == 4
    with pytest.raises(DataError, match=r"changing\.mkv: its frames change from 32 x 32 to 32 x 48"):
        window(path, range(2, 6))
    with pytest.raises(DataError, match="frames change"):
        decode(path)


def test_interlaced_pictures_stay_as_stored(tmp_path: Path) -> None:
    lines = np.zeros((32, 32, 3), np.uint8)
    lines[::2] = 200
    path = encode(
        tmp_path / "clip.mp4", [lines] * 3, options={"flags": "+ildct+ilme", "x264-params": "interlaced=1"}
    )
    assert off(first(path), lines) < 4
