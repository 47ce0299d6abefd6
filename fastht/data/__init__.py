"""Readers of data: single images, image-text tables and shards, image sets of tasks, the sample."""

from fastht.data.captions import MIN_CAPTION_LENGTH, clean_caption
from fastht.data.cases import Case, CaseSet, read_case_image
from fastht.data.dataset import ImageTextDataset
from fastht.data.images import DataError, read_image
from fastht.data.layouts import load_cases
from fastht.data.masks import read_mask
from fastht.data.pairs import load_records
from fastht.data.records import Record, RecordSet, split_records
from fastht.data.shards import load_shards, read_member
from fastht.data.spacing import Spacing, read_spacing
from fastht.data.splits import few_shot, split_cases
from fastht.data.task_dataset import TaskDataset

__all__ = [
    "MIN_CAPTION_LENGTH",
    "Case",
    "CaseSet",
    "DataError",
    "ImageTextDataset",
    "Record",
    "RecordSet",
    "Spacing",
    "TaskDataset",
    "clean_caption",
    "few_shot",
    "load_cases",
    "load_records",
    "load_shards",
    "read_case_image",
    "read_image",
    "read_mask",
    "read_member",
    "read_spacing",
    "split_cases",
    "split_records",
]
