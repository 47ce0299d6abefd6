"""``fastht captions``: a table of images and what is known of them becomes one with captions."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import tyro

from fastht.captions.checks import Limits
from fastht.captions.engine import Captioned, Result, caption_rows, relative_path
from fastht.captions.exchange import read_given, write_prompts
from fastht.captions.schema import Templates, TemplatesError, load_templates
from fastht.captions.statistics import describe
from fastht.data.tables import read_table
from fastht.files import make_directory, write_atomically, write_json

TABLE_NAME, STATISTICS_NAME = "captions.csv", "captions.json"
_LLM = "llm"
_BEFORE = "title_before"
_SOURCES = ("source", "set", "dataset", "origin")


@dataclass(frozen=True)
class CaptionsArguments:
    """Write captions for the images of a table from its columns; no model, no network.

    The first tier of the templates that a row has the columns for captions it: a report, a
    translated report or a language model's caption as it is, else sentences of its metadata, of
    organ and condition, or of the organ alone. The output is a table for fastht train and
    open_clip: all columns, with title (title_2, ...) and the tier.

    Attributes:
        table: CSV or TSV, or "sample", the simulated set that comes with fastht.
        data: the same by an option, as other commands have it.
        templates: breast, thyroid, liver, lung, or a YAML file.
        out: folder of captions.csv and captions.json, the statistics.
        captions_per_image: how many, of those that have as many different ones.
        seed: of the choice of sentences.
        separator: column separator of the table; default: found out.
        write_prompts: file of prompts for a language model, a JSON line an image.
        llm_column: column of captions that a language model wrote; they are checked.
        llm_captions: file of them, JSON lines of id and caption, or captions.
        min_words: of a language model's caption.
        max_words: likewise.
        model: whose tokens are counted: open_clip's name, or the text tower of a dual encoder:
            hf:ORG/NAME, local-dir:FOLDER or tiny-bert; "none" counts none.
        overwrite: replace the files if they are there.
    """

    table: Annotated[str | None, tyro.conf.Positional] = None
    data: str | None = None
    templates: str = "breast"
    out: Path = Path("runs/captions")
    captions_per_image: int = 1
    seed: int = 0
    separator: str | None = None
    write_prompts: Path | None = None
    llm_column: str | None = None
    llm_captions: Path | None = None
    min_words: int = 5
    max_words: int = 60
    model: str = "ViT-B-16"
    overwrite: bool = False

    def __post_init__(self) -> None:
        if (self.table is None) == (self.data is None):
            raise TemplatesError("give one table: TABLE, or --data TABLE")
        if self.captions_per_image < 1:
            raise TemplatesError(
                f"captions_per_image is {self.captions_per_image}; it must be at least 1"
            )
        if self.llm_column and self.llm_captions:
            raise TemplatesError("give --llm-column or --llm-captions, not both")


def captions(
    arguments: CaptionsArguments,
    token_counter: Callable[[str], tuple[Callable[[Sequence[str]], list[int]], int]],
) -> int:
    """Write the table and its statistics; return the exit status.

    Args:
        arguments: the options.
        token_counter: from the name of a model to what counts the tokens of texts, and its context.

    Raises:
        TemplatesError: the templates, the table or a language model's captions cannot be used, or a
            file would be replaced.
        DataError: a file cannot be read.
    """
    source = arguments.table or arguments.data or ""
    path = Path(source)
    if source == "sample":
        path = Path(str(resources.files("fastht.data") / "sample" / "sample.csv"))
    out = arguments.out
    written = [out / TABLE_NAME, out / STATISTICS_NAME]
    written += [arguments.write_prompts] if arguments.write_prompts else []
    for file in written:
        if file.resolve() == path.resolve():
            raise TemplatesError(f"{file} is the table that is read; give another --out")
        if file.exists() and not arguments.overwrite:
            raise TemplatesError(f"{file} is there already; give another, or --overwrite")
    templates = _with_llm(load_templates(arguments.templates), arguments.llm_column)
    columns, listed = read_table(path, arguments.separator)
    rows = [row for _, row in listed]
    if arguments.llm_column and arguments.llm_column not in columns:
        raise TemplatesError(
            f"{path}: no column {arguments.llm_column!r}; the columns are {', '.join(columns)}"
        )
    count_tokens, context = (
        (None, 77) if arguments.model == "none" else token_counter(arguments.model)
    )
    limits = Limits(arguments.min_words, arguments.max_words, count_tokens, context)
    root, count = path.parent, arguments.captions_per_image
    options: dict[str, Any] = {"root": root, "seed": arguments.seed, "count": count}
    if arguments.llm_captions is not None:
        image = next((name for name in templates.image if name in columns), "")
        paths = [relative_path(row.get(image, ""), root) for row in rows]
        options["given"] = read_given(arguments.llm_captions, list(dict.fromkeys(paths)))
    try:
        result = caption_rows(templates, rows, limits=limits, given_tier=_LLM, **options)
    except TemplatesError as error:
        raise TemplatesError(f"{path}: {error}") from None
    key = next((name for name in _SOURCES if name in columns), None)
    sources = [row.get(key or "") or None for row in rows]
    statistics = describe(result, sources=sources, tokens=count_tokens, context=context)
    statistics |= {"templates": templates.source, "seed": arguments.seed, "model": arguments.model}
    make_directory(out)
    write_atomically(out / TABLE_NAME, _table(path, columns, rows, result.rows, count))
    write_json(out / STATISTICS_NAME, statistics)
    if arguments.write_prompts is not None:
        make_directory(arguments.write_prompts.absolute().parent)
        write_atomically(
            arguments.write_prompts, write_prompts(templates, result.rows, count, limits)
        )
    print(_told(templates, result, statistics, count, renamed="title" in columns))
    print(*written, sep="\n")
    print(f"train on them: fastht train --data {out / TABLE_NAME} --image-dirs {root}")
    return 0


def _with_llm(templates: Templates, column: str | None) -> Templates:
    """Read a language model's captions from a column of any name."""
    if column is None:
        return templates
    if not any(tier.verbatim == _LLM and tier.checked for tier in templates.tiers):
        raise TemplatesError(
            f"{templates.source}: no tier with `verbatim: {_LLM}` and `checked: true` for "
            "--llm-column; add one"
        )
    fields = templates.fields | {_LLM: (column,)}
    return Templates(**{**vars(templates), "fields": fields})


