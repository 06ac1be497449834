"""What the YAML parser complains of, in a person's words: which line, and what to do about it."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from slideloom.config.texts import shortened
from slideloom.errors import Problem

__all__ = ["explain_syntax"]

#: A key whose colon has no blank behind it, which YAML reads as one word.
_TIGHT = re.compile(r"^\s*[\w.-]+:[^\s:/\\\"'][^:]*$")
#: What the parser says, and what to do; ``{began}`` is the line where what it was reading began.
_HINTS = (
    ("mapping values are not allowed", "Put a text that holds ': ' in quotes; keys of one level begin in one column"),
    ("expected <block end>", "Keys of one level begin in one column: compare with line {began}"),
    ("could not find expected ':'", "Every key is followed by a colon and a blank, as in 'study: my_study'"),
    ("expected ',' or", "Close the bracket of line {began}, or put a comma between its parts"),
    ("unexpected end of stream", "Close the quotes of line {began}"),
    ("undefined alias", "After * stands a name that stood after & further up; put a text that begins with * in quotes"),
    ("duplicate anchor", "A name after & stands once"),
    ("but found another document", "One file holds one config: remove the line of dashes, and what follows it"),
    ("cannot start any token", "Put a text that begins with this character in quotes"),
    ("is not allowed: a config holds", "Remove what begins with !, and write the value alone"),
    ("once every alias", "Aliases that hold aliases multiply: write out what you need"),
    ("holds itself", "An alias (*) may not stand below its own anchor (&)"),
    ("nested deeper", "A config has a handful of levels: look for brackets that are not closed"),
)
_ANYTHING = "Look at this line and the one before: quotes, brackets, colons, and keys of one level in one column"


def explain_syntax(path: Path, error: yaml.MarkedYAMLError | yaml.reader.ReaderError, text: str) -> Problem:
    """Turn an error of the parser into a problem.

    Parameters
    ----------
    path : Path
        The file.
    error : MarkedYAMLError or ReaderError
        As PyYAML raised it.
    text : str
        What the file holds.

    Returns
    -------
    Problem
        With the line, and what to do about it.
    """
    if isinstance(error, yaml.reader.ReaderError):
        at = text[: max(0, error.position)].count("\n") + 1
        character: str | int = error.character
        shown = chr(character) if isinstance(character, int) else character
        what = f"holds a character that YAML does not allow: {shown!r}"
        return Problem(f"{path}:{at}", what, "Delete it; the file is perhaps no text at all")
    mark = error.problem_mark or error.context_mark
    lines = text.splitlines()
    place = f"{path}:{mark.line + 1}" if mark else str(path)
    what = f"is not valid YAML: {error.problem or error.context}"
    if "'\\t'" in what:
        line = lines[mark.line] if mark and mark.line < len(lines) else ""
        if line.lstrip(" ").startswith("\t"):
            return Problem(place, what, "Indent with spaces, not with tabs")
        return Problem(place, what, "Is it a table, such as the sheet? Name the study's config; or put blanks for tabs")
    if "mapping values" in what and mark:
        for number in (mark.line, mark.line - 1):
            if 0 <= number < len(lines) and _TIGHT.match(lines[number]):
                tight = shortened(lines[number].strip())
                return Problem(place, what, f"Write a blank after the colon of line {number + 1}: {tight!r}")
    began = (error.context_mark.line if error.context_mark else mark.line if mark else 0) + 1
    hint = next((hint for words, hint in _HINTS if words in what), _ANYTHING)
    return Problem(place, what, hint.format(began=began))
