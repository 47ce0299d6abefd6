"""Reading, extending and refusing taxonomies."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

import fastht
from fastht.taxonomy import TaxonomyError, load_taxonomy

PUBLISHED = {
    "Diagnosis": 5,
    "Body_system_level": 9,
    "Organ_level": 52,
    "Shape": 7,
    "Margins": 2,
    "Echogenicity": 5,
    "InternalCharacteristics": 6,
    "PosteriorAcoustics": 2,
    "Vascularity": 5,
}
HOSPITAL = """
extends: us365k@1
name: my-hospital
dimensions:
  Organ_level:
    add:
      Prostate:
        parent: Urinary Tract and male reproductive system
        synonyms: [prostatic, transition zone]
  Margins:
    add: {spiculated: {broader: ill-defined/indistinct}}
  Orientation:
    exclusive: true
    values:
      parallel: {synonyms: [wider than tall]}
      not parallel: {synonyms: [taller than wide]}
"""


def write(folder: Path, text: str, name: str = "own.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_the_published_values_are_there_and_keep_their_ids() -> None:
    taxonomy = load_taxonomy()
    assert {d.field: len(d.values) for d in taxonomy.dimensions.values()} == PUBLISHED
    assert len(taxonomy.tags) == 93
    # Rows of checkpoints hang on these: a change here breaks them. New tags come after.
    text = "\n".join("/".join(tag) for tag in taxonomy.tags)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "17808a8af0c94751"
    assert taxonomy.tags[0] == ("Diagnosis", "nodule")
    assert taxonomy.tags[92] == ("Vascularity", "indeterminate/inhomogeneous vascularity")
    organs = taxonomy.dimensions["Organ_level"]
    assert organs.values["Liver"].parent == "Abdomen and retroperitoneum"
    assert load_taxonomy("us365k@1").digest == taxonomy.digest


def test_a_hospital_adds_its_own(tmp_path: Path) -> None:
    base, own = load_taxonomy(), load_taxonomy(write(tmp_path, HOSPITAL))
    assert own.tags[:93] == base.tags
    assert own.tags[93:] == (
        ("Organ_level", "Prostate"),
        ("Margins", "spiculated"),
        ("Orientation", "parallel"),
        ("Orientation", "not parallel"),
    )
    assert (own.extends, own.label) == ("us365k@1", "my-hospital@1")
    assert list(own.dimensions["Margins"].broader("spiculated")) == ["ill-defined/indistinct"]
    assert own.dimensions["Margins"].exclusive
    assert own.digest != base.digest
    # Comments and layout do not change the digest, a synonym does.
    again = load_taxonomy(write(tmp_path, "# a word\n" + HOSPITAL))
    assert again.digest == own.digest
    changed = HOSPITAL.replace("prostatic", "prostate gland")
    assert load_taxonomy(write(tmp_path, changed)).digest != own.digest


def test_a_file_extends_a_file_beside_it(tmp_path: Path) -> None:
    write(tmp_path, HOSPITAL, "hospital.yaml")
    text = "extends: hospital.yaml\nname: ward\ndimensions: {Shape: {add: {star-shaped: {}}}}\n"
    assert load_taxonomy(write(tmp_path, text)).tags[97:] == (("Shape", "star-shaped"),)


def test_ids_are_append_only(tmp_path: Path) -> None:
    first = "name: a\ndimensions: {D: {values: {x: {}, y: {}}}}\n"
    old = load_taxonomy(write(tmp_path, first))
    moved = load_taxonomy(write(tmp_path, first.replace("x: {}", "w: {}, x: {}")))
    with pytest.raises(TaxonomyError, match="id 0 was D/x and is D/w"):
        moved.require_ids_of(old)
    gone = load_taxonomy(write(tmp_path, first.replace(", y: {}", "")))
    with pytest.raises(TaxonomyError, match="id 1 was D/y and is gone"):
        gone.require_ids_of(old)
    kept = load_taxonomy(write(tmp_path, first.replace("x: {}", "w: {id: 2}, x: {}")))
    kept.require_ids_of(old)
    assert kept.tags == (("D", "x"), ("D", "y"), ("D", "w"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a", "`name: …` lines"),
        ("a: [", "not YAML"),
        ("name: a\nname: b", "'name' stands twice"),
        ("name: a", "there is no dimension"),
        ("dimensions: {D: {values: {x: {}}}}", "name None is not a text"),
        ("name: a\nschema: 9\ndimensions: {D: {values: {x: {}}}}", "schema 9 is not 1"),
        ("name: a\nversion: 0\ndimensions: {D: {values: {x: {}}}}", "version 0"),
        ("name: a\nkind: b\ndimensions: {D: {values: {x: {}}}}", "'kind' means nothing"),
        ("name: a\ndimensions: {D: {values: {no: {}}}}", "value False is not a text"),
        ("name: a\ndimensions: {D: {values: {x: {parent: y}}}}", "no parent dimension"),
        ("name: a\ndimensions: {D: {parent: E, values: {x: {}}}}", "'E' is no dimension"),
        ("name: a\ndimensions: {D: {values: {x: {broader: y}}}}", "'y' is not in D"),
        (
            "name: a\ndimensions: {D: {values: {x: {broader: y}, y: {broader: x}}}}",
            "broader than itself",
        ),
        ("name: a\ndimensions: {D: {values: {x: {id: 0}, y: {id: 0}}}}", "id 0 is given twice"),
        ("name: a\ndimensions: {D: {values: {x: {id: 7}}}}", "leaves a gap"),
        ("name: a\ndimensions: {D: {values: {x: {}}, order: [z]}}", "order names 'z'"),
        ("name: a\ndimensions: {D: {values: {x: {}}}, E: {values: {x: {}}}}", "that name"),
        ("name: a\ndimensions: {D: {values: {'x;y': {}}}}", "joined by ';'"),
        ("name: a\ndimensions: {D: {values: {x: {synonyms: word}}}}", "list of texts"),
        ("name: a\ndimensions: {D: {values: {x: {synonyms: ['a {E}']}}}}", "no dimension: 'E'"),
        ("name: a\ndimensions: {D: {add: {x: {}}}}", "nothing to add to"),
        ("name: a\ndimensions: {D: {location: 3, values: {x: {}}}}", "not true or false"),
        ("extends: us365k\nname: a\ndimensions: {Shape: {values: {x: {}}}}", "under `add:`"),
        ("extends: us365k\nname: a\ndimensions: {Shape: {add: {oval: {}}}}", "there already"),
        ("extends: us365k\nname: a\ndimensions: {Organ_level: {add: {x: {}}}}", "parent None"),
        ("extends: us365k@7\nname: a", "ships us365k@1"),
        ("extends: own.yaml\nname: a", "extends itself"),
        ("extends: nothing\nname: a", "neither a shipped one"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TaxonomyError) as caught:
        load_taxonomy(write(tmp_path, text))
    assert message in str(caught.value)


def test_all_problems_are_listed_at_once(tmp_path: Path) -> None:
    text = "name: a\ndimensions: {D: {values: {x: {broader: y}, z: {parent: q}}, order: [r]}}"
    with pytest.raises(TaxonomyError) as caught:
        load_taxonomy(write(tmp_path, text))
    assert len(str(caught.value).splitlines()) == 4


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(TaxonomyError, match="check the path"):
        load_taxonomy(tmp_path / "none.yaml")


def test_reading_and_checking_needs_no_torch() -> None:
    """The modules of the taxonomy, without what ``import fastht`` itself brings."""
    folder = str(Path(fastht.__file__).parent)
    program = f"""
import sys, types
sys.modules["torch"] = None  # an import of it fails
package = types.ModuleType("fastht")
package.__path__ = [{folder!r}]
sys.modules["fastht"] = package
from fastht.taxonomy import load_taxonomy
print(len(load_taxonomy().tags))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "93\n"), done.stderr
