"""The numbers of a page: times, ratios and shares, each in its section's table."""

from __future__ import annotations

import pytest
from fabricated_results import (
    CUDA,
    MAIN,
    contest,
    everything,
    export,
    losses,
    memory,
    roofs,
    sweeps,
    threads,
    throughput,
    tower,
    training,
    without,
)
from report_pages import page_of, table

from benchmarks.report import tables


def test_times_and_ratios_of_one_adapter(file) -> None:
    page = page_of(file(*contest(cpu=4, published=14, eager=10, compile=9, gemms=2.5)))
    (row,) = table(page, "One adapter")
    assert row["B, N, D"] == "2, 5, 8"
    assert (row["C"], row["dtype"], row["pass"], row["rounds"]) == ("64", "float32", "both", "3")
    assert row["fused"] == "4.00 (0.40)"
    assert row["eager"] == "10.0 (1.0)"
    assert row["published / fused"] == "3.50"
    assert row["eager / fused"] == "2.50"
    assert row["compile / fused"] == "2.25"
    assert row["fused / gemms"] == "1.60"


def test_the_fused_backend_against_the_roofs(file) -> None:
    page = page_of(file(*roofs(), *contest(cpu=4)))
    assert [row["rate"] for row in table(page, "The machine's roofs")] == [
        "20.0 GB/s", "400 GFLOP/s", "1600 GFLOP/s",
    ]  # fmt: skip
    (row,) = table(page, "One adapter", 1)
    assert row["GB/s"] == "5.00"
    assert row["of the copy's"] == "25 %"
    assert row["GFLOP/s"] == "300"
    assert row["least time's share"] == "75 %"


def test_the_bytes_are_the_roof_where_moving_takes_longer(file) -> None:
    copy, *products = roofs()
    copy["stats"]["median"] = 0.5  # 4 GB/s: 20 MB take 5 ms
    (row,) = table(page_of(file(copy, *products, *contest(cpu=10))), "One adapter", 1)
    assert row["least time's share"] == "50 %"


def test_float32_is_the_roof_where_narrower_products_are_slower(file) -> None:
    copy, wide, narrow = roofs()
    narrow["stats"]["median"] = 100 * wide["stats"]["median"]
    bfloat16 = contest(cpu=4)
    bfloat16[0]["extra_info"]["dtype"] = "bfloat16"
    page = page_of(file(copy, wide, narrow, *bfloat16))
    (row,) = table(page, "One adapter", 1)
    assert row["least time's share"] == "75 %"


def test_a_case_without_the_fused_backend_has_no_summary(file) -> None:
    page = page_of(file(*contest(eager=10)))
    assert "## Summary" not in page
    (row,) = table(page, "One adapter")
    assert (row["eager"], row["eager / fused"]) == ("10.0 (1.0)", "-")


def test_without_roofs_their_shares_are_unknown(file) -> None:
    (row,) = table(page_of(file(*contest(cpu=4))), "One adapter", 1)
    assert (row["GB/s"], row["of the copy's"], row["least time's share"]) == ("5.00", "-", "-")


def test_summary_is_of_the_main_shape_and_of_like_with_like(file) -> None:
    # The sums are those of the sections; these are the ratios that the made-up numbers have.
    page = page_of(file(*everything(shapes=(MAIN, (1, 197, 768)))))
    summary = {row.pop(""): row for row in table(page, "Summary")}
    assert "at 8, 197, 768 (B, N, D), C = 64" in page
    assert summary["time, published / fused"] == {"float32": "4.00", "bfloat16": "4.00"}
    assert summary["time, compile / fused"] == {"float32": "2.50", "bfloat16": "2.50"}
    assert summary["time, fused / gemms"] == {"float32": "1.25", "bfloat16": "1.25"}
    # 100 of 400 GFLOP/s, and 250 of 1600.
    assert summary["least time's share, fused"] == {"float32": "25 %", "bfloat16": "16 %"}
    assert summary["kept memory, eager / fused"] == {"float32": "3.00", "bfloat16": "3.00"}
    plain, compiled = table(page, "Summary", 1)[:2]
    assert [plain[k] for k in ("time", "kept memory", "peak memory")] == ["0.90", "0.80", "0.80"]
    assert [compiled[k] for k in ("time", "kept memory", "peak memory")] == ["0.95", "0.96", "0.90"]


def test_sweeps_show_the_size_that_varies(file) -> None:
    page = page_of(file(*sweeps()))
    columns = ("batch", "grid side", "width D", "channels C")
    for place, (column, values) in enumerate(
        zip(
            columns,
            ((1, 2, 4, 8, 16, 32), (4, 7, 14, 24, 32), (192, 384, 768, 1024, 1280),
             (16, 32, 64, 128)),
            strict=True,
        )
    ):  # fmt: skip
        rows = [row for row in table(page, "Sweeps", place) if row["dtype"] == "float32"]
        assert [int(row[column]) for row in rows] == list(values)


def test_threads_are_held_against_one(file) -> None:
    one, two = table(page_of(file(*threads())), "Threads")[:2]
    assert (one["threads"], one["fused, over one"], one["eager, over one"]) == ("1", "1.00", "1.00")
    assert (two["threads"], two["fused, over one"], two["eager, over one"]) == ("2", "1.60", "1.25")
    assert (two["fused"], two["eager"]) == ("10.0 (1.0)", "38.4 (3.8)")


def test_memory_in_mebibytes_and_bytes_a_token(file) -> None:
    # 4000 bytes for each of 8 x 197 tokens are 6.0 MiB, twice that at the peak.
    rows = {(row["dtype"], row[""]): row for row in table(page_of(file(*memory())), "Memory")}
    row = rows["float32", "fused"]
    found = (row["kept bytes a token"], row["kept MiB"], row["peak MiB"])
    assert found == ("4000", "6.0", "12.0")
    assert rows["bfloat16", "eager"]["kept bytes a token"] == "6000"


