"""Webdataset shards: uncompressed tar files of images and captions, with random access."""

from __future__ import annotations

import functools
import glob
import itertools
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastht.data.captions import Cleaning
from fastht.data.cases import parse_split
from fastht.data.columns import find_column, note_columns
from fastht.data.images import DataError
from fastht.data.notes import Note, examples, plural
from fastht.data.records import Dropped, Record, RecordSet, collect

_IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "tif", "tiff", "bmp", "gif", "dcm")
_CAPTION_KEYS = ("caption", "title", "text")  # in this order of preference
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_SAMPLE_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)")  # key, extension: webdataset's rule
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7z": "xz", b"(\xb5/": "zstd"}
_BLOCK = 512  # bytes of a tar header

_Index = dict[str, tuple[int, int]]  # member -> offset of its data, size


def load_shards(
    pattern: str,
    *,
    keys: Mapping[str, str | None] | None = None,
    cleaning: Cleaning = "letters",
) -> RecordSet:
    """Index shards; drop and count samples without image, without or with a short caption.

    pattern: path of a .tar file; may hold ranges like {00000..00012} and the wildcards * ? [].
    Members belong to one sample if their paths agree up to the first dot of the base name. The
    image is the first of .jpg .jpeg .png .webp .tif .tiff .bmp .gif .dcm, the caption the .txt
    member, else "caption", "title" or "text" of the .json member, which may also hold label,
    patient, frame and split. Only headers and captions are read; read_member fetches an image.
    Members of any other kind are counted.

    keys: what label, patient and frame are called in the .json members; default: as the columns of
        a table, see load_records.
    cleaning: of the captions, see clean_caption.

    Raises DataError if a shard is missing, compressed, damaged or truncated, a caption is not
    UTF-8 or not JSON, or no sample is left.
    """
    seen = _Seen(pattern, dict(keys or {}))
    shards = _expand(pattern)
    pairs = itertools.chain.from_iterable(_read_shard(shard, seen) for shard in shards)
    return collect(pattern, pairs, cleaning=cleaning, notes=seen.notes)


@dataclass
class _Seen:
    """What a set of shards holds beside its pairs."""

    pattern: str
    keys: dict[str, str | None]
    unread: Counter[str] = field(default_factory=Counter)  # members by extension
    examples: list[str] = field(default_factory=list)  # of them
    attributes: dict[str, None] = field(default_factory=dict)  # of .json members, in order
    dotted: list[str] = field(default_factory=list)  # members whose dots hide their extension

    def columns(self) -> dict[str, str | None]:
        """What label, patient and frame are called, of the attributes so far."""
        where, names = Path(self.pattern), list(self.attributes)
        return {
            what: given
            if (given := self.keys.get(what)) is not None and given not in names
            else find_column(names, what, given, where)
            for what in ("label", "patient", "frame")
        }

    def notes(self) -> Iterator[Note]:
        """What is to be said of it."""
        if self.dotted:
            count = len(self.dotted)
            what = f"{plural(count, 'file')} in the shards with dots within the name"
            text = f"{what}: {examples(self.dotted, 2)}; webdataset ends a name at its first dot: "
            yield Note("members_with_dots", count, f"{text}write them with _ instead")
        if self.unread:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.unread.most_common())
            text = f"{plural(self.unread.total(), 'file')} in the shards not read: {kinds}"
            yield Note(
                "files_not_read", self.unread.total(), f"{text} ({examples(self.examples, 2)})"
            )
        columns = self.columns()
        for what, given in self.keys.items():
            if given is not None and given not in self.attributes:
                raise DataError(
                    f"{self.pattern}: no attribute {given!r}; correct --{what}-key (the attributes "
                    f"are {', '.join(self.attributes) or 'none'})"
                )
        yield from note_columns(list(self.attributes), columns, also=("text",))


def read_member(image: str) -> bytes:
    """Read the bytes of "shard.tar::member".

    Safe in any number of threads and worker processes: each process keeps the index of a shard
    once read, and no file stays open. Raises DataError if the shard or the member is missing.
    """
    shard, extension, member = image.partition(".tar::")
    shard += ".tar"
    if not extension:
        raise DataError(f"{image}: not of the form shard.tar::member")
    try:
        offset, size = _index(shard)[member]
    except KeyError:
        raise DataError(f"{image}: no such member; was the shard replaced?") from None
    with open(shard, "rb") as file:
        file.seek(offset)
        return file.read(size)


