"""TIFF files of every layout, made here, read back against what was put in and against tifffile's own reading."""

from __future__ import annotations

import contextlib
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from slideloom.errors import SlideError
from slideloom.slides.image import Level
from slideloom.slides.open import open_image, open_raw
from slideloom.slides.source import Source

RNG = np.random.default_rng(7)


def noise(*shape: int, dtype: Any = np.uint8) -> NDArray[Any]:
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return RNG.normal(size=shape).astype(kind)
    return RNG.integers(0, min(np.iinfo(kind).max, 60000), shape, endpoint=True).astype(kind)


def smooth(height: int, width: int) -> NDArray[np.uint8]:
    y, x = np.mgrid[:height, :width]
    return np.stack([y % 256, x % 256, (x + y) % 256], -1).astype(np.uint8)


def whole(path: Path, modality: str, level: int = 0, member: str = "") -> NDArray[Any]:
    with open_image(Source(path, member), modality) as image:
        at = image.levels[level]
        return image.read(level, 0, 0, at.height_px, at.width_px)


def refusal(path: Path, modality: str = "sp", member: str = "") -> SlideError:
    with pytest.raises(SlideError) as caught:
        open_image(Source(path, member), modality).close()
    assert str(path) in str(caught.value)
    return caught.value


LAYOUTS: dict[str, dict[str, Any]] = {
    "strips": {"rowsperstrip": 7},
    "one strip": {"rowsperstrip": 1000, "compression": "zlib"},
    "strips lzw predictor": {"rowsperstrip": 16, "compression": "lzw", "predictor": True},
    "tiles": {"tile": (32, 48)},
    "tiles zstd": {"tile": (32, 48), "compression": "zstd", "predictor": True},
    "big-endian": {"byteorder": ">", "rowsperstrip": 11},
    "big-endian tiles": {"byteorder": ">", "tile": (64, 32), "compression": "zlib"},
    "bigtiff": {"bigtiff": True, "tile": (16, 16)},
    "contiguous": {},
}
DTYPES = [np.uint8, np.uint16, np.float32]


def write(path: Path, data: NDArray[Any], **options: Any) -> Path:
    outer = {key: options.pop(key) for key in ("bigtiff", "byteorder", "ome", "imagej") if key in options}
    with tifffile.TiffWriter(path, **outer) as file:
        file.write(data, **options)
    return path


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("axes", ["YX", "CYX", "YXS", "SYX"])
def test_every_layout_gives_back_what_was_written(tmp_path: Path, layout: str, axes: str, dtype: Any) -> None:
    shape = {"YX": (101, 90), "CYX": (5, 101, 90), "YXS": (101, 90, 3), "SYX": (3, 101, 90)}[axes]
    data = noise(*shape, dtype=dtype)
    options = dict(LAYOUTS[layout], photometric="rgb" if "S" in axes else "minisblack", metadata=None)
    if axes == "SYX":
        options["planarconfig"] = "separate"
    path = write(tmp_path / "a.tif", data, **options)
    expected = data[None] if axes == "YX" else data.transpose(2, 0, 1) if axes == "YXS" else data
    with open_image(Source(path), "sp") as image:
        assert (image.height_px, image.width_px, image.n_channels) == (101, 90, len(expected))
        assert image.dtype == np.dtype(dtype)
        for y, x, height, width in [(0, 0, 101, 90), (100, 89, 1, 1), (30, 40, 50, 20), (0, 47, 33, 2)]:
            read = image.read(0, y, x, height, width)
            np.testing.assert_array_equal(read, expected[:, y : y + height, x : x + width])
            assert read.dtype == np.dtype(dtype)
            assert read.flags.c_contiguous
            assert read.flags.writeable


def test_rgb_as_he(tmp_path: Path) -> None:
    data = noise(40, 50, 3)
    for name, planar in (("contig", data), ("separate", data.transpose(2, 0, 1))):
        path = write(tmp_path / f"{name}.tif", planar, photometric="rgb", planarconfig=name)
        with open_image(Source(path), "he") as image:
            assert image.is_rgb
            assert image.channel_names == ("red", "green", "blue")
            assert image.warnings == ()
        np.testing.assert_array_equal(whole(path, "he"), data.transpose(2, 0, 1))


