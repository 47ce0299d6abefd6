"""Pages of the API reference: a page a package, an entry for each name in its ``__all__``."""

from __future__ import annotations

import ast

from website.repository import ROOT

# The package of each page, its title, and what it begins with.
REFERENCES = {
    "adapters": ("fastht", "Adapters", "What `import fastht` offers."),
    "operator": (
        "fastht.ops",
        "The operator",
        "The adapter as one operation, for those who bring their own module.",
    ),
    "losses": (
        "fastht.losses",
        "Losses",
        "See also [how the losses work](../losses.md).",
    ),
    "taxonomy": ("fastht.taxonomy", "Taxonomy", "See also [tags of captions](../taxonomy.md)."),
    "data": ("fastht.data", "Data", "See also [checking a data set](../check-data.md)."),
}


def page(name: str) -> str:
    """Return a page's Markdown, made of the docstrings of a package's public names."""
    package, title, begin = REFERENCES[name]
    entries = [f"::: {path}\n" for path in public_names(package).values()]
    return "\n".join([f"# {title}: `{package}`\n", f"{begin}\n", *entries])


def public_names(package: str) -> dict[str, str]:
    """Return where each name of ``__all__`` is defined, as ``module.name``.

    By the module that defines it, since `fastht.patch` is a function and a module.
    """
    file = ROOT.joinpath(*package.split(".")) / "__init__.py"
    tree = ast.parse(file.read_text(encoding="utf-8"))
    origins, names = {}, []
    for node in ast.walk(tree):  # names that are imported late stand under TYPE_CHECKING
        if isinstance(node, ast.ImportFrom):
            origins |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            names = ast.literal_eval(node.value)
    return {name: origins[name] for name in names if not name.startswith("__")}
