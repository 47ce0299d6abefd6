"""Class prompts: what is shipped, what users' files may look like, and what a class's score is."""

from importlib import resources

import open_clip
import pytest
import torch
from torch import nn

from fastht.data import DataError
from fastht.data.sample_cases import LABELS, PROFILES
from fastht.tasks.image_text.prompts import SHIPPED, class_embeddings, load_prompts

CLASSES = {
    "breast": ("benign", "malignant", "normal"),
    "liver": ("normal", "benign", "malignant", "fatty liver", "cirrhosis"),
    "lung": ("normal", "pneumonia", "COVID-19", "pleural effusion", "pneumothorax"),
    "lymph_node": ("benign", "malignant"),
    "thyroid": ("benign", "malignant", "normal"),
    "sample": LABELS,
}
# What a reader of ultrasound images looks at; each class is described by all of it.
SIGNS = {
    "shape": ("oval", "round", "irregular", "lobulated", "taller", "wider", "elongated"),
    "margin": ("margin", "border", "edge", "outline"),
    "echogenicity": ("echo",),
    "orientation": ("parallel", "upright", "vertical", "taller", "wider", "as tall as"),
    "posterior features": ("posterior", "shadow", "behind", "through transmission"),
    "calcification": ("calcification", "punctate"),
}
OF_LYMPH_NODES = {"hilum": ("hilum",), "cortex": ("cortex", "cortical"), "ratio": ("axis ratio",)}
OF_THYROIDS = {
    "composition": ("solid", "cystic", "spongiform"),
    "height": ("than tall", "than wide"),
    "foci": ("punctate echogenic foci",),
}


@pytest.fixture
def written(tmp_path):
    """Write a prompt file and return its path."""

    def write(text):
        path = tmp_path / "own.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_every_shipped_file_is_named():
    folder = resources.files("fastht.tasks.image_text.prompts")
    assert sorted(SHIPPED) == sorted(f.name[:-5] for f in folder.iterdir() if f.suffix == ".yaml")
    assert sorted(SHIPPED) == sorted([*CLASSES, "published"])


@pytest.mark.parametrize("name", CLASSES)
def test_shipped_classes_have_ten_different_prompts_that_the_text_towers_read_whole(name):
    prompts = load_prompts(name, CLASSES[name])
    assert tuple(prompts) == CLASSES[name]
    sentences = [prompt for found in prompts.values() for prompt in found]
    assert [len(found) for found in prompts.values()] == [10] * len(prompts)
    assert len({prompt.casefold() for prompt in sentences}) == len(sentences)
    tokens = open_clip.get_tokenizer("ViT-B-16")(sentences)
    assert bool((tokens[:, -1] == 0).all())


@pytest.mark.parametrize("name", ["breast", "lymph_node", "thyroid"])
@pytest.mark.parametrize("label", ["benign", "malignant"])
def test_shipped_prompts_describe_every_sign(name, label):
    text = " ".join(load_prompts(name, [label])[label]).casefold()
    special = {"lymph_node": OF_LYMPH_NODES, "thyroid": OF_THYROIDS}.get(name, {})
    for sign, words in (SIGNS | special).items():
        assert any(word in text for word in words), sign
    assert name.split("_")[0] in text
    assert label in text


@pytest.mark.parametrize("label", LABELS)
def test_sample_prompts_use_the_words_of_the_captions(label):
    text = " ".join(load_prompts("sample", [label])[label])
    likely = [max(odds, key=odds.get) for odds in PROFILES[label].values()]
    assert all(word in text for word in likely if word != "none")
    assert all(label in prompt for prompt in load_prompts("sample", [label])[label])


def test_labels_are_matched_whatever_their_case_and_others_are_left_out(written):
    path = written("organ: liver\nclasses:\n  Cyst: [a  dark\n    spot]\n  2: [two]\n  mass: [m]\n")
    prompts = load_prompts(path, ["2", "CYST "])
    assert prompts == {"2": ("two",), "CYST ": ("a dark spot",)}
    assert list(prompts) == ["2", "CYST "]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("classes: [a, b", r"own\.yaml: not YAML \(.*line 1.*\); correct it"),
        ("- a\n- b\n", "no prompts; it needs `classes:`"),
        ("benign: [a]\n", "no prompts; it needs `classes:`"),
        ("classes: {}\n", "no prompts; it needs `classes:`"),
        ("classes: {a: [b]}\norgans: x\n", "unknown key 'organs'"),
        ("classes: {a: [b]}\norgan: 3\n", "organ is no text"),
        ("classes: {yes: [b]}\n", "label True is no text; put it in quotes"),
        ("classes: {a: b}\n", "label 'a' has no list of prompts"),
        ("classes: {a: []}\n", "label 'a' has no list of prompts"),
        ("classes: {a: [b, ' ']}\n", "label 'a' has the prompt ' ', which is empty"),
        ("classes: {a: [b, 7]}\n", "label 'a' has the prompt 7, which is empty or no text"),
        ("classes: {a: [x, 'X']}\n", "the prompt 'x' is there twice"),
        ("classes: {a: [x], b: [x]}\n", "the prompt 'x' is there twice"),
        ("classes: {a: [x], A: [y]}\n", "two labels differ in nothing but case"),
    ],
)
def test_a_bad_file_is_named_with_its_remedy(written, text, message):
    with pytest.raises(DataError, match=message) as caught:
        load_prompts(written(text), ["a"])
    assert "own.yaml: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_labels_without_prompts_are_named_beside_those_of_the_file(written):
    with pytest.raises(
        DataError,
        match=r"no prompts for 'normal'; the labels of the data are 'benign', 'normal', those of "
        r"the file 'benign', 'malignant'; give a YAML file",
    ):
        load_prompts(written("classes: {benign: [a], malignant: [b]}"), ["benign", "normal"])


def test_an_unknown_name_lists_the_shipped_ones():
    with pytest.raises(ValueError, match=r"'kidney'.*breast, liver, lung, lymph_node, .*YAML"):
        load_prompts("kidney", ["benign"])


def test_a_class_scores_the_mean_cosine_to_its_prompts():
    """The mean embedding's product, which is not that of the normalised mean."""
    generator = torch.Generator().manual_seed(0)
    prompts = {"a": ("1", "2", "3"), "b": ("4", "5")}
    texts = nn.functional.normalize(torch.randn(5, 8, generator=generator), dim=-1)
    images = nn.functional.normalize(torch.randn(7, 8, generator=generator), dim=-1)
    classes = class_embeddings(lambda sentences: texts[[int(s) - 1 for s in sentences]], prompts)
    cosines = nn.functional.cosine_similarity(images[:, None], texts[None], dim=-1)
    expected = torch.stack([cosines[:, :3].mean(dim=1), cosines[:, 3:].mean(dim=1)], dim=1)
    torch.testing.assert_close(images @ classes.T, expected)
    assert not torch.allclose(images @ nn.functional.normalize(classes, dim=-1).T, expected)
