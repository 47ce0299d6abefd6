"""``fastht taxonomy check``: everything that is wrong with the tags and captions of a data set."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from fastht.data.cases import CaseSet
from fastht.data.images import DataError
from fastht.data.layouts import options_of, scan_cases
from fastht.data.source import DataSource
from fastht.files import make_directory, write_atomically, write_json
from fastht.tasks.tags import balance, captions, given, leaks, levels
from fastht.tasks.tags.findings import Finding, Records, Report, finding, read_tags
from fastht.tasks.tags.pages import as_json, markdown, text
from fastht.tasks.tags.pictures import draw_coverage, draw_shifts
from fastht.tasks.tags.text_tower import text_encoder
from fastht.taxonomy import Taxonomy, load_taxonomy
from fastht.taxonomy import similarity as s
from fastht.taxonomy.settings import Missing

PAGE_NAME, JSON_NAME = "tags.md", "tags.json"
COVERAGE_NAME, SHIFTS_NAME = "coverage.png", "shifts.png"


@dataclass(frozen=True)
class CheckArguments(DataSource):
    """List what is wrong with the tags and the captions of a data set, and how they are spread.

    Exit status 1 if there is an error; warnings alone leave it at 0. Captions that refuse to
    describe are told of, whatever --refusals says.

    Attributes:
        data: "sample", a folder, or a CSV, TSV, JSON or Parquet table with captions.
        taxonomy: name of a shipped one, or a YAML file; tags are in the columns of its fields.
        out: folder of the report, as Markdown, JSON and pictures.
        images: read all images, to find unreadable ones and copies on several sides.
        tau: temperature of soft targets, whose sharpness is told.
        batch: number of samples in a batch of them.
        missing: what a dimension counts there that one of two samples lacks; default: as the
            taxonomy has it.
        model: whose text tower says how alike values are, where the taxonomy has similarity text:
            that of the training, as open_clip names it; default: none, and the sharpness is not
            told then.
        pretrained: its weights: open_clip's tag, the file of the weights, or "none" for random
            ones.
        seed: of the batches and the shuffles.
    """

    data: Annotated[str, tyro.conf.Positional] = "sample"
    taxonomy: str = "us365k"
    out: Path = Path("runs/tags")
    images: bool = True
    tau: float = 0.07
    batch: int = 256
    missing: Missing | None = None
    model: str | None = None
    pretrained: str = "openai"
    seed: int = 0


def check(arguments: CheckArguments) -> int:
    """Print the report and write it; return the exit status.

    Raises:
        TaxonomyError: the taxonomy is broken.
        DataError: the data set cannot be read at all, or an option cannot be meant.
        ValueError: the model whose text tower is asked for cannot be had.
    """
    if not arguments.tau > 0:
        raise DataError(f"--tau is {arguments.tau}; give a number above 0")
    if arguments.batch < 2:
        raise DataError(f"--batch is {arguments.batch}; give at least 2 samples")
    taxonomy = load_taxonomy(arguments.taxonomy)
    if arguments.model is not None and not _by_text(taxonomy):
        raise DataError(
            f"--model is for similarity text, which no dimension of {taxonomy.label} has; leave it "
            "out, or write `similarity: {method: text}` into the taxonomy's file"
        )
    found, problems = _read(arguments, taxonomy)
    report = inspect(found, problems, taxonomy, arguments)
    make_directory(arguments.out)
    pictures = draw(report, arguments.out)
    write_json(arguments.out / JSON_NAME, as_json(report))
    write_atomically(arguments.out / PAGE_NAME, markdown(report, pictures).encode())
    print(text(report))
    print(*(arguments.out / name for name in (PAGE_NAME, JSON_NAME, *pictures)), sep="\n")
    return 1 if report.of("error") else 0


def inspect(
    found: CaseSet, problems: list[str], taxonomy: Taxonomy, arguments: CheckArguments
) -> Report:
    """Gather all findings of a set that was read.

    problems: what its reader found wrong.
    """
    report = Report(found.source, (taxonomy.label, taxonomy.digest), [found.describe()])
    report.summary += [f"note: {note.text}" for note in found.notes if note.text]
    if problems:
        report.findings += finding("reading", "error", "not to be read", "see each", problems)
    if not found.cases:
        return report
    records = read_tags(taxonomy, found.cases)
    if records.has_tags:
        report.findings += given.check_tags(records)
        report.tables["agreement"] = given.agreement(records)
    else:
        report.summary.append("note: the data gives no tags; those of its captions are taken")
    report.tables["coverage"] = given.coverage(records)
    wrong, table = levels.check_levels(records)
    report.findings += wrong
    if table is not None:
        report.tables["tirads"] = table
    wrong, report.tables["captions"] = captions.check_captions(records)
    report.findings += wrong + leaks.check_groups(found)
    if arguments.images:
        wrong, report.tables["images"] = leaks.check_images(found)
        report.findings += wrong
    else:
        report.summary.append("note: images were not read (--no-images)")
    wrong, report.tables["shifts"] = balance.shifts(records, arguments.seed)
    report.findings += wrong + _sharpness(report, records, arguments)
    return report


def _sharpness(report: Report, records: Records, arguments: CheckArguments) -> list[Finding]:
    """Findings on the soft targets; where they cannot be made here, a note."""
    taxonomy, encode = records.taxonomy, None
    if _by_text(taxonomy):
        if arguments.model is None:
            report.summary.append(
                "note: similarity text needs a text tower, so that the sharpness of soft targets "
                "is not told: name that of the training by --model and --pretrained"
            )
            return []
        encode = text_encoder(arguments.model, arguments.pretrained)
    tags = [records.tags(record) for record in records]
    matrix = s.similarity_matrix(taxonomy, records=tags, encode=encode)
    missing = arguments.missing or taxonomy.missing
    tau, batch, seed = arguments.tau, arguments.batch, arguments.seed
    wrong, table = balance.sharpness(records, matrix, tau, batch, missing, seed)
    if encode is not None:
        table["text_tower"] = f"{arguments.model}/{arguments.pretrained}"
    report.tables["sharpness"] = table
    return wrong


def _by_text(taxonomy: Taxonomy) -> bool:
    """Whether a text tower says how alike any values are."""
    return any(taxonomy.similarity.of(name).name == "text" for name in taxonomy.dimensions)


def draw(report: Report, out: Path) -> list[str]:
    """Draw what there are numbers for; return the names of the pictures."""
    drawn = []
    if report.tables.get("coverage"):
        draw_coverage(report, out / COVERAGE_NAME)
        drawn.append(COVERAGE_NAME)
    if report.tables.get("shifts"):
        draw_shifts(report, out / SHIFTS_NAME)
        drawn.append(SHIFTS_NAME)
    return drawn


def _read(arguments: CheckArguments, taxonomy: Taxonomy) -> tuple[CaseSet, list[str]]:
    options = arguments.reading()
    layout = options.pop("layout")
    options["refusals"] = "keep"
    if "tag_keys" in options_of(arguments.data, layout):
        fields = [dimension.field for dimension in taxonomy.dimensions.values()]
        if strange := [key for key in arguments.tag_keys if key not in fields]:
            what = f"--tag-keys {' '.join(strange)}: no field of {taxonomy.label}"
            raise DataError(f"{what}, which has {', '.join(fields)}; extend it")
        options["tag_keys"] = arguments.tag_keys or tuple(fields)
    found, problems = scan_cases(task="pairs", layout=layout, **options)
    return replace(found, unusable=()), problems  # each is among the problems
