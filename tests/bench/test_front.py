"""Who is fastest within a budget of kept memory, from numbers that are made up."""

from fastht.bench.command import Row
from fastht.bench.front import front, front_text, plot_front

MIB = 2**20


def row(method, ms, kept):
    return Row(method, "", None, None, [ms / 1e3] * 3, 1, 1, kept * MIB, 2 * kept * MIB)


ROWS = [
    row("lora", 100, 600),
    row("lora-mlp", 120, 400),
    row("ht", 90, 500),
    row("ht-mlp", 130, 300),
    row("ht-block", 140, 100),
    row("ht-block:6", 145, 110),  # slower than with all of them: on no front
    row("ht-reference", 10, 50),
    row("frozen", 5, 0),
]


def test_the_fastest_of_each_kind_at_every_budget():
    found = [(best.budget // MIB, best.ht, best.lora) for best in front(ROWS)]
    by_name = {r.method: r for r in ROWS}
    assert found == [
        (600, by_name["ht"], by_name["lora"]),
        (500, by_name["ht"], by_name["lora-mlp"]),
        (400, by_name["ht-mlp"], by_name["lora-mlp"]),
        (300, by_name["ht-mlp"], None),
        (100, by_name["ht-block"], None),
    ]


def test_the_text_says_where_ht_is_not_faster():
    lines = front_text(front(ROWS)).splitlines()
    assert lines[0].endswith("HT: ht 90 ms   LoRA: lora 100 ms   HT is faster: 0.90")
    assert lines[2].endswith("HT is not faster: 1.08")
    assert lines[-2].endswith("LoRA: -   HT alone fits")
    assert lines[-1] == (
        "HT is faster for 2 of 3 budgets, not for 400.0 MiB (1.08); HT alone fits 300.0 MiB and "
        "less."
    )


def test_the_text_says_where_ht_is_faster_for_every_budget():
    rows = [row("lora", 100, 500), row("ht-mlp:3", 95, 450), row("lora-mlp:6", 110, 400)]
    text = front_text(front([*rows, row("ht-mlp", 105, 350), row("lora-block", 140, 90)]))
    assert text.endswith(
        "\nFor every budget that both fit HT is faster (4 on this front); LoRA alone fits 90.0 MiB "
        "and less."
    )
    assert front_text(front([row("ht", 9, 5)])).endswith("no budget that both HT and LoRA fit.")


def test_the_picture_has_a_mark_a_method(tmp_path):
    target = tmp_path / "front.png"
    plot_front(ROWS, "a title", target)
    assert target.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
