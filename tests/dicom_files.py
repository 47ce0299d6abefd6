"""DICOM files for tests."""

from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian


def write_dicom(path: Path, stored: np.ndarray, **elements: Any) -> Path:
    """A DICOM file of native pixel data, [H, W], [H, W, 3] or, with NumberOfFrames, [F, ...]."""
    one = stored[0] if "NumberOfFrames" in elements else stored
    samples = 3 if one.ndim == 3 else 1
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.6.1"  # ultrasound
    ds.SOPInstanceUID = "1.2.3"
    ds.Rows, ds.Columns = one.shape[:2]
    ds.SamplesPerPixel = samples
    ds.PhotometricInterpretation = "RGB" if samples == 3 else "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = stored.dtype.itemsize * 8
    ds.PixelRepresentation = int(stored.dtype.kind == "i")
    if samples == 3:
        ds.PlanarConfiguration = 0
    ds.PixelData = stored.tobytes()
    for key, value in elements.items():
        if key == "TransferSyntaxUID":
            ds.file_meta.TransferSyntaxUID = value
        else:
            setattr(ds, key, value)
    ds.HighBit = ds.BitsStored - 1
    ds["PixelData"].VR = "OB" if ds.BitsAllocated == 8 else "OW"
    ds.save_as(path, enforce_file_format=True)
    return path
