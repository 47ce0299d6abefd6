"""Reading a taxonomy: one that is shipped, or a file, which may extend another."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from fastht.files import write_atomically
from fastht.taxonomy.builder import Builder
from fastht.taxonomy.ids import ids_path, ids_text, require_recorded_ids
from fastht.taxonomy.schema import Taxonomy, TaxonomyError, refusal


def shipped() -> tuple[str, ...]:
    """Return the names of the taxonomies in the package."""
    files = resources.files("fastht.taxonomy").iterdir()
    return tuple(sorted(f.name[:-5] for f in files if f.name.endswith(".yaml")))


def load_taxonomy(source: str | Path = "us365k") -> Taxonomy:
    """Read and check a taxonomy.

    Args:
        source: the name of a shipped one, with or without its version (``us365k@1``), or the path
            of a YAML file. ``extends:`` in a file names another in the same way; a path there is
            taken from the file's folder.

    Raises:
        TaxonomyError: it cannot be read or breaks the rules; all problems are listed.
    """
    return _load(str(source), Path(), ())


def record_ids(path: Path) -> tuple[Taxonomy, int]:
    """Read a file, write its ids beside it, return the taxonomy and how many are new.

    Raises:
        TaxonomyError: as :func:`load_taxonomy`; an id that is recorded already is never changed.
    """
    if path.suffix not in (".yaml", ".yml"):
        raise TaxonomyError(f"{path}: not a YAML file, whose ids could stand beside it")
    taxonomy = _load(str(path.absolute()), Path(), (), new=True)
    recorded = ids_path(path)
    before = len(recorded.read_text(encoding="utf-8").splitlines()) if recorded.is_file() else 0
    write_atomically(recorded, ids_text(taxonomy).encode())
    return taxonomy, len(taxonomy.tags) - before


def _load(source: str, folder: Path, below: tuple[Path, ...], new: bool = False) -> Taxonomy:
    """Read a taxonomy and what it extends.

    folder: that a path is taken from. below: files that extend it. new: it may have new ids.
    """
    name, _, version = source.partition("@")
    if name in shipped():
        path = Path(str(resources.files("fastht.taxonomy") / f"{name}.yaml"))
    else:
        path, version = folder / source, ""
        if path.suffix not in (".yaml", ".yml"):
            known = ", ".join(shipped())
            raise TaxonomyError(f"taxonomy {source!r}: neither a shipped one ({known}) nor *.yaml")
    if path.resolve() in below:
        raise TaxonomyError(f"{path}: it extends itself; take out one `extends:`")
    content, lines = _read(path)
    base = None
    if (extended := content.get("extends")) is not None:
        base = _load(str(extended), path.parent, (*below, path.resolve()))
    builder = Builder(content, base, path.parent, lines)
    if (taxonomy := builder.build()) is None:
        raise refusal(str(path), builder.problems)
    if version and version != str(taxonomy.version):
        raise TaxonomyError(f"taxonomy {source!r}: this fastht ships {taxonomy.label}")
    if base is not None:
        taxonomy.require_ids_of(base)
    require_recorded_ids(taxonomy, path, new=new)
    return taxonomy


# With libyaml, which PyYAML's wheels bring along, the shipped taxonomy takes a tenth of the time.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Strict(_Loader):
    """Refuses a key that stands twice, of which YAML would drop one without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value!r} stands twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """What a file holds, and in which line things stand, by what problems call them."""
    try:
        loader = _Strict(path.read_text(encoding="utf-8-sig"))
        node = loader.get_single_node()
        content = None if node is None else loader.construct_document(node)
    except OSError as error:
        raise TaxonomyError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except UnicodeDecodeError as error:
        raise TaxonomyError(f"{path}: not UTF-8 ({error}); save it as UTF-8") from None
    except yaml.YAMLError as error:
        told = " ".join(str(error).split())
        raise TaxonomyError(f"{path}: not YAML that can be read ({told})") from None
    if not isinstance(content, dict):
        raise TaxonomyError(f"{path}: a taxonomy is `name: …` lines; see docs/taxonomy.md")
    return content, {_called(keys): line for keys, line in _lines(node, ())}


def _lines(node: yaml.Node | None, above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], int]]:
    """The keys of a file, each with those above it, and their lines from 1."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            keys = (*above, str(key.value))
            yield keys, key.start_mark.line + 1
            yield from _lines(value, keys)


def _called(keys: tuple[str, ...]) -> str:
    """What problems call the thing at some keys: Shape/oval: synonyms."""
    if keys[0] == "dimensions" and len(keys) > 1:
        _, name, *more = keys
        if len(more) > 1 and more[0] in ("add", "values"):
            return ": ".join((f"{name}/{more[1]}", *more[2:]))
        return ": ".join((name, *more))
    return ": ".join(keys)