def _table(
    path: Path,
    columns: Sequence[str],
    rows: Sequence[Mapping[str, str]],
    made: Sequence[Captioned],
    count: int,
) -> bytes:
    """The table with columns of captions; captions that it has already keep a column."""
    titles = ["title", *(f"title_{i}" for i in range(2, count + 1))]
    names = [_BEFORE if name == "title" else name for name in columns if name]
    if taken := sorted({*titles, "tier"} & {*names} | ({_BEFORE} & {*columns})):
        raise TemplatesError(f"{path}: has {', '.join(taken)} already; rename these columns")
    text = io.StringIO()
    writer = csv.DictWriter(text, [*names, *titles, "tier"], lineterminator="\n")
    writer.writeheader()
    for row, caption in zip(rows, made, strict=True):
        cells = {_BEFORE if name == "title" else name: row[name] for name in columns if name}
        cells |= dict(zip(titles, caption.captions, strict=False))
        writer.writerow(cells | {"tier": caption.tier})
    return text.getvalue().encode()


def _told(
    templates: Templates, result: Result, found: Mapping[str, Any], count: int, *, renamed: bool
) -> str:
    tiers = ", ".join(f"{n:,} {name}" for name, n in found["tiers"].items())
    most = found["most_frequent"][0]
    lines = [
        f"{found['captions']:,} captions of {found['rows']:,} rows ({tiers}), by templates "
        f"{templates.source}; {found['distinct']:,} different; the commonest is "
        f"{100 * most['share']:.1f} % of them"
    ]
    if tokens := found.get("tokens"):
        lines.append(
            f"tokens: median {tokens['median']:.0f}, at most {tokens['max']:.0f}; "
            f"{tokens['truncated']:,} captions are longer than the {tokens['context']} that "
            f"{found['model']} reads"
        )
    stated = found["label_stated"]
    if stated["captions"]:
        lines.append(
            f"note: {stated['captions']:,} of {stated['of']:,} captions state the label: retrieval "
            "then measures whether classes are told apart"
        )
    if result.refused:
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in sorted(result.refused.items()))
        lines.append(f"note: captions of the language model that were not taken: {reasons}")
    few = sum(len(row.captions) < count for row in result.rows)
    if few:
        lines.append(f"note: {few:,} rows have fewer than {count} different captions")
    if renamed:
        lines.append(f"note: the column title that was there is now {_BEFORE}")
    return "\n".join(lines)
