"""Wavefronts of shared memory, counted from small machine code made by hand."""

import pytest

pytest.importorskip("triton")
from test_issue_model import H100, code, cycles, line

from benchmarks.issue_model import banks

THREAD = line("S2R R0, SR_TID.X")


def counted(*lines, warps=1, access="LDS R9, [R1]"):
    """Return the wavefronts of an access whose address the lines have made in R1."""
    listing = code(THREAD, *map(line_of, lines), line(access))
    return banks.counted(listing, warps).get(len(lines) + 1)


def line_of(text):
    return text if "/*" in text else line(text)


@pytest.mark.parametrize(
    ("stride", "width", "taken"),
    [
        (4, 4, 1),
        (8, 4, 2),
        (32, 4, 8),
        (128, 4, 32),
        (132, 4, 1),
        (0, 4, 1),  # one word for all
        (2, 2, 1),
        (8, 8, 2),  # half a warp at a time
        (16, 8, 4),
        (16, 16, 4),  # a quarter
        (32, 16, 8),
        (0, 16, 2),  # neighbours of the same address share what comes back
    ],
)
def test_wavefronts_are_those_of_the_fullest_bank(stride, width, taken):
    addresses = [stride * lane for lane in range(32)]
    assert banks.wavefronts(addresses, width) == taken
    moved = [address + 4 * 37 * width for address in addresses]
    assert banks.wavefronts(moved, width) == taken


def test_lanes_that_are_not_active_want_nothing():
    addresses = [128 * lane if lane % 4 == 0 else -1 for lane in range(32)]
    assert banks.wavefronts(addresses, 4) == 8
    assert banks.wavefronts([-1] * 32, 16) == 0
    # Stores of neighbours have data of their own, whatever their address.
    assert banks.wavefronts([0] * 32, 16, load=False) == 4


@pytest.mark.parametrize(
    ("lines", "access", "taken"),
    [
        (["IMAD.SHL.U32 R1, R0, 0x4, RZ"], "LDS R9, [R1+0x80]", 1),
        (["LEA R1, R0, 0x400, 0x3"], "STS [R1], R9", 2),
        (["SHF.L.U32 R1, R0, 0x5, RZ"], "LDS R9, [R1]", 8),
        (["SHF.R.U32.HI R1, RZ, 0x5, R0", "SHF.L.U32 R1, R1, 0x2, RZ"], "LDS R9, [R1]", 1),
        (["IMAD R1, R0, 0x10, RZ"], "LDS.128 R8, [R1]", 4),
        (["IMAD R1, R0, 0x80, RZ"], "LDS.128 R8, [R1]", 32),
        # A swizzle: rows of 128 bytes, of which each has its 16 bytes in another order.
        (
            ["LOP3.LUT R2, R0, 0x7, RZ, 0xc0, !PT", "SHF.R.U32.HI R3, RZ, 0x3, R0",
             "LOP3.LUT R4, R2, R3, RZ, 0x3c, !PT", "SHF.L.U32 R4, R4, 0x4, RZ",
             "LEA R1, R2, R4, 0x7"],
            "STS.128 [R1], R8", 4,
        ),
        (["SHF.L.U32 R1, R0, 0x4, RZ"], "LDSM.16.M88.4 R8, [R1]", 4),
        (["SHF.L.U32 R1, R0, 0x7, RZ"], "LDSM.16.M88.4 R8, [R1]", 32),
        (["SHF.L.U32 R1, R0, 0x7, RZ"], "LDSM.16.M88 R8, [R1]", 8),  # rows of 8 lanes alone
        (["MOV R1, R0"], "LDS R9, [R1.X4+0x10]", 1),
    ],
)  # fmt: skip
def test_addresses_are_followed_through_arithmetic(lines, access, taken):
    assert counted(*lines, access=access) == taken


@pytest.mark.parametrize(
    ("lines", "access", "taken"),
    [
        # A parameter, a block's index, and what a uniform address loads, move all lanes alike.
        (["ULDC UR4, c[0x0][0x210]", "LEA R1, R0, UR4, 0x3"], "LDS R9, [R1]", 2),
        (["S2UR UR5, SR_CTAID.X", "LEA R1, R0, UR5, 0x2"], "LDS R9, [R1+UR5]", 1),
        (["LDS R3, [0x40]", "IMAD R1, R3, 0x200, R0", "SHF.L.U32 R1, R1, 0x5, RZ"],
         "LDS R9, [R1]", 8),
        # A shift, a mask and an exclusive or below the lowest bit that is not known.
        (["S2R R3, SR_CTAID.X", "LEA R2, R3, R0, 0x6", "LOP3.LUT R2, R2, 0x1f, RZ, 0xc0, !PT",
          "SHF.L.U32 R1, R2, 0x3, RZ"], "LDS R9, [R1]", 2),
        (["S2R R3, SR_CTAID.X", "LEA R2, R3, R0, 0x6", "LOP3.LUT R2, R2, 0x3, RZ, 0x3c, !PT",
          "SHF.L.U32 R1, R2, 0x2, RZ"], "LDS R9, [R1]", 1),
        # What is known of two bytes is not enough where the rest may be odd.
        (["ULDC UR4, c[0x0][0x210]", "LEA R1, R0, UR4, 0x1"], "LDS.U16 R9, [R1]", None),
        (["ULDC UR4, c[0x0][0x210]", "LEA R2, R0, RZ, 0x1", "LEA R1, R2, UR4, 0x0"],
         "LDS.U16 R9, [R1+UR4]", None),
        # An or with a number that is not known may meet the lanes' bits.
        (["ULDC UR4, c[0x0][0x210]", "LOP3.LUT R1, R0, UR4, RZ, 0xfc, !PT"], "LDS R9, [R1]", None),
        (["LDG.E R3, desc[UR6][R0.64]", "LEA R1, R3, R0, 0x2"], "LDS R9, [R1]", None),
        (["SHFL.BFLY PT, R3, R0, 0x1, 0x1f", "SHF.L.U32 R1, R3, 0x2, RZ"], "LDS R9, [R1]", None),
        (["SHF.R.U32.HI R3, RZ, 0x5, R0", "SHFL.IDX PT, R3, R3, RZ, 0x1f", "LEA R1, R3, R0, 0x5",
          "SHF.L.U32 R1, R1, 0x2, RZ"], "LDS R9, [R1]", 1),
        (["ATOMG.E.ADD.STRONG.GPU PT, R3, desc[UR4][R8.64], R5", "SHF.L.U32 R1, R3, 0x2, RZ"],
         "LDS R9, [R1]", None),
    ],
)  # fmt: skip
def test_what_all_lanes_share_need_not_be_known(lines, access, taken):
    assert counted(*lines, access=access) == taken


