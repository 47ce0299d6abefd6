"""Which columns of a table are read, which are not, and what those look like."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from fastht.data.images import DataError
from fastht.data.notes import Note, examples, plural

# Names that can mean nothing else, without regard to case, spaces and marks: taken, and said.
_SAME = {
    "label": {"label"},
    "patient": {"patient", "patientid", "patientidentifier", "patientnumber", "patientno"}
    | {"subject", "subjectid"},
    "frame": {"frame"},
}
# Names that probably mean it: left alone, with the option that would read them.
_ALIKE = {
    "patient": {"case", "caseid", "casenumber", "id", "pid", "study", "studyid", "person"}
    | {"personid", "participant", "participantid", "mrn", "caseno", "patid", "patientname"},
    "label": {"class", "classes", "category", "diagnosis", "pathology", "labels", "histology"},
    "frame": {"frameindex", "frameid", "framenumber", "slice", "sliceindex"},
}
# Parts of names that probably mean it too, in languages that tables of hospitals are in.
_PARTS = {
    "patient": re.compile(r"pa[tcz]ien|proband|患者|病人|病历号|住院号|환자"),
    "label": re.compile(r"diagn[oó]s|klasse|clase|诊断|진단"),
}
# What fastht's commands read, each some of them.
_KNOWN = {"filepath", "filename", "image", "mask", "title", "caption", "split"}
_SHOWN = 12
# What programs write for an empty cell; "none" and "na" may be classes, but nobody's names.
_EMPTY = {"nan", "n/a", "#n/a", "<na>", "null", "nat"}
_WORDS = {"label": _EMPTY, "patient": _EMPTY | {"none", "na", "-", "unknown"}}


def find_column(columns: Sequence[str], what: str, given: str | None, where: Path) -> str | None:
    """The column of labels, patients or frames; None if there is none.

    what: "label", "patient" or "frame".
    given: the name that the user gives; None takes the column of that name or, without it, the only
        one whose name means the same, such as "Patient ID".

    Raises DataError if the table has no column of the given name, or several that mean the same.
    """
    if given is not None:
        if given not in columns:
            raise DataError(f"{where}: no column {given!r}; the columns are {', '.join(columns)}")
        return given
    if what in columns:
        return what
    found = [name for name in columns if _bare(name) in _SAME[what]]
    if len(found) > 1:
        names = " and ".join(found)
        raise DataError(f"{where}: {names} may both be the {what}'s; choose by --{what}-key")
    return found[0] if found else None


def find_split(columns: Sequence[str], given: str | None, where: Path) -> str:
    """The column of the split; a table need not have it. Raises DataError if a given one is not."""
    if given is not None and given not in columns:
        raise DataError(f"{where}: no column {given!r}; the columns are {', '.join(columns)}")
    return given or "split"


def note_columns(
    columns: Sequence[str], read: dict[str, str | None], *, also: Collection[str] = ()
) -> tuple[Note, ...]:
    """What is to be said of the columns: those taken by another name, and those not read.

    read: the column that is read as label, patient and frame.
    also: other columns that are read.
    """
    notes = []
    for what, column in read.items():
        if column is not None and column != what and _bare(column) in _SAME[what]:
            notes.append(Note("columns_by_meaning", 1, f"column {column} is read as the {what}'s"))
    used = {*also, *read.values()}
    left = [c for c in columns if c and c not in used and _bare(c) not in _KNOWN]
    hints = [
        f"{column} looks like the {what}'s: if it is, give it by --{what}-key {quote(column)}"
        for column in left
        for what in _ALIKE
        if read.get(what) is None and _is_alike(column, what)
    ]
    if left:
        text = f"{plural(len(left), 'column')} not read: {examples(left, _SHOWN)}"
        notes.append(Note("columns_not_read", len(left), "; ".join([text, *hints])))
    return tuple(notes)


def _is_alike(column: str, what: str) -> bool:
    bare, parts = _bare(column), _PARTS.get(what)
    return bare in _ALIKE[what] | _SAME[what] or (parts is not None and bool(parts.search(bare)))


class Cells:
    """Cells of labels, patients and frames, of which words for "none" are read as empty, counted.

    Else all patients who are "nan" would be one, and "NaN" a class.
    """

    def __init__(self, read: Mapping[str, str | None]) -> None:
        self._read = read
        self._empty: Counter[str] = Counter()

    def value(self, row: Mapping[str, str], what: str) -> str | None:
        """What a row says of it, in Unicode's composed form; ``None`` if nothing."""
        column = self._read[what]
        cell = unicodedata.normalize("NFC", row.get(column or "") or "")
        if column and cell.casefold() in _WORDS.get(what, ()):
            self._empty[column] += 1
            return None
        return cell or None

    def notes(self) -> Iterator[Note]:
        """What was read as empty."""
        for column, count in self._empty.items():
            text = f"{plural(count, 'cell')} of column {column} read as empty, for nan and the like"
            yield Note("cells_read_as_empty", count, text)


def quote(name: str) -> str:
    """A name as a shell takes it."""
    return name if re.fullmatch(r"[\w.-]+", name, re.ASCII) else f"'{name}'"


def _bare(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).lower()