def test_what_adapters_add_to_a_frozen_tower(file) -> None:
    rows = table(page_of(file(*tower())), "Adapters in a frozen tower")
    assert [(row[""], row["adapters add"]) for row in rows] == [
        ("frozen", "-"), ("fused", "3.1 %"), ("published", "20 %"),
    ]  # fmt: skip


def test_exported_models_against_the_patched_one(file) -> None:
    rows = {row[""]: row for row in table(page_of(file(*export())), "Exported models")}
    assert list(rows) == ["ht", "exported", "onnxruntime"]
    assert list(rows["exported"].values())[4:] == ["380 (38)", "21.1", "0.95", "335.0"]
    assert rows["onnxruntime"]["of ht's time"] == "1.25"


def test_a_training_step_against_lora(file) -> None:
    page = page_of(file(*training()))
    rows = {row["method"]: row for row in table(page, "Training step")}
    header = list(rows["ht"])
    assert header[6:12] == [
        "of LoRA's time", "kept MiB", "kept, of LoRA's", "held MiB", "peak MiB", "peak, of LoRA's",
    ]  # fmt: skip
    assert list(rows["ht"].values())[4:] == [
        "720 (72)", "44.4", "0.90", "512.0", "0.80", "400.0", "560.0", "0.80", "1,200,000",
    ]  # fmt: skip
    assert rows["frozen"]["kept, of LoRA's"] == "0.00"
    assert "- `lora`: r = 16" in page
    assert "- `ht`: backend `cpu`" in page


def test_missing_methods_leave_dashes(file) -> None:
    page = page_of(file(*without(training(peak=False), "lora", "lora-compiled")))
    assert "A training step:" not in page
    row = table(page, "Training step")[-1]
    assert row["method"] == "ht-compiled"
    assert row["of LoRA's time"] == row["kept, of LoRA's"] == row["peak MiB"] == "-"


def test_throughput_against_loading_alone(file) -> None:
    rows = table(page_of(file(*throughput())), "Throughput of the trainer")
    assert [(row[""], row["images/s"], row["of loading alone"]) for row in rows] == [
        ("loading alone", "400", "100 %"), ("fused", "40.0", "10 %"),
        ("published", "32.0", "8.0 %"),
    ]  # fmt: skip


def test_epochs_of_other_lengths_are_rows_of_their_own(file) -> None:
    longer = throughput()
    for found in longer:
        found["name"] += " longer"
        found["extra_info"]["images"] = 128
        found["stats"]["median"] *= 2.5
    rows = table(page_of(file(*throughput(), *longer)), "Throughput of the trainer")
    assert [(row["images a round"], row["images/s"]) for row in rows] == [
        ("64", "400"), ("64", "40.0"), ("64", "32.0"),
        ("128", "320"), ("128", "32.0"), ("128", "25.6"),
    ]  # fmt: skip
    assert [row["of loading alone"] for row in rows[3:]] == ["100 %", "10 %", "8.0 %"]


def test_times_and_peaks_of_losses(file) -> None:
    page = page_of(file(*losses()))
    assert "fastht's backend, here `blocked`" in page
    rows = table(page, "Contrastive losses")
    assert [(row["loss"], row["B"], row["fused"]) for row in rows] == [
        ("clip", "1024", "20.0 (2.0)"), ("clip", "4096", "320 (32)"),
        ("siglip", "1024", "20.0 (2.0)"), ("siglip", "4096", "320 (32)"),
    ]  # fmt: skip
    clip, siglip = rows[0], rows[3]
    assert (clip["width"], clip["dtype"], clip["rounds"]) == ("512", "float32", "3")
    assert (clip["dense / fused"], clip["open_clip / fused"]) == ("2.00", "2.50")
    assert clip["chunked"] == clip["chunked / fused"] == "-"
    assert (siglip["chunked"], siglip["chunked / fused"]) == ("960 (96)", "3.00")
    peaks = table(page, "Contrastive losses", 1)
    found = [(row["B"], row["fused"], row["dense"], row["dense / fused"]) for row in peaks[:2]]
    # 4 KiB a sample, and 12 bytes a pair.
    assert found == [("1024", "4.0", "12.0", "3.00"), ("4096", "16.0", "192.0", "12.00")]
    assert "rounds" not in peaks[0]


def test_on_a_gpu_the_fused_loss_is_tritons(file) -> None:
    page = page_of(file(*losses("triton"), machine=CUDA))
    assert "fastht's backend, here `triton`" in page
    assert table(page, "Contrastive losses")[0]["fused"] == "20.0 (2.0)"


def test_losses_without_peaks_or_the_fused_backend_leave_dashes(file) -> None:
    some = without(losses(), "blocked")
    for found in some:
        if "peak_bytes" in found["extra_info"]:
            found["extra_info"]["peak_bytes"] = None
    page = page_of(file(*some))
    assert "fused" not in table(page, "Contrastive losses")[0]
    row = table(page, "Contrastive losses", 1)[0]
    assert row["dense"] == row["dense / fused"] == "-"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.01234, "0.0123"), (1.236, "1.24"), (9.996, "10.0"), (12345.6, "12346"),
     (None, "-")],
)  # fmt: skip
def test_three_significant_digits(value: float | None, text: str) -> None:
    assert tables.number(value) == text


def test_a_bar_in_a_cell_does_not_end_it() -> None:
    assert list(tables.table(("a",), [("b|c",)]))[2] == "| b/c |"
