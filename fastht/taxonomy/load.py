"""Reading a taxonomy: one that is shipped, or a file, which may extend another."""

from __future__ import annotations

from collections.abc import Hashable
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from fastht.taxonomy.schema import Builder, Taxonomy, TaxonomyError, refusal


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


def _load(source: str, folder: Path, below: tuple[Path, ...]) -> Taxonomy:
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
    content = _read(path)
    base = None
    if (extended := content.get("extends")) is not None:
        base = _load(str(extended), path.parent, (*below, path.resolve()))
    builder = Builder(content, base)
    if (taxonomy := builder.build()) is None:
        raise refusal(str(path), builder.problems)
    if version and version != str(taxonomy.version):
        raise TaxonomyError(f"taxonomy {source!r}: this fastht ships {taxonomy.label}")
    if base is not None:
        taxonomy.require_ids_of(base)
    return taxonomy


class _Strict(yaml.SafeLoader):
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


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8-sig"), _Strict)
    except OSError as error:
        raise TaxonomyError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except UnicodeDecodeError as error:
        raise TaxonomyError(f"{path}: not UTF-8 ({error}); save it as UTF-8") from None
    except yaml.YAMLError as error:
        told = " ".join(str(error).split())
        raise TaxonomyError(f"{path}: not YAML that can be read ({told})") from None
    if not isinstance(content, dict):
        raise TaxonomyError(f"{path}: a taxonomy is `name: …` lines; see docs/taxonomy.md")
    return content