def _expand(pattern: str) -> list[str]:
    """Paths of the shards that a pattern names."""
    if not pattern.endswith(".tar"):
        raise DataError(
            f"{pattern}: neither a .csv, .tsv or .txt table nor uncompressed .tar shards; convert "
            "it (a .tar.gz or .tgz only needs to be decompressed)"
        )
    if os.path.isfile(pattern):
        return [pattern]
    paths = [pattern]
    while match := _BRACES.search(paths[0]):
        first, last = match.groups()
        width = max(len(first), len(last)) if re.match("0.", first) else 1  # as a shell pads
        numbers = [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]
        if not numbers:
            raise DataError(f"{pattern}: {match[0]} is an empty range; swap its ends")
        paths = [_BRACES.sub(number, path, count=1) for path in paths for number in numbers]
    if glob.has_magic(pattern):
        paths = sorted({found for path in paths for found in glob.glob(path)})
        if not paths:
            raise DataError(f"{pattern}: no file matches; check the path")
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        names = ", ".join(missing[:10]) + (", ..." if len(missing) > 10 else "")
        raise DataError(f"{len(missing)} of {len(paths)} shards are missing: {names}")
    return paths


def _index(shard: str) -> _Index:
    """Where the members of a shard lie; read again when the file has changed."""
    try:
        status = os.stat(shard)
    except OSError as error:
        raise DataError(f"{shard}: cannot be read ({error.strerror}); check the path") from None
    return _read_index(shard, status.st_mtime_ns, status.st_size)


@functools.cache
def _read_index(shard: str, mtime_ns: int, size: int) -> _Index:
    """Walk the tar headers; mtime_ns and size only tell versions of the file apart."""
    try:
        with open(shard, "rb") as file:
            head = file.read(4)
            compressed = [kind for magic, kind in _COMPRESSED.items() if head.startswith(magic)]
            if compressed:
                raise DataError(
                    f"{shard}: compressed by {compressed[0]}, which allows no random access; "
                    "decompress it (images hardly shrink anyway)"
                )
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                members = [member for member in tar if member.isfile()]
                file.seek(tar.offset)
                # tarfile takes a damaged or missing header for the end without a word.
                complete = file.read(_BLOCK) == bytes(_BLOCK)
    except OSError as error:
        raise DataError(f"{shard}: cannot be read ({error.strerror}); check the path") from None
    except tarfile.TarError as error:
        raise DataError(f"{shard}: not a sound tar file ({error}); copy it again") from None
    if not complete:
        raise DataError(f"{shard}: cut off or damaged after {len(members)} files; copy it again")
    index = {member.name: (member.offset_data, member.size) for member in members}
    if len(index) < len(members):
        raise DataError(f"{shard}: several members of the same name; write it again")
    return index


def _read_shard(shard: str, seen: _Seen) -> Iterator[Record | Dropped]:
    """The samples of a shard in the order of their first members."""
    samples: dict[str, dict[str, str]] = {}
    for member in _index(shard):
        if match := _SAMPLE_NAME.fullmatch(member):
            samples.setdefault(match[1], {})[match[2].lower()] = member
        else:
            seen.unread["without suffix"] += 1
            seen.examples.append(member)
    for members in samples.values():
        image = next((members[ext] for ext in _IMAGE_EXTENSIONS if ext in members), None)
        read = {image, members.get("txt"), members.get("json")}
        dotted = 0
        for extension, member in members.items():
            if member in read:
                continue
            last = extension.rpartition(".")[2]
            if image is None and "." in extension and last in (*_IMAGE_EXTENSIONS, "txt", "json"):
                seen.dotted.append(member)
                dotted += last in _IMAGE_EXTENSIONS
            else:
                seen.unread[f".{extension}"] += 1
                seen.examples.append(member)
        if image is None:
            lost = "image with dots within its name" if dotted else "sample without image"
            yield from [Dropped(lost)] * (dotted or 1)
            continue
        attributes = _read_json(f"{shard}::{members['json']}") if "json" in members else {}
        seen.attributes |= dict.fromkeys(attributes)
        if "txt" in members:
            caption = _decode(f"{shard}::{members['txt']}")
        else:
            caption = next((attributes[key] for key in _CAPTION_KEYS if key in attributes), "")
        if not isinstance(caption, str) or not caption:
            yield Dropped("sample without caption")
            continue
        columns = seen.columns()
        label, patient, frame = (
            attributes.get(columns[key] or "") for key in ("label", "patient", "frame")
        )
        if frame is not None and (type(frame) is not int or frame < 0):
            raise DataError(f"{shard}::{members['json']}: frame {frame!r} is not an index from 0")
        split = parse_split(str(attributes.get("split") or ""))
        name = f"{os.path.basename(shard)}::{image}"
        yield Record(f"{shard}::{image}", caption, _text(label), _text(patient), frame, split, name)


def _text(value: Any) -> str | None:
    return None if value is None or value == "" else str(value)


def _decode(member: str) -> str:
    try:
        return read_member(member).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{member}: not UTF-8 ({error}); write it as UTF-8") from None


def _read_json(member: str) -> dict[str, Any]:
    try:
        attributes = json.loads(_decode(member))
    except json.JSONDecodeError as error:
        raise DataError(f"{member}: not JSON ({error}); correct it") from None
    if not isinstance(attributes, dict):
        raise DataError(f"{member}: not a JSON object; correct it")
    return attributes
