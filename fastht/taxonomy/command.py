"""``fastht taxonomy tag`` and ``record``: columns of tags of a table's captions, recorded ids."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fastht.data.tables import read_table
from fastht.files import make_directory, write_atomically
from fastht.taxonomy.ids import ids_path
from fastht.taxonomy.load import load_taxonomy, record_ids
from fastht.taxonomy.schema import Taxonomy, TaxonomyError
from fastht.taxonomy.tagger import Tagger, Tags

_CAPTIONS = ("title", "Caption", "caption")
JOIN = ";"


@dataclass(frozen=True)
class TagArguments:
    """Find the tags of a table's captions and write the table with a column for each dimension.

    Beside each column FIELD stand FIELD_absent, what the caption explicitly negates, and
    FIELD_uncertain, which of FIELD the caption is not sure of. Several values are joined by ";".

    Attributes:
        table: with a caption a row.
        out: file of the table with the tags; as CSV, or separated by tabs if its name ends in .tsv.
        taxonomy: name of a shipped one, or a YAML file.
        caption_key: column of the captions. Default: title, Caption or caption.
        separator: what separates the columns. Default: found out.
        spans: file for every hit with its place in the caption, a JSON line a row, for audit.
        overwrite: replace the files if they are there.
    """

    table: Annotated[Path, tyro.conf.Positional]
    out: Path
    taxonomy: str = "us365k"
    caption_key: str | None = None
    separator: str | None = None
    spans: Path | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class RecordArguments:
    """Record the ids of a taxonomy's file beside it, so that no later version moves one unseen.

    Attributes:
        taxonomy: the YAML file; the ids go into the file of its name that ends in .ids.
    """

    taxonomy: Annotated[Path, tyro.conf.Positional]


def record(arguments: RecordArguments) -> int:
    """Write the ids; return the exit status.

    Raises:
        TaxonomyError: the taxonomy is broken, or does not keep an id that is recorded.
    """
    taxonomy, new = record_ids(arguments.taxonomy)
    print(f"{taxonomy.label}: {len(taxonomy.tags):,} ids, {new:,} of them new")
    print(ids_path(arguments.taxonomy))
    return 0


def tag(arguments: TagArguments) -> int:
    """Write the table; return the exit status.

    Raises:
        TaxonomyError: the taxonomy is broken, the table has no captions or has such columns
            already, or a file would be replaced.
        DataError: the table cannot be read.
    """
    taxonomy = load_taxonomy(arguments.taxonomy)
    written = [path for path in (arguments.out, arguments.spans) if path is not None]
    for path in written:
        if path.resolve() == arguments.table.resolve():
            raise TaxonomyError(f"{path} is the table that is read; give another file")
        if path.exists() and not arguments.overwrite:
            raise TaxonomyError(f"{path} is there already; give another, or --overwrite")
    columns, rows = read_table(arguments.table, arguments.separator)
    if columns.count("") > 1:
        raise TaxonomyError(f"{arguments.table}: columns without a name cannot be kept; name them")
    caption_key = _caption_key(arguments, columns)
    added = _columns(taxonomy)
    if taken := [name for name in added if name in columns]:
        raise TaxonomyError(
            f"{arguments.table}: has {', '.join(taken)} already; rename these columns, since tags "
            "that were given are not replaced"
        )
    tagger = Tagger(taxonomy)
    tagged = [(line, cells, tagger.tag(cells[caption_key])) for line, cells in rows]
    for path in written:
        make_directory(path.absolute().parent)
    _write_table(arguments.out, [*columns, *added], tagged)
    if arguments.spans is not None:
        _write_spans(arguments.spans, taxonomy, tagged)
    captions = [cells[caption_key] for _, cells in rows]
    print(_told(taxonomy, captions, [tags for _, _, tags in tagged]))
    print(*written, sep="\n")
    return 0


def _caption_key(arguments: TagArguments, columns: Sequence[str]) -> str:
    wanted = _CAPTIONS if arguments.caption_key is None else (arguments.caption_key,)
    found = [name for name in wanted if name in columns]
    if not found:
        raise TaxonomyError(
            f"{arguments.table}: no column {' or '.join(wanted)}; name that of the captions by "
            f"--caption-key (and check --separator): {', '.join(columns)}"
        )
    return found[0]


def _columns(taxonomy: Taxonomy) -> list[str]:
    fields = [dimension.field for dimension in taxonomy.dimensions.values()]
    return [f"{name}{suffix}" for name in fields for suffix in ("", "_absent", "_uncertain")]


def _cells(tags: Tags) -> dict[str, str]:
    cells = {}
    for name, dimension in tags.taxonomy.dimensions.items():
        cells[dimension.field] = JOIN.join(tags.present(name))
        cells[f"{dimension.field}_absent"] = JOIN.join(tags.absent(name))
        cells[f"{dimension.field}_uncertain"] = JOIN.join(tags.uncertain(name))
    return cells


_Tagged = Sequence[tuple[int, dict[str, str], Tags]]


def _write_table(path: Path, columns: Sequence[str], tagged: _Tagged) -> None:
    text = io.StringIO()
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    writer = csv.DictWriter(text, columns, delimiter=delimiter)
    writer.writeheader()
    writer.writerows({**cells, **_cells(tags)} for _, cells, tags in tagged)
    write_atomically(path, text.getvalue().encode())


def _write_spans(path: Path, taxonomy: Taxonomy, tagged: _Tagged) -> None:
    """Write a first line with the taxonomy, then one for each row of the table."""
    lines = [json.dumps({"taxonomy": taxonomy.label, "sha256": taxonomy.digest})]
    lines += [
        json.dumps({"line": line, "hits": [asdict(hit) for hit in tags.hits]})
        for line, _, tags in tagged
    ]
    write_atomically(path, ("\n".join(lines) + "\n").encode())


def _told(taxonomy: Taxonomy, captions: Sequence[str], tagged: Sequence[Tags]) -> str:
    """Say what was found, by dimension, and what was not."""
    count = len(captions)
    lines = [
        f"{taxonomy.label} (sha256 {taxonomy.digest[:12]}), {count:,} rows, "
        f"{sum(not caption for caption in captions):,} without a caption, "
        f"{sum(not tags.hits for tags in tagged):,} without any tag",
        f"{'':<24}{'tagged':>16}{'absent':>9}{'uncertain':>11}{'both':>6}",
    ]
    for name, dimension in taxonomy.dimensions.items():
        rows = Counter(
            kind
            for tags in tagged
            for kind in ("present", "absent", "uncertain", "contradictions")
            if getattr(tags, kind)(name)
        )
        share = f"{rows['present']:,} ({100 * rows['present'] / count:.1f} %)"
        lines.append(
            f"{dimension.field:<24}{share:>16}{rows['absent']:>9,}{rows['uncertain']:>11,}"
            f"{rows['contradictions']:>6,}"
        )
    lines.append("both: affirmed in one place and negated in another; counted as tagged.")
    return "\n".join(lines)
