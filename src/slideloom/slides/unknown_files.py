"""What a file is that no reader knows, in words: web pages of failed downloads, archives, other programs' formats."""

from __future__ import annotations

from pathlib import Path

__all__ = ["describe_unknown"]

_HEAD_BYTES = 4096
_AGAIN = "Copy it again from where it was made"
_UNPACK = "Unpack it, and name what was inside in the sheet"
_CONVERT = "Convert it to OME-TIFF (with QuPath, bioformats2raw or the scanner's own program)"
_AS_PNG = "Save it as PNG or TIFF"
_SIGNATURES: tuple[tuple[bytes, str, str], ...] = (
    (b"PK\3\4", "a ZIP archive", _UNPACK),
    (b"\x1f\x8b", "a gzip archive", _UNPACK),
    (b"BZh", "a bzip2 archive", _UNPACK),
    (b"\xfd7zXZ\0", "an xz archive", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!", "a RAR archive", _UNPACK),
    (b"%PDF", "a PDF document", "Export the image itself"),
    (b"\xda\xce\xbe\x0a", "a Nikon ND2 file", _CONVERT),
    (b"\x70\0\0\0", "a Leica LIF file", _CONVERT),
    (b"\x89HDF\r\n", "an HDF5 file (Imaris, AnnData, QuPath and others use it)", "Export the image as OME-TIFF"),
    (
        b"MATLAB 5.0",
        "a MATLAB file",
        "Save an image as TIFF; annotated sets are read by `slideloom sheet FOLDER --layout consep` (or lizard)",
    ),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 picture", "Save it as TIFF"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL picture", _AS_PNG),
    (b"GIF8", "a GIF picture", _AS_PNG),
    (b"BM", "a BMP picture", _AS_PNG),
    (b"RIFF", "a WebP picture or another RIFF file", _AS_PNG),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "Fetch the file with `git lfs pull`"),
)
_TEXT = set(range(32, 127)) | {9, 10, 12, 13}


def describe_unknown(path: Path) -> tuple[str, str]:
    """Say what a file looks like.

    Parameters
    ----------
    path : Path
        A file that no reader knows; its first 4 KB are read.

    Returns
    -------
    what : str
        Such as ``it is a ZIP archive``.
    hint : str
        What to do.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    for signature, what, hint in _SIGNATURES:
        if head.startswith(signature):
            return f"it is {what}", hint
    if not any(head):
        return f"its first {len(head)} bytes are zero, as of a copy that was never finished", _AGAIN
    start = head.lstrip()[:200].lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "it is a web page, such as a failed download leaves", "Download it again, and sign in first if need be"
    readable = sum(byte in _TEXT for byte in head)
    if readable == len(head):
        first = head.decode("ascii").strip().splitlines()[0][:60] if head.strip() else ""
        return f"it is text, which begins {first!r}", "Name the image file in the sheet"
    shown = head[:8].hex(" ")
    return (
        f"no reader knows this format; it begins with the bytes {shown}",
        f"If the format is one of these, the file is damaged. {_AGAIN}",
    )
