"""Readers of image-text data: single images, tables, webdataset shards, the sample set."""

from fastht.data.captions import MIN_CAPTION_LENGTH, clean_caption
from fastht.data.dataset import ImageTextDataset
from fastht.data.images import DataError, read_image
from fastht.data.records import Record, RecordSet, load_records, split_records
from fastht.data.shards import load_shards, read_member

__all__ = [
    "MIN_CAPTION_LENGTH",
    "DataError",
    "ImageTextDataset",
    "Record",
    "RecordSet",
    "clean_caption",
    "load_records",
    "load_shards",
    "read_image",
    "read_member",
    "split_records",
]