def test_grey_as_he_is_repeated_with_a_warning(tmp_path: Path) -> None:
    data = noise(20, 30)
    path = write(tmp_path / "a.tif", data)
    with open_image(Source(path), "he") as image:
        assert "grey" in " ".join(image.warnings)
        assert (image.n_channels, image.dtype) == (3, np.uint8)
    np.testing.assert_array_equal(whole(path, "he"), np.stack([data] * 3))


def test_white_is_zero(tmp_path: Path) -> None:
    data = noise(20, 30)
    path = write(tmp_path / "a.tif", data, photometric="miniswhite")
    np.testing.assert_array_equal(whole(path, "he"), np.stack([255 - data] * 3))
    np.testing.assert_array_equal(whole(path, "sp")[0], data)


@pytest.mark.parametrize("extra", ["unassalpha", "assocalpha", "unspecified"])
def test_fourth_sample(tmp_path: Path, extra: str) -> None:
    data = noise(20, 30, 4)
    data[:5, :, 3] = 255
    data[5:8, :, 3] = 0
    if extra == "assocalpha":
        data[..., :3] = np.minimum(data[..., :3], data[..., 3:])
    path = write(tmp_path / "a.tif", data, photometric="rgb", extrasamples=[extra])
    colour, alpha = data[..., :3].astype(float), data[..., 3:].astype(float)
    expected = {
        "unassalpha": (colour * alpha + 255 * (255 - alpha)) / 255,
        "assocalpha": colour + 255 - alpha,
        "unspecified": colour,
    }[extra]
    read = whole(path, "he")
    np.testing.assert_array_equal(read, np.floor(expected + 0.5).transpose(2, 0, 1))
    if extra != "unspecified":
        assert (read[:, 5:8] == 255).all(), "what is transparent is white"
    np.testing.assert_array_equal(whole(path, "sp"), data.transpose(2, 0, 1))


def test_colour_table(tmp_path: Path) -> None:
    data = noise(20, 30)
    table = RNG.integers(0, 65535, (3, 256), dtype=np.uint16)
    path = write(tmp_path / "a.tif", data, photometric="palette", colormap=table)
    np.testing.assert_array_equal(whole(path, "he"), (table >> 8).astype(np.uint8)[:, data])
    np.testing.assert_array_equal(whole(path, "sp")[0], data)


def test_cmyk(tmp_path: Path) -> None:
    data = noise(20, 30, 4)
    path = write(tmp_path / "a.tif", data, photometric="separated")
    assert refusal(path, "he").code == "not_rgb"
    with open_image(Source(path), "sp") as image:
        assert "CMYK" in " ".join(image.warnings)
    np.testing.assert_array_equal(whole(path, "sp"), data.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("dtype", "becomes"), [(np.int8, np.float32), (np.int16, np.float32), (np.float16, np.float32)]
)
def test_widened_types_keep_every_value(tmp_path: Path, dtype: Any, becomes: Any) -> None:
    info = np.finfo(dtype) if np.dtype(dtype).kind == "f" else np.iinfo(dtype)
    data = np.linspace(float(info.min), float(info.max), 600).astype(dtype).reshape(20, 30)
    path = write(tmp_path / "a.tif", data)
    with open_image(Source(path), "sp") as image:
        assert image.dtype == np.dtype(becomes)
        assert str(np.dtype(dtype)) in " ".join(image.warnings)
        read = image.read(0, 0, 0, 20, 30)[0]
    assert read.dtype == np.dtype(becomes)
    np.testing.assert_array_equal(read.astype(np.float64), data.astype(np.float64))


def test_bilevel(tmp_path: Path) -> None:
    data = RNG.random((20, 30)) > 0.5
    path = write(tmp_path / "a.tif", data)
    np.testing.assert_array_equal(whole(path, "sp")[0], data.astype(np.uint8))


@pytest.mark.parametrize("dtype", [np.uint32, np.int32, np.float64])
def test_types_that_would_be_altered_are_refused_but_read_raw(tmp_path: Path, dtype: Any) -> None:
    data = np.arange(600).reshape(20, 30).astype(dtype)
    path = write(tmp_path / "a.tif", data)
    assert refusal(path, "sp").code == "unsupported_dtype"
    raw = open_raw(Source(path))
    read = raw.read(0, 3, 4, 5, 6)
    np.testing.assert_array_equal(read[0], data[3:8, 4:10])
    assert read.dtype == np.dtype(dtype)
    raw.close()


