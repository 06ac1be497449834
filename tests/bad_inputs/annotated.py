"""Annotations that are wrong, damaged, hostile, of another slide, or merely unusual."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.bad_inputs.class_tables import TABLES
from tests.bad_inputs.hostile import npz_of_zeros
from tests.bad_inputs.kinds import Answer, Cells, Kind
from tests.bad_inputs.outlined import OUTLINED
from tests.bad_inputs.scene import SHAPE, labels, tell

__all__ = ["KINDS"]

_Labels = NDArray[np.generic]


class Trap:
    """What a pickle would do if it were taken apart: write a file beside it."""

    def __init__(self, place: str) -> None:
        self._place = place

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (self._place, "w")


def _image(
    name: str,
    what: str,
    make: Callable[[], _Labels],
    answer: Answer = "failed",
    code: str = "",
    *,
    stage: str = "facts",
    says: str = "",
) -> Kind:
    """Label images that NumPy writes."""

    def write(folder: Path) -> Cells:
        np.save(folder / "nuclei.npy", make())
        return tell(folder, "nuclei.npy")

    return Kind(name, "annotation", what, write, answer, code, stage, says)


def _other(
    name: str,
    what: str,
    write: Callable[[Path], str],
    answer: Answer = "failed",
    code: str = "annotation_unreadable",
    *,
    stage: str = "facts",
    says: str = "",
) -> Kind:
    """Files of other kinds; ``write`` says what the sheet names."""
    return Kind(name, "annotation", what, lambda folder: tell(folder, write(folder)), answer, code, stage, says)


def _changed(change: Callable[[NDArray[np.int32]], None]) -> Callable[[], _Labels]:
    def make() -> _Labels:
        found = labels().copy()
        change(found)
        return found

    return make


def _torn(found: NDArray[np.int32]) -> None:
    """A line of background through every fourth nucleus."""
    for label in range(4, int(found.max()) + 1, 4):
        y, x = np.nonzero(found == label)
        found[y[y == int(y.mean())], x[y == int(y.mean())]] = 0


def _negative(found: NDArray[np.int32]) -> None:
    found[found == 5] = -5


def _picture(folder: Path, name: str, values: _Labels, **options: object) -> str:
    Image.fromarray(values).save(folder / name, **options)
    return name


def _raw(name: str, raw: bytes) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        (folder / name).write_bytes(raw)
        return name

    return write


def _cut_png(folder: Path) -> str:
    _picture(folder, "nuclei.png", labels().astype(np.uint16))
    raw = (folder / "nuclei.png").read_bytes()
    (folder / "nuclei.png").write_bytes(raw[: len(raw) // 2])
    return "nuclei.png"


def _pickled(folder: Path) -> str:
    trap = np.empty(SHAPE, object)
    trap[:] = 0
    trap[0, 0] = Trap(str(folder / "sprung"))
    np.save(folder / "nuclei.npy", trap, allow_pickle=True)
    return "nuclei.npy"


def _pickled_archive(folder: Path) -> str:
    trap = np.empty(SHAPE, object)
    trap[:] = 0
    trap[0, 0] = Trap(str(folder / "sprung"))
    np.savez(folder / "nuclei.npz", labels=trap)
    return "nuclei.npz::labels"


def _disguised(folder: Path) -> str:
    """The header speaks of numbers, and a pickle follows."""
    with (folder / "nuclei.npy").open("wb") as file:
        header = {"descr": "<i4", "fortran_order": False, "shape": SHAPE}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(b"cos\nsystem\n(S'false'\ntR.")
    return "nuclei.npy"


def _folder(folder: Path) -> str:
    (folder / "nuclei.zarr").mkdir()
    (folder / "nuclei.zarr" / "notes.txt").write_text("to be copied\n")
    return "nuclei.zarr"


def _link_loop(folder: Path) -> str:
    (folder / "nuclei.png").symlink_to("again.png")
    (folder / "again.png").symlink_to("nuclei.png")
    return "nuclei.png"


_MAT = b"MATLAB 5.0 MAT-file, Platform: GLNXA64".ljust(124) + b"\0\1IM" + bytes(64)

_SIZES = (
    _image("wrong_shape", "label image of another size", lambda: labels()[:90, :100], code="annotation_shape"),
    _image("half_shape", "label image at half resolution", lambda: labels()[::2, ::2], code="annotation_shape",
           says="2 times lower resolution"),
    _image("off_by_one", "label image with a row too many", lambda: np.pad(labels(), ((0, 1), (0, 0))),
           code="annotation_shape", says=r"\+1 rows"),
    _image("transposed", "label image with rows and columns exchanged", lambda: labels().T, code="annotation_shape",
           says="transpose"),
    _image("one_pixel_labels", "label image of one pixel", lambda: labels()[:1, :1], code="annotation_shape"),
    _image("no_pixels_labels", "label image without pixels", lambda: labels()[:0], code="annotation_unreadable"),
)  # fmt: skip
_TYPES = (
    _image("fractions", "labels with fractions", lambda: labels() + 0.5, code="annotation_float"),
    _image("whole_floats", "whole numbers stored as float", lambda: labels().astype(np.float32),
           code="annotation_float"),
    _image("not_a_number_labels", "labels that are not a number", lambda: np.full(SHAPE, np.nan),
           code="annotation_float"),
    _image("complex_labels", "labels that are complex numbers", lambda: labels().astype(np.complex64),
           code="annotation_unreadable"),
    _image("true_false", "true/false mask", lambda: labels() > 0, code="annotation_boolean"),
    _other("one_bit_mask", "picture of one bit a pixel", lambda at: _picture(at, "nuclei.png", labels() > 0),
           code="annotation_boolean"),
    _image("negative", "negative ids", _changed(_negative), code="annotation_negative", stage="targets", says="-5"),
    _image("too_large_ids", "ids above 2**31 - 1", lambda: np.where(labels() == 3, 2**40, labels().astype(np.int64)),
           code="annotation_range", stage="targets"),
    _image("colour_labels", "colour picture of the nuclei", lambda: np.stack([labels().astype(np.uint8)] * 3, axis=-1),
           code="annotation_rgb"),
    _image("stack_of_masks", "a mask for each nucleus", lambda: np.stack([labels() == one for one in range(1, 9)]),
           code="annotation_rgb"),
    _other("jpeg_labels", "labels as JPEG, which changes numbers",
           lambda at: _picture(at, "nuclei.jpg", labels().astype(np.uint8)), code="annotation_lossy"),
    _image("sparse_ids", "ids with gaps, up to 2**31 - 1", lambda: labels().astype(np.int64) * 21_000_000, "accepted",
           stage="targets"),
)  # fmt: skip
_MEANINGS = (
    _image("binary_mask", "mask of 0 and 255", lambda: np.where(labels() > 0, np.uint8(255), np.uint8(0)),
           code="binary_labels", stage="targets", says="one id"),
    _image("class_map_as_nuclei", "class map in place of nuclei", lambda: (labels() % 4).astype(np.uint8),
           code="binary_labels", stage="targets", says="3 ids"),
    _image("one_region", "a whole region as one nucleus", lambda: np.full(SHAPE, 1, np.uint8), code="binary_labels",
           stage="targets", says="1 separate piece"),
    _image("pieces", "several pieces under one id", _changed(_torn), "warned", stage="targets",
           says="lie in several pieces"),
    _image("nothing_annotated", "label image without a nucleus", lambda: labels() * 0, "warned", stage="targets",
           says="no nucleus"),
    _image("shifted", "annotation 6 px too low and 4 px too far left",
           lambda: np.roll(labels(), (6, -4), (0, 1)), "warned", stage="targets",
           says="6 px .* further up and 4 px .* further right"),
    _image("one_pixel_away", "annotation that lies a pixel aside", lambda: np.roll(labels(), 1, 0), "accepted",
           stage="targets"),
    _image("of_another_slide", "annotation of another slide of this size", lambda: labels(1)[::-1, ::-1], "warned",
           stage="targets", says="does not follow"),
    _image("upside_down", "annotation upside down", lambda: labels()[::-1], "warned", stage="targets",
           says="does not follow|further"),
)  # fmt: skip
_FILES = (
    _other("missing_labels", "annotation that is not there", lambda at: "nuclei.png", "refused", "annotation_missing",
           says="does not exist"),
    _other("empty_labels", "annotation of 0 bytes", _raw("nuclei.png", b"")),
    _other("text_labels", "text called .png", _raw("nuclei.png", b"see the other folder\n")),
    _other("folder_labels", "a folder in place of the annotation", _folder),
    _other("link_loop_labels", "links that lead to one another", _link_loop, "refused", "", stage="", says="circle"),
    _other("cut_labels", "PNG cut in the middle", _cut_png, stage="targets"),
    _other("matlab_labels", "MATLAB file", _raw("nuclei.mat", _MAT),
           says="slideloom sheet FOLDER --layout consep"),
    _other("table_as_labels", "class table in the column instances", _raw("nuclei.csv", b"id,class\n1,tumour\n"),
           says="column 'classes'"),
    _other("pickled_labels", "pickled objects in .npy", _pickled),
    _other("pickled_archive", "pickled objects in .npz", _pickled_archive),
    _other("swollen_archive", "archive of 300 kB that unpacks to 300 MB of label images",
           lambda at: f"{_raw('nuclei.npz', npz_of_zeros(300, (5120, *SHAPE)))(at)}::image[3]", says="declared"),
    _other("disguised_pickle", "pickle behind the header of numbers", _disguised),
)  # fmt: skip

KINDS: tuple[Kind, ...] = (*_SIZES, *_TYPES, *_MEANINGS, *_FILES, *TABLES, *OUTLINED)
