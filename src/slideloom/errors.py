"""One base error for everything Slideloom refuses, and the list form that a config check raises.

Every message says what is wrong, where, what was expected and how to mend it, so that a person can act on it
without opening the source. ``code`` is the stable reason code that ``reports/failures.parquet`` carries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["ConfigError", "Problem", "SlideError", "SlideloomError", "printable"]

#: Characters of a part of a message, so that the whole stays on one screen whatever a file holds.
_MOST_CHARACTERS = 600


def printable(text: str) -> str:
    r"""Text from anywhere as a terminal, a log and a table can show it: no control or direction marks.

    What :func:`repr` escapes is escaped, but for line ends and tabs.

    Examples
    --------
    >>> print(printable("DAPI\x1b[2J"))
    DAPI\x1b[2J
    """
    if text.isprintable():
        return text
    return "".join(one if one in "\n\t" or one.isprintable() else ascii(one)[1:-1] for one in text)


def _readable(text: str, most: int = _MOST_CHARACTERS) -> str:
    """Printable text of bounded length, whatever a file holds."""
    return printable(text if len(text) <= most else f"{text[: most * 2 // 3]} […] {text[-most // 3 :]}")


class SlideloomError(Exception):
    """Base of every error that Slideloom raises on purpose.

    Parameters
    ----------
    what : str
        What is wrong, quoting the offending value.
    where : str, optional
        Slide, file, channel or config key.
    expected : str, optional
        What would have been right.
    hint : str, optional
        How to mend it.
    code : str, optional
        Stable reason code in ``snake_case``; part of the table contract.
    """

    default_code = "error"
    _most_characters = _MOST_CHARACTERS

    def __init__(
        self, what: str, *, where: str = "", expected: str = "", hint: str = "", code: str | None = None
    ) -> None:
        self.what = _readable(what, self._most_characters)
        self.where = _readable(where)
        self.expected = _readable(expected)
        self.hint = _readable(hint)
        self.code = code or self.default_code
        super().__init__(self.message)

    @property
    def message(self) -> str:
        """The error on one line, without the hint."""
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text} (expected {self.expected})" if self.expected else text

    def __str__(self) -> str:
        return f"{self.message}. {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.what, self.where, self.expected, self.hint, self.code))


def _rebuild(kind: type[SlideloomError], what: str, where: str, expected: str, hint: str, code: str) -> SlideloomError:
    return kind(what, where=where, expected=expected, hint=hint, code=code)


class SlideError(SlideloomError):
    """One slide cannot go on; the others can. Recorded in ``reports/failures.parquet``."""

    default_code = "slide_error"

    @classmethod
    def of(cls, error: SlideloomError) -> SlideError:
        """The same error, ending one item only; one that does already is given back as it is."""
        if isinstance(error, SlideError):
            return error
        return cls(error.what, where=error.where, expected=error.expected, hint=error.hint, code=error.code)


@dataclass(frozen=True)
class Problem:
    """One mistake in the config, the sheet or a table.

    Attributes
    ----------
    where : str
        File and key or row, such as ``config.yaml: experiments.sp.encoder``.
    what : str
        What is wrong.
    hint : str
        How to mend it; may be empty.
    """

    where: str
    what: str
    hint: str = ""

    def __post_init__(self) -> None:
        for name in ("where", "what", "hint"):
            object.__setattr__(self, name, _readable(getattr(self, name)))

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f". {self.hint}" if self.hint else "")


class ConfigError(SlideloomError):
    """Every mistake found in a study's config, sheet and tables, told at once.

    Parameters
    ----------
    problems : sequence of Problem
        At least one.
    """

    default_code = "config"
    _most_characters = 2**31  # each problem has its own limit

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        lines = [f"{count} {'mistake' if count == 1 else 'mistakes'} in the study; nothing was run:"]
        lines += [f"  {number}. {problem}" for number, problem in enumerate(self.problems, 1)]
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.problems,))
