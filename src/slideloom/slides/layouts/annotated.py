"""Annotated pictures of a data set, gathered slide by slide; what they lack is told, what is made is written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from slideloom.errors import SlideError, SlideloomError
from slideloom.slides.labels import label_shape
from slideloom.slides.layouts.imported import (
    Imported,
    Remarks,
    path_from,
    write_class_rows,
    write_file_list,
    write_label_image,
    write_picture,
)
from slideloom.slides.layouts.listing import MADE
from slideloom.slides.layouts.values import whole_numbers
from slideloom.slides.open import open_image, open_raw
from slideloom.slides.sheet import SlideRow
from slideloom.slides.source import Source
from slideloom.slides.tables import ClassTable

__all__ = ["FILE_LIST", "Gathered", "class_table"]

#: Name of the list of files that were used.
FILE_LIST = "files.tsv"
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")


def class_table(*rows: tuple[str, str] | tuple[str, str, tuple[str, ...]]) -> ClassTable:
    """Classes 1, 2, 3, … from names, colours (``#rrggbb``) and, where there are any, aliases."""
    colours = [(int(row[1][1:3], 16), int(row[1][3:5], 16), int(row[1][5:7], 16)) for row in rows]
    aliases = tuple(row[2] if len(row) == 3 else () for row in rows)
    return ClassTable(tuple(range(1, len(rows) + 1)), tuple(row[0] for row in rows), tuple(colours), aliases)


class Gathered:
    """Slides of a data set as they are found.

    Parameters
    ----------
    folder : Path
        The data set's top.
    out : Path
        Folder of the sheet; what is made goes to ``imported/`` below it.
    mpp_um : float or None
        Pixel size of every image, µm per pixel; None where nobody knows it.
    classes : ClassTable
        May be empty.

    Attributes
    ----------
    remarks : Remarks
        What was left aside, decided and counted.
    """

    def __init__(self, folder: Path, out: Path, mpp_um: float | None, classes: ClassTable | None = None) -> None:
        self.folder = folder
        self.remarks = Remarks()
        self._out = out
        self._mpp_um = mpp_um
        self._classes = classes or ClassTable()
        self._rows: dict[str, SlideRow] = {}
        self._used: set[Path] = set()

    def use(self, *files: Path) -> None:
        """Record files that slides come from."""
        self._used.update(files)

    def shown(self, path: Path) -> str:
        """A path as notes show it: from the data set's top."""
        return path.relative_to(self.folder).as_posix() if path.is_relative_to(self.folder) else path.name

    def slide_id(self, name: str) -> str:
        """An id of its own, fit for paths, for a slide of that name."""
        plain = _UNSAFE.sub("_", name).strip("_-")[:100] or "image"
        free, number = plain, 2
        taken = {one.casefold() for one in self._rows}
        while free.casefold() in taken:
            free, number = f"{plain}_{number}", number + 1
        return free

    def skip(self, name: str, error: SlideError) -> None:
        """Tell why a slide is left out; of many for the same reason, one is named."""
        expected = f" (expected {error.expected})" if error.expected else ""
        hint = f". {error.hint}" if error.hint else ""
        where = f" ({error.where})" if error.where not in ("", name) else ""
        self.remarks.count(f"left out, {error.what}{expected}{hint}", f"{name}{where}")

    def label_file(self, path: Path) -> Path | NDArray[np.int32] | None:
        """A file of labels as it is, or as whole numbers where it was saved as fractions.

        Parameters
        ----------
        path : Path
            Of any format that slides are read from.

        Returns
        -------
        Path, (H, W) int32 array or None
            None, told, where it holds no label image, or a mask: one number for all nuclei.
        """
        from scipy import ndimage

        try:
            raw = open_raw(Source(path))
            try:
                header = raw.header
                drawn = raw.read(0, 0, 0, header.levels[0].height_px, header.levels[0].width_px)
            finally:
                raw.close()
            if header.dtype.kind != "f" or header.n_channels != 1:
                label_shape(Source(path))
            values = whole_numbers(drawn[0], "the label image", path.name)
        except SlideError as error:
            self.remarks.tell(f"{self.shown(path)} left aside, {error.what}. {error.hint}")
            return None
        if np.unique(values[values > 0]).size == 1 and ndimage.label(values)[1] > 1:
            self.remarks.count("a mask with one number for all nuclei, left aside: number them first", self.shown(path))
            return None
        self.use(path)
        return values if header.dtype.kind == "f" else path

    def add(
        self,
        name: str,
        image: Path | NDArray[np.uint8],
        nuclei: Path | NDArray[np.int32] | None,
        classes: Iterable[tuple[int, str]] | None = None,
        *,
        multiplexed: bool = False,
        patient: str = "",
        platform: str = "unknown",
        split: str | None = None,
        extra: Mapping[str, str] | None = None,
    ) -> SlideRow | None:
        """Add a slide; one whose image cannot be read is told and left out.

        Parameters
        ----------
        name : str
            What its id is made of.
        image : Path or (H, W, 3) uint8 array
            A file that is named in the sheet, or pixels that are written as PNG.
        nuclei : Path or (H, W) int32 array, optional
            A label image that is named in the sheet, or one that is written.
        classes : iterable of (int, str), optional
            Label and class of each nucleus whose class is known; None where the set says nothing of classes.
        multiplexed : bool
            The image is no H&E.
        patient, platform, split, extra
            Columns of the sheet.

        Returns
        -------
        SlideRow or None
            What was added.
        """
        slide = self.slide_id(name)
        try:
            place, shape = self._image(slide, image, "sp" if multiplexed else "he")
            labelled = None if nuclei is None else self._nuclei(slide, nuclei, shape)
        except SlideError as error:
            self.skip(name, error)
            return None
        table = None
        if classes is not None and labelled is not None:
            rows = sorted(classes)
            # A table without rows beside nuclei is refused; without nuclei it says that there are none.
            if rows or (isinstance(nuclei, np.ndarray) and not nuclei.any()):
                table = self._out / MADE / "classes" / f"{slide}.tsv"
                write_class_rows(table, rows)
        if nuclei is None:
            self.remarks.count("no annotation: can be predicted, not learnt from", name)
        row = SlideRow(
            slide_id=slide,
            patient_id=patient,
            platform=platform,
            he=None if multiplexed else path_from(self._out, place),
            sp=path_from(self._out, place) if multiplexed else None,
            instances=None if labelled is None else path_from(self._out, labelled),
            classes=None if table is None else path_from(self._out, table),
            he_mpp_um=None if multiplexed else self._mpp_um,
            sp_mpp_um=self._mpp_um if multiplexed else None,
            split=split,
            extra=dict(extra or {}),
        )
        self._rows[slide] = row
        self.use(*(one for one in (image, nuclei) if isinstance(one, Path)))
        return row

    def _image(self, slide: str, image: Path | NDArray[np.uint8], modality: str) -> tuple[Path, tuple[int, int]]:
        if isinstance(image, Path):
            with open_image(Source(image), "sp" if modality == "sp" else "he") as opened:
                return image, (opened.height_px, opened.width_px)
        place = self._out / MADE / "images" / f"{slide}.png"
        write_picture(place, image)
        return place, (image.shape[0], image.shape[1])

    def _nuclei(self, slide: str, nuclei: Path | NDArray[np.int32], shape: tuple[int, int]) -> Path | None:
        try:
            found = label_shape(Source(nuclei)) if isinstance(nuclei, Path) else nuclei.shape
        except SlideError as error:
            self.remarks.tell(f"{slide}: its annotation is left out, {error.message}. {error.hint}")
            return None
        if found != shape:
            sizes = f"{found[0]} x {found[1]} px, its image has {shape[0]} x {shape[1]}"
            self.remarks.tell(f"{slide}: its annotation is left out, it has {sizes}")
            return None
        if isinstance(nuclei, Path):
            return nuclei
        place = self._out / MADE / "instances" / f"{slide}.tif"
        write_label_image(place, nuclei)
        return place

    def finish(self, expected: str, notes: Sequence[str] = ()) -> Imported:
        """Write the list of files, and give what was gathered.

        Parameters
        ----------
        expected : str
            What a folder of this layout holds, for the message where nothing was gathered.
        notes : sequence of str
            Told last.

        Raises
        ------
        SlideloomError
            No slide was gathered.
        """
        for note in notes:
            self.remarks.tell(note)
        if not self._rows:
            told = "; ".join(self.remarks.all()[:3])
            raise SlideloomError("no slide was found", where=str(self.folder), expected=expected, hint=told)
        if self._mpp_um is None:
            self.remarks.tell(
                "the files do not hold their pixel size, and slides without one are refused: give --mpp, or fill in "
                "mpp_um"
            )
        write_file_list(self._out / FILE_LIST, self._used, self.folder)
        self.remarks.tell(f"{len(self._used)} files that were used are listed, with their sums, in {FILE_LIST}")
        rows = tuple(self._rows[name] for name in sorted(self._rows))
        return Imported(rows, (), self._classes, self.remarks.all())
