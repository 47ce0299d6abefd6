"""Releases of other libraries that fastht has not been tried with: told at patching."""

from __future__ import annotations

import sys
import warnings

from torch import nn

# The newest major release whose towers the tests know. open_clip 4 by its main branch.
KNOWN = {"open_clip": 4, "timm": 1, "transformers": 5}


def tell_unknown_releases(tower: nn.Module) -> None:
    """Warn where a tower is of a library whose major release is newer than :data:`KNOWN`."""
    library = type(tower).__module__.partition(".")[0]
    version = str(getattr(sys.modules.get(library), "__version__", ""))
    major = version.partition(".")[0]
    if library in KNOWN and major.isdigit() and int(major) > KNOWN[library]:
        warnings.warn(
            f"{library} {version} is newer than fastht knows (up to {KNOWN[library]}.x). Its tower "
            "was recognised by its structure; compare fastht.disable_adapter with the base, and "
            "look for a newer fastht",
            stacklevel=4,
        )
