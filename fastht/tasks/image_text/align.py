"""``fastht align``: how near images and their captions lie, before and after fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastht.data import DataError, Record
from fastht.tasks.image_text.judged_records import PairsArguments, encode_records, open_pairs
from fastht.tasks.image_text.pair_scores import PairScores, of_plain_text, pair_intervals
from fastht.tasks.results.alignment_pictures import draw_alignment
from fastht.tasks.results.comparison import comparison_table, write_comparison
from fastht.tasks.results.shown import Shown, count_patients
from fastht.tasks.scores.grouping import numbered

ALIGNMENT_NAME = "alignment.png"
_GROUPS = ("source", "organ")  # columns that are looked for where none is named
_SCORES = (
    "paired",
    "unmatched",
    "gap",
    "rank_percentile",
    "image_to_text_recall@1",
    "image_to_text_recall@5",
    "image_to_text_recall@10",
    "image_to_text_median_rank",
    "text_to_image_recall@1",
    "text_to_image_recall@5",
    "text_to_image_recall@10",
    "text_to_image_median_rank",
    "modality_gap",
    "alignment",
    "image_uniformity",
    "text_uniformity",
    "image_effective_rank",
    "text_effective_rank",
)
_OF_IMAGES = ("image_uniformity", "image_effective_rank")  # texts have no part in these
_OF_GROUPS = 4  # of these scores are printed for each group; all are in results.json
_PRINTED_GROUPS = 12


@dataclass(frozen=True)
class AlignArguments(PairsArguments):
    """Measure how near images and their captions lie, with a base and with what a run made of it.

    All pairs are judged together, and those within each source and each organ by themselves, as
    telling organs apart is easy. Images that the run trained on are left out.

    Attributes:
        within: columns of the table whose values are judged by themselves; default: those of
            source and organ that it has. "label" is the column of the classes.
    """

    within: tuple[str, ...] = ()


def align(arguments: AlignArguments) -> int:
    """Measure, print and leave the results with a picture; return the exit status.

    Raises:
        DataError: the data cannot be used, lacks a column of ``within``, or no image is left.
        ResumeError: the run's weights cannot be read.
        ValueError: the run or the model cannot be had.
    """
    judged = open_pairs("align", arguments, columns=arguments.within or _GROUPS)
    clip, records, out = judged.clip, judged.records, judged.out
    groups = _groups(records, arguments.within, judged.found.source)

    embedded: dict[str, tuple[Tensor, Tensor]] = {}
    plain: dict[str, tuple[Tensor, Tensor]] = {}
    captions = [record.caption for record in records]
    for version in clip.versions():
        images = encode_records(records, clip, arguments)
        embedded[version] = images, clip.embedder(captions)
        if clip.embedder.graph is not None:
            plain[version] = images, clip.embedder.plain(captions)
    whole = _judge(records, embedded)
    if plain:
        whole = _beside(whole, _judge(records, plain))
    parts = {
        column: {value: _judge_rows(records, embedded, rows) for value, rows in members.items()}
        for column, members in groups.items()
    }
    lacking = {
        column: len(records) - sum(map(len, members.values())) for column, members in groups.items()
    }
    out.mkdir(parents=True, exist_ok=True)
    write_comparison(
        out,
        {
            **judged.describe("align"),
            **whole,
            "within": parts,
            "without_group": lacking,
            **judged.close(),
        },
    )
    path = out / ALIGNMENT_NAME
    files = {(record.image, record.frame) for record in records}
    patients = count_patients(record.patient for record in records)
    draw_alignment(
        path,
        embedded,
        numbered(captions),
        f"{clip.name}: images and their captions",
        Shown(len(files), patients, clip.name, judged.data),
    )
    print(comparison_table("all pairs", _columns(whole, embedded), whole["intervals"]))
    for column, values in parts.items():
        print(f"\n{_by_group(column, values, embedded)}")
        if lacking[column]:
            print(
                f"{lacking[column]} pairs are in none of these: no {column}, or one whose captions "
                "are all equal."
            )
    print(f"\nresults and picture: {out}")
    return 0


def _groups(
    records: Sequence[Record], within: Sequence[str], source: str
) -> dict[str, dict[str, list[int]]]:
    """Return the rows of each value of each column; values without an unmatched pair are left out.

    Raises:
        DataError: no record has a column that was asked for, or each has another value of it.
    """
    result = {}
    for column in within or _GROUPS:
        members: dict[str, list[int]] = {}
        for row, record in enumerate(records):
            if value := _value(record, column):
                members.setdefault(value, []).append(row)
        if not members and within:
            raise DataError(f"{source}: no column {column}, or it is empty; correct --within")
        members = {
            value: rows
            for value, rows in sorted(members.items())
            if len({records[row].caption for row in rows}) > 1
        }
        if within and not members:
            raise DataError(
                f"{source}: no two pairs have the same {column}; name a column of groups by "
                "--within"
            )
        if members:
            result[column] = members
    return result


def _value(record: Record, column: str) -> str:
    if column in record.attributes:
        return record.attributes[column].strip()
    return str(record.label or "") if column == "label" else ""


def _judge(
    records: Sequence[Record], embedded: Mapping[str, tuple[Tensor, Tensor]]
) -> dict[str, Any]:
    """Return ``before``, ``after`` and ``intervals`` of pairs, for a ``results.json``."""
    judged = {version: PairScores(records, *both) for version, both in embedded.items()}
    scores = {version: _only(pairs.scores()) for version, pairs in judged.items()}
    intervals = pair_intervals(judged)
    for name in ("before", "after", "difference"):
        if name in intervals:
            intervals[name] = _only(intervals[name])
    # Where nothing adapts the model, it is the same before and after.
    after = scores.get("after", scores["before"])
    return {"before": scores["before"], "after": after, "intervals": intervals}


def _beside(judged: Mapping[str, Any], plain: Mapping[str, Any]) -> dict[str, Any]:
    """Add what the plain text tower makes of it, where the tags of texts have a part in it."""

    def named(scores: Mapping[str, Any]) -> dict[str, Any]:
        names = [name for name in _SCORES if name in scores and name not in _OF_IMAGES]
        return of_plain_text({name: scores[name] for name in names})

    both = {version: judged[version] | named(plain[version]) for version in ("before", "after")}
    intervals = {
        name: found | named(plain["intervals"][name]) if isinstance(found, dict) else found
        for name, found in judged["intervals"].items()
    }
    return {**both, "intervals": intervals}


def _judge_rows(
    records: Sequence[Record],
    embedded: Mapping[str, tuple[Tensor, Tensor]],
    rows: Sequence[int],
) -> dict[str, Any]:
    part = {name: (images[rows], texts[rows]) for name, (images, texts) in embedded.items()}
    return {"pairs": len(rows)} | _judge([records[row] for row in rows], part)


def _only(scores: Mapping[str, Any]) -> dict[str, Any]:
    return {name: scores[name] for name in _SCORES if name in scores}


def _columns(judged: Mapping[str, Any], versions: Mapping[str, Any]) -> dict[str, Any]:
    return {version: judged[version] for version in versions}


def _by_group(
    column: str, values: Mapping[str, Mapping[str, Any]], versions: Mapping[str, Any]
) -> str:
    """Return a table for each value of a column, the largest ones where there are many."""
    largest = sorted(values, key=lambda value: -values[value]["pairs"])[:_PRINTED_GROUPS]
    tables = []
    for value in largest:
        found = values[value]
        few = {
            version: {name: found[version][name] for name in _SCORES[:_OF_GROUPS]}
            for version in versions
        }
        heading = f"within {column} {value} ({found['pairs']:,} pairs)"
        intervals = {name: ends for name, ends in found["intervals"].items() if name != "note"}
        tables.append(comparison_table(heading, few, intervals))
    if len(largest) < len(values):
        tables.append(f"{len(values) - len(largest)} smaller ones are in results.json.")
    return "\n\n".join(tables)
