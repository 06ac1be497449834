"""Open any image that Slideloom reads: which reader is chosen by what the file holds, not by its name.

========================  ===============================================================================
OME-TIFF, ImageJ, QPTIFF  :mod:`slideloom.slides.read_tiff`
Aperio SVS                :mod:`slideloom.slides.read_tiff` when its tiles are JPEG and all there, else OpenSlide
other vendors' slides     :mod:`slideloom.slides.read_openslide`
plain TIFF                :mod:`slideloom.slides.read_tiff`
PNG, JPEG                 :mod:`slideloom.slides.read_picture`
``.npy``, ``.npz``        :mod:`slideloom.slides.read_array`
OME-Zarr, Zarr folders    :mod:`slideloom.slides.read_zarr`
========================  ===============================================================================
"""

from __future__ import annotations

import errno
import os
import stat

from slideloom.config.model import Modality
from slideloom.errors import SlideError
from slideloom.slides.declared import refuse_hollow
from slideloom.slides.image import RawImage, SlideImage
from slideloom.slides.modality import as_modality
from slideloom.slides.source import Source
from slideloom.slides.tiff_file import is_tiff
from slideloom.slides.zarr_layout import is_zarr

__all__ = ["open_image", "open_raw"]

_MISSING = {errno.ENOENT, errno.ENOTDIR}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EISDIR, errno.EINVAL, errno.ELOOP, errno.ENAMETOOLONG}
_HEAD_BYTES = 32
_NO_VENDOR = (None, "generic-tiff")


def open_image(source: Source, modality: Modality) -> SlideImage:
    """Open an image as one modality.

    Parameters
    ----------
    source : Source
        File or folder, and member.
    modality : {"he", "sp"}
        H&E: RGB uint8. SP: channels.

    Returns
    -------
    SlideImage
        Open; a context manager. No pixel has been read.

    Raises
    ------
    SlideError
        ``missing_file``, ``empty_file``, ``truncated``, ``unreadable``, ``unsupported_format``,
        ``unsupported_layout``, ``metadata_mismatch``, ``multi_file``, ``bad_member``, ``too_large``; ``not_rgb`` and
        ``unsupported_dtype`` when it does not fit the modality.

    Examples
    --------
    >>> from slideloom.slides.source import parse_source
    >>> with open_image(parse_source("scan.svs", root), "he") as image:  # doctest: +SKIP
    ...     image.read(0, y=0, x=0, height=256, width=256).shape
    (3, 256, 256)
    """
    raw = open_raw(source)
    try:
        return as_modality(raw, modality)
    except BaseException:
        raw.close()
        raise


def open_raw(source: Source) -> RawImage:
    """Open an image without regard to modality: samples of any type, as they are stored.

    Label images are read this way.

    Parameters
    ----------
    source : Source
        File or folder, and member.

    Returns
    -------
    RawImage
        Open; the caller closes it.

    Raises
    ------
    SlideError
        As :func:`open_image`, but for the last two.
    """
    try:
        raw = _open(source)
        try:
            refuse_hollow(raw.header)
        except BaseException:
            raw.close()
            raise
    except (SlideError, MemoryError):
        raise
    except OSError as error:
        if error.errno in _MISSING:
            raise _missing(source) from error
        if error.errno is not None and error.errno not in _REFUSED:
            raise  # the machine's trouble, not the slide's
        raise _unreadable(source, error) from error
    except Exception as error:
        raise _unreadable(source, error) from error
    return raw


def _open(source: Source) -> RawImage:
    path = source.path
    if path.is_dir():
        if not is_zarr(path):
            raise SlideError(
                "it is a folder without Zarr metadata",
                where=str(source),
                expected="a file, or an OME-Zarr folder",
                hint="Name the file inside it in the sheet",
                code="unsupported_format",
            )
        from slideloom.slides.read_zarr import open_zarr

        return open_zarr(source)
    if not stat.S_ISREG(path.stat().st_mode):
        # Reading one may never end.
        raise SlideError(
            "it is a device, a pipe or a socket",
            where=str(source),
            expected="a file",
            hint="Name the slide's file in the sheet",
            code="unsupported_format",
        )
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if not head:
        raise SlideError(
            "the file is empty (0 bytes)",
            where=str(source),
            expected="an image",
            hint="Copy it again from where it was made",
            code="empty_file",
        )
    if head.startswith(b"\x93NUMPY"):
        from slideloom.slides.read_array import open_npy

        return open_npy(source)
    if head.startswith(b"PK") and path.suffix.lower() == ".npz":
        from slideloom.slides.read_array import open_npz

        return open_npz(source)
    if source.member:
        raise SlideError(
            f"this file has no members; {source.member!r} was asked for",
            where=str(path),
            expected="a member only for .npy, .npz and Zarr",
            hint=f"Drop what stands behind {path.name} in the sheet",
            code="bad_member",
        )
    return _open_file(source, head)


def _open_file(source: Source, head: bytes) -> RawImage:
    from slideloom.slides.read_picture import is_picture, open_picture

    # A MIRAX slide's index file is a small JPEG of it; the slide lies in the folder beside.
    if is_picture(head) and source.path.suffix.lower() != ".mrxs":
        return open_picture(source)
    from slideloom.slides.read_openslide import detect_vendor, open_openslide

    if not is_tiff(head):
        return open_openslide(source)
    from slideloom.slides.read_tiff import open_tiff, tiff_flavour

    try:
        flavour = tiff_flavour(source)
    except (SlideError, OSError, MemoryError):
        raise
    except Exception:
        # A vendor's own habits may be too much for tifffile and nothing special to OpenSlide.
        if detect_vendor(source) in _NO_VENDOR:
            raise
        return open_openslide(source)
    if flavour == "tiff" and detect_vendor(source) not in _NO_VENDOR:
        return open_openslide(source)
    return open_tiff(source, flavour)


def _missing(source: Source) -> SlideError:
    what, hint = "there is no such file", "Paths in the sheet start at its own folder, or at data_root"
    if source.path.is_symlink():
        what = f"it is a link to {os.readlink(source.path)!r}, where nothing is"
        hint = "Mend the link, or name the file itself in the sheet"
    return SlideError(what, where=str(source), expected="a file", hint=hint, code="missing_file")


def _unreadable(source: Source, error: Exception) -> SlideError:
    hint = "The file may be damaged: copy it again from where it was made"
    what = f"it cannot be opened: {type(error).__name__}: {error}"
    if isinstance(error, OSError) and error.errno == errno.ELOOP:
        what, hint = "it is a link that leads in a circle", "Name the file itself in the sheet"
    elif isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM):
        what = f"it may not be read ({error.strerror})"
        hint = "Give yourself the right to read it and its folders (chmod, chgrp), or ask its owner to"
    elif isinstance(error, OSError) and error.errno is not None:
        what = f"it cannot be opened ({error.strerror})"
    return SlideError(what, where=str(source), expected="an image", hint=hint, code="unreadable")