def test_all_warps_of_a_block_are_counted():
    # The first warp's lanes are 4 bytes apart, the second's 8.
    lines = (
        "ISETP.GE.U32.AND P0, PT, R0, 0x20, PT", "SEL R2, 0x8, 0x4, P0", "IMAD R1, R0, R2, RZ",
    )  # fmt: skip
    assert counted(*lines, warps=2) == 1.5
    assert counted(*lines, warps=1) == 1


def test_lanes_that_a_predicate_leaves_out_make_no_access():
    lines = "LOP3.LUT P0, RZ, R0, 0x3, RZ, 0xc0, !PT", "IMAD.SHL.U32 R1, R0, 0x20, RZ"
    assert counted(*lines, access="@!P0 LDS R9, [R1]") == 8
    assert counted(*lines, access="@P0 LDS R9, [R1]") == 8
    lines = "ISETP.GE.U32.AND P0, PT, R0, 0x20, PT", "IMAD.SHL.U32 R1, R0, 0x4, RZ"
    assert counted(*lines, access="@P0 STS [R1], R9") == 0
    assert counted(*lines, access="@P0 STS [R1], R9", warps=4) == 0.75


def loop(*body, bound="R5"):
    """Return an access within a loop, with R2 its counter, and what comes after it."""
    return code(
        THREAD,
        line("LDG.E R5, desc[UR6][R0.64]"),
        line("MOV R2, RZ"),
        *(line(text, label=0 if n == 0 else None) for n, text in enumerate(body)),
        line("VIADD R2, R2, 0x20"),
        line(f"ISETP.LT.AND P0, PT, R2, {bound}, PT"),
        line("@P0 BRA `(.L_x_0)"),
        line("LEA R1, R2, R0, 0x0"),
        line("SHF.L.U32 R1, R1, 0x3, RZ"),
        line("STS [R1], R9"),
    )


def test_a_counter_is_the_same_in_all_lanes_that_are_still_in_a_loop():
    body = "IADD3 R1, R0, R2, RZ", "SHF.L.U32 R1, R1, 0x3, RZ", "LDS R9, [R1]"
    together, apart = (banks.counted(loop(*body, bound=b), 1) for b in ("0x400", "R5"))
    assert together == {5: 2, 11: 2}
    # Lanes that have left in different turns have counters of their own.
    assert apart == {5: 2}


@pytest.mark.parametrize(
    ("condition", "found"),
    [
        ("ISETP.NE.AND P0, PT, RZ, UR4, PT", {7: 1, 9: 1, 10: 1}),  # all go the same way
        ("LOP3.LUT P0, RZ, R0, 0x1, RZ, 0xc0, !PT", {7: 1, 10: 1}),
        ("ISETP.NE.AND P0, PT, R9, RZ, PT", {7: 1, 10: 1}),  # it is not known which go where
    ],
)
def test_where_lanes_meet_again_they_may_have_come_by_different_ways(condition, found):
    listing = code(
        THREAD,
        line("ULDC UR4, c[0x0][0x210]"),
        line(condition),
        line("MOV R2, RZ"),
        line("SHF.L.U32 R3, R0, 0x2, RZ"),
        line("@P0 BRA `(.L_x_0)"),
        line("MOV R2, 0x80"),
        line("STS [R3], R9"),
        line("IADD3 R1, R2, R3, RZ", label=0),
        line("LDS R9, [R1]"),
        line("LDS R9, [R3+UR4]"),
    )
    assert banks.counted(listing, 1) == found


def test_known_wavefronts_take_the_place_of_the_factor():
    listing = code(*(line("LDS R9, [R1]") for _ in range(100)))
    known = dict.fromkeys(range(100), 3.0)
    assert cycles(listing, wavefronts=known) - H100.launch == pytest.approx(1200, abs=40)
    assert cycles(listing) - H100.launch == pytest.approx(400 * H100.conflicts, abs=140)


def test_what_is_never_executed_takes_no_unit():
    never = code(*(line("@!PT LDS RZ, [RZ]") for _ in range(100)))
    assert cycles(never) == pytest.approx(H100.launch + 100, abs=8)
    assert {i.category for i in never.instructions[:100]} == {"CTRL"}