def test_he_of_16_bits_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", noise(20, 30, 3, dtype=np.uint16), photometric="rgb")
    assert refusal(path, "he").code == "unsupported_dtype"


def test_pages_of_several_sizes_are_a_pyramid_when_they_fit(tmp_path: Path) -> None:
    data = smooth(301, 203)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(data, photometric="rgb", tile=(64, 64), metadata=None)
        file.write(data[::2, ::2], photometric="rgb", tile=(64, 64), subfiletype=1, metadata=None)
        file.write(data[::4, ::4], photometric="rgb", tile=(64, 64), subfiletype=1, metadata=None)
    with open_image(Source(tmp_path / "a.tif"), "he") as image:
        assert image.levels == (Level(301, 203, 1.0), Level(151, 102, 2.0), Level(76, 51, 4.0))
        np.testing.assert_array_equal(image.read(2, 0, 0, 76, 51), data[::4, ::4].transpose(2, 0, 1))


def test_an_image_beside_another_is_told(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(noise(30, 300), metadata=None)
        file.write(noise(200, 300), metadata=None)
    with open_image(Source(tmp_path / "a.tif"), "sp") as image:
        assert (image.height_px, image.width_px) == (200, 300)
        assert "2 images" in " ".join(image.warnings)


def pyramid(
    path: Path, data: NDArray[Any], factors: list[int], metadata: dict[str, Any] | None, **options: Any
) -> Path:
    rgb = data.shape[-1] == 3 and data.ndim == 3
    with tifffile.TiffWriter(path, ome=metadata is not None) as file:
        options = {"photometric": "rgb" if rgb else "minisblack", "tile": (64, 64), **options}
        file.write(data, subifds=len(factors), metadata=metadata, **options)
        for factor in factors:
            small = data[::factor, ::factor] if rgb else data[..., ::factor, ::factor]
            file.write(small, subfiletype=1, metadata=None, **options)
    return path


def test_ome_tiff_of_channels(tmp_path: Path) -> None:
    data = noise(6, 301, 203, dtype=np.uint16)
    names = ["DAPI", "CD3", "CD8", "PanCK", "Ki67", "CD20"]
    metadata = {
        "axes": "CYX",
        "Channel": {"Name": names},
        "PhysicalSizeX": 325.0,
        "PhysicalSizeXUnit": "nm",
        "PhysicalSizeY": 0.326,
        "PhysicalSizeYUnit": "µm",
    }
    path = pyramid(tmp_path / "a.ome.tif", data, [2, 4], metadata, compression="zlib")
    with open_image(Source(path), "sp") as image:
        assert image.reader == "tifffile/ome"
        assert image.channel_names == tuple(names)
        assert image.mpp_um == pytest.approx((0.326, 0.325))
        assert [level.downsample for level in image.levels] == [1, 2, 4]
        np.testing.assert_array_equal(image.read(0, 60, 60, 100, 100), data[:, 60:160, 60:160])
        np.testing.assert_array_equal(image.read(2, 0, 0, 76, 51), data[:, ::4, ::4])
    assert refusal(path, "he").code == "unsupported_dtype"


def test_ome_tiff_of_rgb(tmp_path: Path) -> None:
    data = smooth(301, 203)
    path = pyramid(
        tmp_path / "a.ome.tif", data, [2], {"axes": "YXS"}, compression="jpeg", compressionargs={"level": 95}
    )
    with tifffile.TiffFile(path) as file:
        expected = [level.asarray().transpose(2, 0, 1) for level in file.series[0].levels]
    with open_image(Source(path), "he") as image:
        assert image.warnings == ()
        assert image.mpp_um is None
        for level, pixels in enumerate(expected):
            np.testing.assert_array_equal(image.read(level, 0, 0, *pixels.shape[1:]), pixels)


def test_three_separate_channels_as_he(tmp_path: Path) -> None:
    data = noise(3, 50, 60)
    path = write(tmp_path / "a.ome.tif", data, ome=True, photometric="minisblack", metadata={"axes": "CYX"})
    np.testing.assert_array_equal(whole(path, "he"), data)
    named = {"axes": "CYX", "Channel": {"Name": ["DAPI", "CD3", "PanCK"]}}
    path = write(tmp_path / "b.ome.tif", data, ome=True, photometric="minisblack", metadata=named)
    with open_image(Source(path), "he") as image:
        assert "DAPI" in " ".join(image.warnings)


def edit_ome(path: Path, pattern: str, text: str) -> Path:
    with tifffile.TiffFile(path) as file:
        xml = file.ome_metadata
    assert xml is not None
    edited, count = re.subn(pattern, text, xml)
    assert count
    tifffile.tiffcomment(path, edited.encode())
    return path


@pytest.mark.parametrize(
    ("pattern", "text", "code"),
    [
        (r'SizeC="4"', 'SizeC="19"', "metadata_mismatch"),
        (r'SizeX="60"', 'SizeX="6000"', "metadata_mismatch"),
        (r'Type="uint8"', 'Type="uint16"', "metadata_mismatch"),
        (r'SizeC="4"', 'SizeC="3"', "metadata_mismatch"),
        (r'SizeC="4" SizeZ="1"(.*?)<Channel .*</Channel>', r'SizeC="1" SizeZ="4"\1', "ok"),
        (r'SizeC="4" SizeZ="1"(.*?)<Channel .*</Channel>', r'SizeC="2" SizeZ="2"\1', "unsupported_layout"),
        (
            r'SizeC="4"(.*)<Channel ID="Channel:0:3" SamplesPerPixel="1"><LightPath/></Channel>(.*)PlaneCount="4"',
            r'SizeC="3"\1\2PlaneCount="3"',
            "warned",
        ),
        (r"</Image></OME>", "</Image>", "metadata_mismatch"),
        (r"<TiffData [^>]*/>", '<TiffData IFD="0"><UUID FileName="b.tif">urn:uuid:1</UUID></TiffData>', "multi_file"),
        (r"<Image .*</Image>", '<BinaryOnly MetadataFile="b.companion.ome" UUID="u"/>', "multi_file"),
    ],
)
def test_ome_xml_that_does_not_fit(tmp_path: Path, pattern: str, text: str, code: str) -> None:
    path = write(tmp_path / "a.ome.tif", noise(4, 50, 60), ome=True, photometric="minisblack", metadata={"axes": "CYX"})
    edit_ome(path, pattern, text)
    if code == "warned":
        with open_image(Source(path), "sp") as image:
            assert image.n_channels == 3
            assert "1 more pages" in " ".join(image.warnings)
    elif code == "ok":
        assert whole(path, "sp").shape == (4, 50, 60)
    else:
        assert refusal(path, "sp").code == code


def test_some_channels_without_a_name(tmp_path: Path) -> None:
    metadata = {"axes": "CYX", "Channel": {"Name": ["DAPI", "x", "CD3"]}}
    path = write(tmp_path / "a.ome.tif", noise(3, 50, 60), ome=True, photometric="minisblack", metadata=metadata)
    edit_ome(path, r'Name="x"', "")
    with open_image(Source(path), "sp") as image:
        assert image.channel_names == ("DAPI", "channel_1", "CD3")
        assert any("no name" in warning for warning in image.warnings)


@pytest.mark.parametrize(
    ("size", "unit", "mpp", "warned"),
    [("0.5", "µm", 0.5, False), ("500", "nm", 0.5, False), ("1", "pixel", None, True), ("-1", "µm", None, True)],
)
def test_ome_units(tmp_path: Path, size: str, unit: str, mpp: float | None, warned: bool) -> None:
    metadata = {"axes": "YX", "PhysicalSizeX": 9.0, "PhysicalSizeY": 9.0}
    path = write(tmp_path / "a.ome.tif", noise(50, 60), ome=True, metadata=metadata)
    edit_ome(
        path,
        r'PhysicalSize([XY])="9.0"( PhysicalSize[XY]Unit="[^"]*")?',
        rf'PhysicalSize\1="{size}" PhysicalSize\1Unit="{unit}"',
    )
    with open_image(Source(path), "sp") as image:
        assert image.mpp_um == (None if mpp is None else pytest.approx((mpp, mpp)))
        assert bool(image.warnings) is warned


@pytest.mark.parametrize(
    ("resolution", "unit", "mpp", "warned"),
    [
        ((20000, 40000), "CENTIMETER", (0.25, 0.5), False),  # x, y in the tag
        ((50800, 50800), "INCH", (0.5, 0.5), False),
        ((72, 72), "INCH", None, True),
        ((300, 300), "INCH", None, True),
        ((1, 1), "NONE", None, False),
    ],
)
def test_resolution_tag(
    tmp_path: Path, resolution: tuple[float, float], unit: str, mpp: tuple[float, float] | None, warned: bool
) -> None:
    path = write(tmp_path / "a.tif", noise(50, 60), resolution=resolution, resolutionunit=unit)
    with open_image(Source(path), "sp") as image:
        assert image.mpp_um == (None if mpp is None else pytest.approx(mpp))
        assert bool(image.warnings) is warned


def test_imagej_hyperstack(tmp_path: Path) -> None:
    data = noise(3, 40, 50, dtype=np.uint16)
    metadata = {"axes": "CYX", "unit": "micron", "Labels": ["DAPI", "CD3", "CD8"]}
    path = write(tmp_path / "a.tif", data, imagej=True, resolution=(2.0, 4.0), metadata=metadata)
    with open_image(Source(path), "sp") as image:
        assert image.reader == "tifffile/imagej"
        assert image.mpp_um == pytest.approx((0.25, 0.5))
        assert image.channel_names == ("DAPI", "CD3", "CD8")
    np.testing.assert_array_equal(whole(path, "sp"), data)


def test_imagej_stack_of_depth_and_channel_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", noise(4, 3, 40, 50), imagej=True, metadata={"axes": "ZCYX"})
    assert refusal(path).code == "unsupported_layout"


def test_qptiff(tmp_path: Path) -> None:
    data = noise(3, 128, 256)
    names = ["DAPI", "CD3 (Opal 520)", "PanCK"]
    path = tmp_path / "a.qptiff"
    with tifffile.TiffWriter(path) as file:

        def page(pixels: NDArray[Any], name: str, **more: Any) -> None:
            text = f"<PerkinElmer-QPI-ImageDescription><Name>{name}</Name></PerkinElmer-QPI-ImageDescription>"
            file.write(
                pixels, tile=(64, 64), software="PerkinElmer-QPI", description=text, metadata=None,
                resolution=(20000, 20000), resolutionunit="CENTIMETER", **more,
            )  # fmt: skip

        for channel, name in zip(data, names, strict=True):
            page(channel, name)
        file.write(noise(32, 64, 3), photometric="rgb", software="PerkinElmer-QPI", metadata=None)
        for channel, name in zip(data[:, ::2, ::2], names, strict=True):
            page(np.ascontiguousarray(channel), name, subfiletype=1)
    with open_image(Source(path), "sp") as image:
        assert image.reader == "tifffile/qpi"
        assert image.channel_names == tuple(names)
        assert image.mpp_um == pytest.approx((0.5, 0.5))
        assert image.levels == (Level(128, 256, 1.0), Level(64, 128, 2.0))
        np.testing.assert_array_equal(image.read(0, 0, 0, 128, 256), data)
        np.testing.assert_array_equal(image.read(1, 5, 6, 50, 50), data[:, ::2, ::2][:, 5:55, 6:56])


def test_channel_names_of_qptiff_are_parsed_within_bounds(tmp_path: Path) -> None:
    entity = '<!DOCTYPE a [<!ENTITY name "DAPI">]><a><Name>&name;</Name></a>'
    many = f"<a><Name>CD3</Name>{'<b/>' * 250_000}</a>"
    path = tmp_path / "a.qptiff"
    with tifffile.TiffWriter(path) as file:
        for text in (entity, many, "<a><Name>CD8</Name></a>", f"<a><Name>{'x' * 300}</Name></a>"):
            file.write(noise(32, 64), software="PerkinElmer-QPI", description=text, metadata=None)
    with open_image(Source(path), "sp") as image:
        assert image.reader == "tifffile/qpi"
        assert image.channel_names == ("channel_0", "channel_1", "CD8", "channel_3")


def test_left_out_tiles(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.tif", noise(128, 128, 3), photometric="rgb", tile=(64, 64), compression="zlib", metadata=None
    )
    with tifffile.TiffFile(path, mode="r+") as file:
        counts = list(file.pages.first.databytecounts)
        file.pages.first.tags["TileByteCounts"].overwrite([*counts[:3], 0])
    read = whole(path, "he")
    assert (read[:, 64:, 64:] == 255).all()
    assert not (read[:, :64] == 255).all()


@pytest.mark.parametrize("compression", ["zlib", "jpeg", "lzw"])
def test_a_damaged_tile_is_named_and_the_others_still_read(tmp_path: Path, compression: str) -> None:
    data = smooth(192, 256)
    path = write(tmp_path / "a.tif", data, photometric="rgb", tile=(64, 64), compression=compression, metadata=None)
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        good = page.asarray().transpose(2, 0, 1)
        offset, count = page.dataoffsets[6], page.databytecounts[6]  # row 1, column 2
    with path.open("r+b") as raw:
        raw.seek(offset)
        raw.write(b"\xff" * count)
    with open_image(Source(path), "he") as image:
        for _ in range(2):
            with pytest.raises(SlideError) as caught:
                image.read(0, 0, 0, 192, 256)
            assert caught.value.code == "corrupt_data"
            assert "row 1, column 2" in str(caught.value)
            assert "y 64 to 128, x 128 to 192" in str(caught.value)
            np.testing.assert_array_equal(image.read(0, 0, 0, 192, 128), good[:, :, :128])
            np.testing.assert_array_equal(image.read(0, 128, 0, 64, 256), good[:, 128:])


@pytest.mark.parametrize("options", [{"tile": (64, 64)}, {"tile": (64, 64), "compression": "zlib"}, {}])
def test_a_file_cut_short_is_refused_at_opening(tmp_path: Path, options: dict[str, Any]) -> None:
    path = write(tmp_path / "a.tif", noise(3, 200, 200), photometric="minisblack", metadata=None, **options)
    size = path.stat().st_size
    for keep in (size * 9 // 10, size * 2 // 3, 300, 9):
        with path.open("r+b") as raw:
            raw.truncate(keep)
        assert refusal(path).code == "truncated", keep


def test_a_garbled_directory_is_unreadable_not_a_crash(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", noise(60, 70), metadata=None)
    head = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        start = file.pages.first.offset + 2
    for seed in range(30):
        garbled = bytearray(head)
        places = np.random.default_rng(seed).integers(start, start + 100, 6)
        for place in places:
            garbled[int(place)] ^= 0x5A
        path.write_bytes(garbled)
        with contextlib.suppress(SlideError), open_image(Source(path), "sp") as image:
            image.read(0, 0, 0, image.height_px, min(image.width_px, 100))


def test_threads_read_what_one_reads(tmp_path: Path) -> None:
    data = noise(4, 300, 310)
    path = write(
        tmp_path / "a.tif", data, photometric="minisblack", tile=(32, 32), compression="zlib", metadata=None
    )  # fmt: skip
    wrong: list[object] = []
    with open_image(Source(path), "sp") as image:

        def work(seed: int) -> None:
            rng = np.random.default_rng(seed)
            for _ in range(40):
                y, x = (int(value) for value in rng.integers(0, 250, 2))
                if not np.array_equal(image.read(0, y, x, 50, 60), data[:, y : y + 50, x : x + 60]):
                    wrong.append((seed, y, x))

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_only_the_tiles_touched_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from slideloom.slides import tiff_segments

    path = write(tmp_path / "a.tif", noise(640, 640), tile=(64, 64), compression="zlib", metadata=None)
    decoded: list[int] = []
    original = tiff_segments.SegmentedLevel._decode

    def count(self: Any, plane: Any, number: int) -> Any:
        decoded.append(number)
        return original(self, plane, number)

    monkeypatch.setattr(tiff_segments.SegmentedLevel, "_decode", count)
    with open_image(Source(path), "sp") as image:
        image.read(0, 70, 70, 100, 50)
        assert decoded == [11, 21]
        image.read(0, 70, 70, 100, 50)
        assert decoded == [11, 21], "what was just decoded is kept"


def test_window_must_lie_inside(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", noise(60, 70))
    with open_image(Source(path), "sp") as image:
        for level, *window in [(1, 0, 0, 1, 1), (0, 0, 0, 61, 1), (0, -1, 0, 5, 5), (0, 0, 70, 1, 1), (0, 0, 0, 0, 5)]:
            with pytest.raises(IndexError):
                image.read(level, *window)


def test_reading_a_closed_image_is_an_error(tmp_path: Path) -> None:
    for options in ({}, {"compression": "zlib"}):
        path = write(tmp_path / "a.tif", noise(60, 70), **options)
        image = open_image(Source(path), "sp")
        image.close()
        image.close()
        with pytest.raises(ValueError, match="closed"):
            image.read(0, 0, 0, 5, 5)


def test_a_tiff_has_no_members(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", noise(60, 70))
    assert refusal(path, member="images").code == "bad_member"
