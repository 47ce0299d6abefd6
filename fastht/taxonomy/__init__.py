"""What ultrasound findings are called: a taxonomy and the tags that a text has in it.

Its modules need PyYAML, and no torch but for ``graph``, which is imported by its own name.
"""

from fastht.taxonomy.load import load_taxonomy, shipped
from fastht.taxonomy.schema import Dimension, Phrase, Taxonomy, TaxonomyError, Value
from fastht.taxonomy.tagger import Hit, Tagger, Tags

__all__ = [
    "Dimension",
    "Hit",
    "Phrase",
    "Tagger",
    "Tags",
    "Taxonomy",
    "TaxonomyError",
    "Value",
    "load_taxonomy",
    "shipped",
]
