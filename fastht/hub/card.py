"""The model card of an adapter's repository: its facts between two marks, all else the owner's."""

from __future__ import annotations

import re

from fastht.saved import SavedAdapter
from fastht.version import __version__

BEGIN = "<!-- fastht: the lines up to the next mark are written by fastht; others are kept -->"
END = "<!-- /fastht -->"
_HEAD = """\
---
library_name: fastht
tags:
- fastht
- ht-adapter
- vision-transformer
---

# {name}

"""
_NO_RUN = """\
No run was given when this was written: on which data the adapters were trained, and how good they
are, is not known here."""
_LIMITS = """\
Research software. It has not been assessed for use in medical care, and nothing here claims that
it is fit for that."""
_LICENCE = """\
The owner of this repository has to choose one: put `license: NAME` into the head of this file. What
the licence of the base model asks for holds for the base with these adapters too."""
_PATH = re.compile(r"(^|:|/)/(.*)$")


def public_name(name: str | None) -> str | None:
    """Return the name of a base model without the folders of the machine that it was read on."""
    if name is None:
        return None

    def short(match: re.Match[str]) -> str:
        kept = 1 if match[1] == "/" else 2  # weights' file, or the model's folder and its weights
        return match[1] + "/".join(match[2].split("/")[-kept:])

    return _PATH.sub(short, name)


def write_card(saved: SavedAdapter, repository: str, about: str = "", origin: str = "") -> str:
    """Return the card of a new repository.

    Args:
        saved: the adapter.
        repository: as ``"ORG/REPO"``.
        about: sections on data and scores, as Markdown with headings of the second level.
        origin: from which address of the Hub the adapters were loaded before they were trained on.
    """
    base = public_name(saved.base["name"])
    numbers = sum(tensor.numel() for tensor in saved.weights.values())
    dtypes = sorted({str(t.dtype).removeprefix("torch.") for t in saved.weights.values()})
    config, tower = saved.config, saved.base
    blocks = len({name.split(".")[1] for name in saved.weights})
    grid = tower["grid_size"]
    rows = {
        "base model": f"`{base}`" if base else "not named",
        "its vision tower": ", ".join(
            [
                f"{tower['depth'] or 'unknown number of'} blocks",
                f"{tower['dim']} features",
                f"patch grid {grid[0]} x {grid[1]}" if grid else "patch grid unknown",
            ]
        ),
        "adapters": f"{blocks}, variant {config.variant}"
        + (f", {config.spectral} filter" if config.has_filter else "")
        + f", {config.bottleneck_dim} channels, dropout {config.dropout}",
        "parameters": f"{numbers:,} in {', '.join(dtypes)}",
    }
    if saved.modules:
        rows["trained beside them"] = ", ".join(f"`{path}`" for path in sorted(saved.modules))
    if origin:
        rows["trained on from"] = f"`{origin}`"
    rows["written by"] = f"fastht {__version__}"
    table = "\n".join(["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items())])
    use = (
        "```python\n"
        "import fastht  # pip install 'fastht[hub]'\n\n"
        f"# model: {base or 'the base model'} as its own library builds it\n"
        f'fastht.load_adapter(model, "hf://{repository}")\n'
        "```"
    )
    sections = [
        "HT adapters (hybrid tuning, arXiv 2506.08849) for a frozen vision transformer, whose own\n"
        "weights are not in this repository.",
        table,
        "## Use",
        use,
        about.strip() or f"## Data and scores\n\n{_NO_RUN}",
        f"## Limits\n\n{_LIMITS}",
        f"## Licence\n\n{_LICENCE}",
    ]
    body = "\n\n".join([BEGIN, *sections, END])
    return _HEAD.format(name=repository.partition("/")[2]) + body + "\n"


def merge_cards(there: str, new: str) -> str | None:
    """Return a repository's card with its marked lines replaced by those of a new one.

    Returns:
        ``None`` where it has no marks, or more than a pair of them: it is the owner's alone.
    """
    if there.count(BEGIN) != 1 or there.count(END) != 1 or there.index(BEGIN) > there.index(END):
        return None
    begin, end = new.index(BEGIN), new.index(END)
    return there[: there.index(BEGIN)] + new[begin:end] + there[there.index(END) :]
