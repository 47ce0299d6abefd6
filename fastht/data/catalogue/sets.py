"""Descriptions of the known data sets: the source of `fastht data list` and of docs/data-sets.md.

No set was at hand when its reader was written, apart from the sample: layouts are as documented by
their authors or by code that reads them, and tests write miniatures of that form. What is not known
is said to be.
"""

from __future__ import annotations

from dataclasses import dataclass

UNSTATED = "not recorded here; read it where the set is published"
_NO_PATIENTS = "none published; images of one patient may part"


@dataclass(frozen=True)
class KnownSet:
    """One data set.

    name: how it is called. layout: key of fastht.data.layouts.LAYOUTS. organ: what is imaged.
    images: how many, as published. masks, captions, classes: what there is, "none" if nothing.
    patients: what stands for a patient. splits: the official ones. licence: as its authors state
    it. published: where its authors publish it, by name. traps: what is known to go wrong with it.
    use: arguments that name it to a command; PATH is where it lies.
    """

    name: str
    layout: str
    organ: str
    images: str
    masks: str
    captions: str
    classes: str
    patients: str
    splits: str
    licence: str
    published: str
    traps: tuple[str, ...]
    use: str


SETS = (
    KnownSet(
        name="sample",
        layout="table",
        organ="breast, simulated",
        images="320",
        masks="lesions",
        captions="English, written by fastht",
        classes="cyst, benign mass, malignant mass",
        patients="160 simulated ones, two views each",
        splits="none",
        licence="that of fastht",
        published="inside fastht",
        traps=("simulated: it shows that things work, nothing clinical",),
        use="--data sample",
    ),
    KnownSet(
        name="BUSI",
        layout="busi",
        organ="breast",
        images="780",
        masks="lesions",
        captions="none",
        classes="benign, malignant, normal",
        patients=_NO_PATIENTS,
        splits="none",
        licence=UNSTATED,
        published="its authors' pages (Dataset of breast ultrasound images, Data in Brief 2020)",
        traps=(
            "holds duplicates, so that a random split leaks",
            "is contained in BUS-CoT: leave it out there by --exclude-origin BUSI",
            "normal images have black masks and are left out unless --include-normal",
        ),
        use="--data PATH",
    ),
    KnownSet(
        name="AUL",
        layout="aul",
        organ="liver",
        images="735: 200 benign, 435 malignant, 100 normal",
        masks="outlines of masses as JSON; those of liver and body are not read",
        captions="none",
        classes="benign, malignant, normal",
        patients=_NO_PATIENTS,
        splits="none",
        licence=UNSTATED,
        published="Zenodo, record 7272660",
        traps=(
            "numbers start again in every class: 1.jpg is three different images",
            "archives may unpack one folder deeper (Benign/Benign), which is read too",
            "also called AULI",
        ),
        use="--data PATH",
    ),
    KnownSet(
        name="BUS-BRA",
        layout="bus-bra",
        organ="breast",
        images="1,875",
        masks="lesions",
        captions="none",
        classes="benign, malignant",
        patients="1,064, column Case",
        splits="folds for cross-validation (5-fold-cv.csv); --fold N tests fold N",
        licence=UNSTATED,
        published="Zenodo, record 8231412",
        traps=(
            "an image's name is not its patient: up to two images of a Case",
            "is contained in BUS-CoT: leave it out there by --exclude-origin BUSBRA",
            "some mirrors rename its tables; the authors' names are expected",
        ),
        use="--data PATH --fold 1",
    ),
    KnownSet(
        name="BUS-CoT",
        layout="bus-cot",
        organ="breast",
        images="not recorded here; 5,163 lesions are used elsewhere",
        masks="none that are read",
        captions="descriptions of lesions, English",
        classes="benign, malignant",
        patients="patient_id of BUS-Expert_dataset.json, within each origin",
        splits="trainval (trains) and test",
        licence="CC BY 4.0",
        published="Figshare, 30838715 (Scientific Data 2026)",
        traps=(
            "pools eleven public sets, among them all of BUSI and BUS-BRA: never test on these a "
            "model that trained on it, or leave them out by --exclude-origin BUSI BUSBRA",
            "several lesions are of one image and one patient",
        ),
        use="--data PATH --exclude-origin BUSI BUSBRA",
    ),
    KnownSet(
        name="DDTI",
        layout="ddti",
        organ="thyroid",
        images="not recorded here",
        masks="outlines of nodules in XML",
        captions="none",
        classes="TI-RADS categories, or benign and malignant by them (--benign-malignant)",
        patients="the number in each XML file, or the file",
        splits="none",
        licence=UNSTATED,
        published="its authors' pages (Pedraza et al. 2015)",
        traps=(
            "its archive is shipped inside that of TN3K: do not train on one and test on the other "
            "without `fastht data overlap`",
            "benign and malignant are by TI-RADS, not by biopsy",
        ),
        use="--data PATH",
    ),
    KnownSet(
        name="TN3K",
        layout="tn3k",
        organ="thyroid",
        images="not recorded here",
        masks="nodules",
        captions="none",
        classes="0 benign, 1 malignant",
        patients=_NO_PATIENTS,
        splits="trainval and test; folds of trainval as JSON (--fold)",
        licence=UNSTATED,
        published="its authors' repository (TRFE-Net)",
        traps=("DDTI is shipped inside its archive",),
        use="--data PATH --fold 0",
    ),
    KnownSet(
        name="TN5000",
        layout="tn5000",
        organ="thyroid",
        images="5,000 by its name",
        masks="none: boxes, which are not read",
        captions="none",
        classes="benign (0), malignant (1)",
        patients=_NO_PATIENTS,
        splits="train, val and test lists",
        licence=UNSTATED,
        published="its authors' pages (TN5000_forReview)",
        traps=("an image with a benign and a malignant nodule counts as malignant",),
        use="--data PATH",
    ),
    KnownSet(
        name="AUITD",
        layout="auitd",
        organ="thyroid",
        images="912 benign, 1,206 malignant, 171 normal in one count of others",
        masks="none",
        captions="none",
        classes="benign, malignant, normal",
        patients=_NO_PATIENTS,
        splits="folders train and test",
        licence=UNSTATED,
        published="Kaggle (Algerian ultrasound images thyroid dataset)",
        traps=(
            "base names repeat over folders, 190 of them under two classes: never look up by them",
            "folders inside those of classes look like TI-RADS, which is not documented: not read",
        ),
        use="--data PATH",
    ),
    KnownSet(
        name="Chinese reports",
        layout="reports",
        organ="liver, breast (Mammary), thyroid: --name",
        images="two a report: 1,394, 3,513 and 2,457 reports",
        masks="none",
        captions="reports in Chinese; a translated field by --caption-key",
        classes="none: numbers of clusters are no diagnoses and are not read",
        patients="uid of the report",
        splits="train, val and test lists",
        licence=UNSTATED,
        published="its authors' repository (Li et al. 2024, arXiv 2406.00644)",
        traps=(
            "both images of a report have the same text: a split by image puts twins on both sides",
            "measurements are masked by tokens as _2DS_, which translations keep or garble",
        ),
        use="--data PATH --name Liver --caption-key TRANSLATION",
    ),
    KnownSet(
        name="PMC-OA",
        layout="pmc-oa",
        organ="figures of all kinds",
        images="not recorded here",
        masks="none",
        captions="of figures and panels, English",
        classes="none",
        patients="none; the article stands for one",
        splits="none",
        licence=UNSTATED,
        published="Hugging Face, axiong/pmc_oa",
        traps=(
            "mostly no ultrasound",
            "figures of articles may show images of published sets: see `fastht data overlap`",
        ),
        use="--data PATH",
    ),
    KnownSet(
        name="ROCOv2",
        layout="rocov2",
        organ="radiology of all modalities",
        images="59,962 train, 9,904 valid, 9,927 test",
        masks="none",
        captions="of figures, English",
        classes="none; concepts by UMLS, of which --concept takes one",
        patients=_NO_PATIENTS,
        splits="train, valid and test",
        licence="CC BY-NC-SA",
        published="its authors' pages; Hugging Face, eltorio/ROCOv2-radiology (Parquet)",
        traps=(
            "a small part is ultrasound: read its CUI out of cui_mapping.csv and give --concept",
            "takes figures of open-access articles, as PMC-OA does: the two may share images",
        ),
        use="--data PATH --concept CUI",
    ),
    KnownSet(
        name="US-365K",
        layout="us365k",
        organ="9 body systems, 52 organs",
        images="364,365 of 11,676 cases (arXiv 2604.01749)",
        masks="none",
        captions="English, written by a language model; several images share one",
        classes="none; tags in nine fields, see docs/taxonomy.md",
        patients="case_id; without it the UUID in the image's name, with a warning",
        splits="train.jsonl, valid.jsonl, test.jsonl: by case, as others counted",
        licence="none is stated, as others report",
        published="Hugging Face, JJY-0823/US-365K",
        traps=(
            "its form is known from others' code alone",
            "some captions are refusals of the language model: left out unless --refusals keep",
            "tags are of about 3 of the 9 fields on average, as others counted",
            "that a case is a patient is not shown",
            "neighbouring frames share a caption: in a batch they are negatives of each other",
            "to read images of images.zip faster, write it as a table by `fastht data "
            "export`, with its tags",
        ),
        use="--data PATH",
    ),
    KnownSet(
        name="micro-ultrasound prostate",
        layout="prostate",
        organ="prostate",
        images="slices of volumes; count not recorded here",
        masks="prostate",
        captions="none",
        classes="none",
        patients="the volume",
        splits="train and test",
        licence=UNSTATED,
        published="its authors' pages (MicroSegNet)",
        traps=("slices in which nothing is marked are kept unless --skip-empty",),
        use="--data PATH",
    ),
    KnownSet(
        name="NextGen-UIA's sets",
        layout="published",
        organ="several: --name",
        images="as arranged by its code",
        masks="of the sets",
        captions="none",
        classes="of the sets",
        patients=_NO_PATIENTS,
        splits="train, val and test lists of each set and task",
        licence="those of the sets",
        published="the repository NextGen-UIA says how to arrange them",
        traps=("all sets share one folder of images, so that equal names would meet",),
        use="--data PATH --name BUSI",
    ),
)


def organ_of(layout: str, name: str | None = None) -> str | None:
    """What a set images, by its layout or, of layouts that hold several sets, by its name.

    None where they do not say it in one word, as tables do not.
    """
    of_name = {s.organ for s in SETS if name is not None and s.name.casefold() == name.casefold()}
    of_layout = {s.organ for s in SETS if s.layout == layout != "table"}
    organs = of_name or of_layout
    return organ if len(organs) == 1 and (organ := organs.pop()).isalpha() else None
