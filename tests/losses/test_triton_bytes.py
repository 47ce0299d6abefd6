"""What the losses' kernels move, counted in the interpreter, against the byte model."""

from collections import Counter

import loss_sweeps
import pytest
import torch
from engines import DEVICE

from benchmarks import losses_byte_model as byte_model
from fastht.losses.sweeps import BOTH, Form

sweeps = pytest.importorskip("fastht.losses.triton.sweeps")

pytestmark = pytest.mark.skipif(DEVICE == "cuda", reason="counted in Triton's interpreter")
FORM = Form(softmax=BOTH)


def counted(launches, names, what="requested"):
    """Add up the traffic of the tensors that ``names`` lists for each kernel, by their new name."""
    found = Counter()
    for launch in launches:
        for argument, name in names.get(launch.kernel, {}).items():
            if argument in launch.tensors:
                found[name] += getattr(launch.tensors[argument], what)
    return found


@pytest.fixture(params=["16", "32"])
def shape(monkeypatch, request):
    """Three strips, the last of which is short, with tiles that are not filled."""
    monkeypatch.setattr(sweeps, "STRIP_ROWS", 128)
    monkeypatch.setattr(sweeps, "STRIP_BYTES", 1)
    tile, product, rounders = (
        sweeps.configs.options(kernel, torch.device("cpu"), request.param, "plain")
        for kernel in ("sweep", "product", "rounders")
    )
    return byte_model.Shape(
        300, 200, 256, 128,
        (tile["BM"], tile["BN"]), (product["BM"], product["BN"], product["BK"]),
        int(request.param) // 8, rounders["BLOCK"] if request.param == "32" else 0,
    )  # fmt: skip


def test_traffic_is_that_of_the_model(shape):
    from benchmarks.byte_meter import metered

    dtype = torch.float32 if shape.rounders else torch.bfloat16
    operands = loss_sweeps.make(shape.rows, shape.columns, shape.dim, dtype)
    given = loss_sweeps.coefficients(FORM, operands)
    with metered() as forward:
        sweeps.forward(FORM, operands)
    with metered() as backward:
        sweeps.backward(FORM, operands, given)

    aligned = ("row_rounders", "column_rounders", "feature_dithers")
    read = ("rows", "columns", *(aligned if shape.rounders else ()))
    for sweep in (forward, backward):  # before which is the same launch
        names = {"rounders": {n: n for n in read}}
        assert counted(sweep, names) == byte_model.rounders(shape)
    names = {"forward": {n: n for n in (*read, "row_parts", "column_parts")}}
    assert counted(forward, names) == byte_model.forward(shape)
    distinct = counted(forward, names, "distinct")
    assert distinct["rows"] == operands.rows.nbytes
    assert distinct["columns"] == operands.columns.nbytes
    merged = counted(forward, {"merge": {"parts": "parts"}}, "distinct")["parts"]
    assert merged == distinct["row_parts"] + distinct["column_parts"]

    model = byte_model.backward(shape)
    names = {"gradient": {n: n for n in (*read, "strip")}}
    found = counted(backward, names)
    # Products come in pairs, of the strip with the columns and of its transpose with the rows.
    products = [launch for launch in backward if launch.kernel == "product"]
    assert len(products) == 2 * len(shape.strips)
    for number, launch in enumerate(products):
        features, out = (("columns", "d_rows"), ("rows", "d_columns"))[number % 2]
        here = {"strip": "strip", "features": features, "out": out}
        found += counted([launch], {"product": here})
    # Columns past the features are no part of a tile's loads, rows past their ends are.
    assert found == model


def test_a_large_batch_needs_a_small_part_of_a_dense_matrix():
    batch, sizes = 16384, {}
    for itemsize in (2, 4):
        strip = sweeps.strip_rows(batch, batch, itemsize)
        shape = byte_model.Shape(
            batch, batch, 512, strip, (128, 128), (128, 128, 64), feature_bytes=itemsize
        )
        sizes[itemsize] = byte_model.workspace(shape) / (batch * batch * 4)
    # Dense autograd holds four such matrices and more.
    assert max(sizes.values()) <= 1 / 7
