"""The machine for PTX on small programs whose results are known."""

import numpy as np
import pytest
from ptx_machine import Machine, Memory, parse

FRAME = """
.version 9.0
.target sm_80
.address_size 64
.extern .shared .align 16 .b8 shared_memory[];
.visible .entry kernel(.param .u64 to, .param .u64 from)
{{
  .reg .pred %p<32>; .reg .b16 %h<32>; .reg .b32 %r<64>; .reg .f32 %f<64>; .reg .b64 %d<64>;
  ld.param.u64 %d1, [to];
  ld.param.u64 %d2, [from];
  mov.u32 %r1, %tid.x;
  mul.wide.u32 %d3, %r1, {size};
  add.s64 %d4, %d1, %d3;   // where this thread writes
  add.s64 %d5, %d2, %d3;   // and reads
{body}
  ret;
}}
"""


def run(body, given=(0,), result=np.uint32, threads=32, shared=0, blocks=1, size=4):
    """Run a body; return the result, one element a thread, and what the machine counted."""
    memory = Memory()
    to = memory.place(np.zeros(threads * size // np.dtype(result).itemsize, result))
    source = memory.place(np.asarray(given))
    program = parse(FRAME.format(body=body, size=size))
    params = np.array([to, source], np.uint64).tobytes()
    counted = Machine(program, memory).run(blocks, threads, shared, params)
    return memory.read(to), counted


def compute(line, *values, result):
    """Run ``line`` on constants; a, b, c of it are registers, d is the result."""
    kinds = {"u16": "%h", "u32": "%r", "u64": "%d", "f32": "%f"}
    body = ""
    for i, (kind, value) in enumerate(values):
        bits = f"0f{np.float32(value).view(np.uint32):08X}" if kind == "f32" else value
        line = line.replace(f" {'abc'[i]}", f" {kinds[kind]}{20 + i}")
        body += f"mov.{kind.replace('u', 'b') if kind != 'f32' else kind} "
        body += f"{kinds[kind]}{20 + i}, {bits};\n"
    target = f"{kinds[result]}30"
    store = result.replace("u", "b")
    width = int(result[1:]) // 8
    body += f"{line.replace(' d', ' ' + target)};\nst.global.{store} [%d4], {target};"
    dtype = np.float32 if result == "f32" else f"u{width}"
    return run(body, result=dtype, size=width)[0][0]


NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("line", "values", "result", "expected"),
    [
        ("add.s32 d, a, b", [("u32", 2**32 - 1), ("u32", 3)], "u32", 2),
        ("sub.s32 d, a, b", [("u32", 1), ("u32", 3)], "u32", 2**32 - 2),
        ("mul.lo.s32 d, a, b", [("u32", 2**31 + 3), ("u32", 5)], "u32", 2**31 + 15),
        ("mul.hi.u32 d, a, b", [("u32", 0xD2511F53), ("u32", 77)], "u32", 63),
        ("mul.hi.s32 d, a, b", [("u32", 2**32 - 7), ("u32", 2**31 - 1)], "u32", 2**32 - 4),
        ("mul.wide.s32 d, a, b", [("u32", 2**32 - 7), ("u32", 16)], "u64", 2**64 - 112),
        ("mul.hi.u64 d, a, b", [("u64", 2**63 + 5), ("u64", 6)], "u64", 3),
        ("mad.lo.s32 d, a, b, c", [("u32", 7), ("u32", 8), ("u32", 2**32 - 6)], "u32", 50),
        ("mad.wide.u32 d, a, b, c", [("u32", 2**32 - 1), ("u32", 2), ("u64", 9)], "u64", 2**33 + 7),
        ("div.s32 d, a, b", [("u32", 2**32 - 7), ("u32", 2)], "u32", 2**32 - 3),
        ("rem.s32 d, a, b", [("u32", 2**32 - 7), ("u32", 2)], "u32", 2**32 - 1),
        ("div.u32 d, a, b", [("u32", 2**32 - 7), ("u32", 2)], "u32", 2147483644),
        ("shl.b32 d, a, b", [("u32", 3), ("u32", 31)], "u32", 2**31),
        ("shl.b32 d, a, b", [("u32", 3), ("u32", 32)], "u32", 0),
        ("shr.s32 d, a, b", [("u32", 2**31), ("u32", 40)], "u32", 2**32 - 1),
        ("shr.u32 d, a, b", [("u32", 2**31), ("u32", 31)], "u32", 1),
        ("shr.u64 d, a, b", [("u64", 2**63), ("u32", 60)], "u64", 8),
        ("shf.l.wrap.b32 d, a, b, c", [("u32", 2**31), ("u32", 1), ("u32", 33)], "u32", 3),
        ("prmt.b32 d, a, b, c", [("u32", 0x33221180), ("u32", 0x77665544), ("u32", 0x8740)],
         "u32", 0xFF774480),
        ("lop3.b32 d, a, b, c, 0x96", [("u32", 12), ("u32", 10), ("u32", 9)], "u32", 12 ^ 10 ^ 9),
        ("bfe.u32 d, a, b, c", [("u32", 0xABCD), ("u32", 4), ("u32", 8)], "u32", 0xBC),
        ("bfe.s32 d, a, b, c", [("u32", 0xABCD), ("u32", 4), ("u32", 8)], "u32", 2**32 - 0x44),
        ("bfi.b32 d, a, b, 4, 8", [("u32", 0xFFAB), ("u32", 0x12345678)], "u32", 0x12345AB8),
        ("bfi.b32 d, a, b, 31, 8", [("u32", 1), ("u32", 5)], "u32", 2**31 + 5),
        ("not.b32 d, a", [("u32", 5)], "u32", 2**32 - 6),
        ("min.s32 d, a, b", [("u32", 2**32 - 1), ("u32", 3)], "u32", 2**32 - 1),
        ("min.u32 d, a, b", [("u32", 2**32 - 1), ("u32", 3)], "u32", 3),
        ("cvt.s64.s32 d, a", [("u32", 2**32 - 2)], "u64", 2**64 - 2),
        ("cvt.u64.u32 d, a", [("u32", 2**32 - 2)], "u64", 2**32 - 2),
        ("cvt.u32.u64 d, a", [("u64", 2**40 + 3)], "u32", 3),
        ("cvt.u16.u32 d, a", [("u32", 2**20 + 3)], "u16", 3),
        ("cvt.rn.f32.s32 d, a", [("u32", 2**32 - 3)], "f32", -3.0),
        ("cvt.rn.f32.u32 d, a", [("u32", 2**24 + 1)], "f32", 2.0**24),
        ("cvt.rzi.s32.f32 d, a", [("f32", -2.75)], "u32", 2**32 - 2),
        ("cvt.f32.f16 d, a", [("u16", 0xC100)], "f32", -2.5),
        ("cvt.rn.bf16x2.f32 d, a, b", [("f32", 1.0), ("f32", -2.0)], "u32", 0x3F80C000),
        ("cvt.rn.bf16x2.f32 d, a, b", [("f32", 1.00390625), ("f32", 1.01171875)], "u32",
         0x3F803F82),  # ties go to the even number
        ("cvt.rn.f16x2.f32 d, a, b", [("f32", 1.0), ("f32", 70000.0)], "u32", 0x3C007C00),
        # 1.5 * 1 - 0.25 and 256 * 1 + 1.0078125, of which 1 is half a step: up, by what is left
        ("fma.rn.bf16x2 d, a, b, c", [("u32", 0x43803FC0), ("u32", 0x3F803F80),
                                      ("u32", 0x3F81BE80)], "u32", 0x43813FA0),
        ("fma.rn.f16x2 d, a, b, c", [("u32", 0x7BFF3E00), ("u32", 0x40003C00),
                                     ("u32", 0x00003400)], "u32", 0x7C003F00),
        ("cvt.rna.tf32.f32 d, a", [("f32", 1 + 2.0**-11)], "u32", 0x3F802000),
        ("add.f32 d, a, b", [("f32", 1.0), ("f32", 2.0**-24)], "f32", 1.0),
        ("max.f32 d, a, b", [("f32", NAN), ("f32", 2.0)], "f32", 2.0),
        ("neg.f32 d, a", [("f32", 0.0)], "f32", -0.0),
        ("copysign.f32 d, a, b", [("f32", -0.0), ("f32", 2.0)], "f32", -2.0),
        ("ex2.approx.ftz.f32 d, a", [("f32", -150.0)], "f32", 0.0),
        ("ex2.approx.f32 d, a", [("f32", -140.0)], "f32", 2.0**-140),
        ("rcp.rn.f32 d, a", [("f32", -0.0)], "f32", -INFINITY),
        ("sqrt.rn.f32 d, a", [("f32", 2.25)], "f32", 1.5),
        ("div.rn.f32 d, a, b", [("f32", 1.0), ("f32", 3.0)], "f32", np.float32(1) / np.float32(3)),
        # In float64 the sum would be rounded to a tie first, and that to the even float.
        ("fma.rn.f32 d, a, b, c", [("f32", 1 + 2.0**-23), ("f32", 2.0**-24), ("f32", 1.0)], "f32",
         1 + 2.0**-23),
        ("fma.rn.f32 d, a, b, c", [("f32", 2.0**-24), ("f32", 1 - 2.0**-23), ("f32", 1.0)], "f32",
         1.0),
        ("fma.rn.f32 d, a, b, c", [("f32", 2.0**-30), ("f32", -(2.0**-50)), ("f32", 1 + 2.0**-23)],
         "f32", 1 + 2.0**-23),
    ],
)  # fmt: skip
def test_arithmetic(line, values, result, expected):
    value = compute(line, *values, result=result)
    assert value == expected
    assert np.signbit(value) == np.signbit(expected)


def test_a_sum_is_rounded_once():
    # 2^-24 is half a step above 1; what is added to it decides, however small it is.
    for small, expected in [(2.0**-60, 1 + 2.0**-23), (-(2.0**-60), 1.0), (0.0, 1.0)]:
        body = f"""
        mov.f32 %f1, 0f{np.float32(1).view(np.uint32):08X};
        mov.f32 %f2, 0f{np.float32(2.0**-24 + 0).view(np.uint32):08X};
        mov.f32 %f3, 0f{np.float32(1 + small * 2**37).view(np.uint32):08X};
        fma.rn.f32 %f4, %f2, %f3, %f1;
        st.global.f32 [%d4], %f4;"""
        assert run(body, result=np.float32)[0][0] == expected


@pytest.mark.parametrize(
    ("comparison", "expected"),
    [("lt.f32", 0), ("ltu.f32", 1), ("ne.f32", 0), ("neu.f32", 1), ("nan.f32", 1), ("num.f32", 0)],
)
def test_comparisons_with_nan(comparison, expected):
    body = f"""
    mov.f32 %f1, 0f7FC00000;
    mov.f32 %f2, 0f3F800000;
    setp.{comparison} %p1, %f1, %f2;
    selp.u32 %r2, 1, 0, %p1;
    st.global.u32 [%d4], %r2;"""
    assert run(body)[0][0] == expected


LOOP = """
  mov.u32 %r2, 0;
$AGAIN:
  setp.ge.u32 %p1, %r2, %r1;
  @%p1 bra $DONE;
  add.u32 %r2, %r2, 1;
  bra $AGAIN;
$DONE:
  mul.lo.u32 %r3, %r2, 10;
  st.global.u32 [%d4], %r3;
"""


def test_lanes_of_a_loop_meet_behind_it():
    values, counted = run(LOOP, threads=64)
    assert np.array_equal(values, np.arange(64) * 10)
    by = counted.by_opcode()
    # Warp 0 turns 31 times and warp 1 63 times; the product is computed once a warp.
    assert by["add"] == 2 * 2 + 31 + 63
    assert by["st"] == 2
    assert counted.undefined == set()


def test_a_predicate_keeps_threads_out():
    body = """
    setp.lt.u32 %p1, %r1, 4;
    mov.u32 %r2, 7;
    @%p1 mov.u32 %r2, 1;
    @!%p1 add.u32 %r2, %r2, %r1;
    st.global.u32 [%d4], %r2;"""
    assert run(body)[0].tolist() == [1] * 4 + list(range(11, 39))


EXCHANGE = """
  mov.u32 %r2, shared_memory;
  shl.b32 %r3, %r1, 2;
  add.u32 %r4, %r2, %r3;
  st.shared.u32 [%r4], %r1;
  {barrier}
  sub.u32 %r5, 252, %r3;
  add.u32 %r5, %r2, %r5;
  ld.shared.u32 %r6, [%r5];
  st.global.u32 [%d4], %r6;
"""


def test_shared_memory_and_phases():
    values, counted = run(EXCHANGE.format(barrier="bar.sync 0;"), threads=64, shared=256)
    assert np.array_equal(values, 63 - np.arange(64))
    assert counted.by_phase() == [11 * 2, 5 * 2]


def test_shared_memory_starts_as_nan_and_ends_where_it_was_said_to():
    values, _ = run("mov.u32 %r2, shared_memory; ld.shared.u32 %r3, [%r2+4];"
                    "st.global.u32 [%d4], %r3;", shared=8)  # fmt: skip
    assert values[0] == 0xFFFFFFFF
    with pytest.raises(IndexError, match=r"out of bounds of 255 bytes of shared memory \(at: st"):
        run(EXCHANGE.format(barrier=""), threads=64, shared=255)


def test_generic_addresses_find_shared_memory():
    body = """
    mov.u64 %d6, shared_memory;
    cvta.shared.u64 %d7, %d6;
    mov.u32 %r2, 9;
    st.shared.u32 [%d6+8], %r2;
    ld.u32 %r3, [%d7+8];
    st.u32 [%d4], %r3;"""
    assert run(body, shared=16)[0].tolist() == [9] * 32


def test_threads_at_different_barriers_are_found():
    body = """
    setp.lt.u32 %p1, %r1, 32;
    @%p1 bra $OTHER;
    bar.sync 0;
    bra $END;
  $OTHER:
    bar.sync 0;
  $END:
    mov.u32 %r2, 1;"""
    with pytest.raises(RuntimeError, match="different barriers"):
        run(body, threads=64)


def copy(wait, size=16, real=16):
    return f"""
    shl.b32 %r3, %r1, 4;
    mov.u32 %r2, shared_memory;
    add.u32 %r4, %r2, %r3;
    mov.u32 %r5, {real};
    cp.async.cg.shared.global [%r4], [%d5], {size}, %r5;
    cp.async.commit_group;
    cp.async.commit_group;
    {wait}
    ld.shared.v4.u32 {{%r6,%r7,%r8,%r9}}, [%r4];
    st.global.v4.u32 [%d4], {{%r6,%r7,%r8,%r9}};
    cp.async.wait_all;"""


@pytest.mark.parametrize(
    ("wait", "arrives"),
    [
        ("cp.async.wait_group 0;", True),
        ("cp.async.wait_group 1;", True),
        ("cp.async.wait_group 2;", False),
        ("", False),
    ],
)
def test_a_copy_arrives_when_it_is_waited_for(wait, arrives):
    given = np.arange(128, dtype=np.uint32)
    values, _ = run(copy(wait), given, threads=32, shared=512, size=16)
    expected = given if arrives else np.full_like(given, 0xFFFFFFFF)
    assert np.array_equal(values, expected)


def test_a_copy_of_nothing_brings_zeros_and_reads_nothing():
    values, _ = run(copy("cp.async.wait_all;", real=0), [1], shared=512, size=16)
    assert not values.any()
    with pytest.raises(IndexError, match="out of bounds"):
        run(copy("cp.async.wait_all;"), [1], shared=512, size=16)


@pytest.mark.parametrize(
    ("threads", "real", "near"), [(0, 16, 0), (1, 16, 4), (32, 16, 32), (0, 0, 32)]
)
def test_copies_that_ask_nothing_of_the_memory_are_counted(threads, real, near):
    """Of lines of 64 bytes that the first threads' prefetches brought, and of nothing."""
    prefetch = f"setp.lt.u32 %p1, %r1, {threads}; @%p1 prefetch.global.L2 [%d5];"
    given = np.arange(128, dtype=np.uint32)
    body = prefetch + copy("cp.async.wait_all;", real=real)
    values, counted = run(body, given, shared=512, size=16)
    assert np.array_equal(values, given if real else np.zeros_like(given))
    assert sum(counted.near.values()) == near


def test_copies_that_nobody_waits_for_are_found():
    with pytest.raises(RuntimeError, match="did not wait for"):
        run(
            copy("").replace("cp.async.wait_all;", ""),
            np.zeros(128, np.uint32),
            shared=512,
            size=16,
        )


def narrow(values, kind):
    if kind == "f16":
        return values.astype(np.float16).view(np.uint16).astype(np.uint32)
    return values.astype(np.float32).view(np.uint32) >> 16


def packed_operands(left, right, kind):
    """Lay out A and B as the manual's figures do, lane by lane."""
    a, b = np.zeros((32, 4), np.uint32), np.zeros((32, 2), np.uint32)
    for lane in range(32):
        group, member = divmod(lane, 4)
        for r in range(4):
            row = group + (8 if r in (1, 3) else 0)
            if kind == "tf32":
                a[lane, r] = (
                    left[row, member + (4 if r > 1 else 0)].astype(np.float32).view(np.uint32)
                )
                continue
            column = member * 2 + (8 if r > 1 else 0)
            low, high = narrow(left[row, column : column + 2], kind)
            a[lane, r] = low | high << 16
        for r in range(2):
            if kind == "tf32":
                b[lane, r] = right[member + 4 * r, group].astype(np.float32).view(np.uint32)
                continue
            row = member * 2 + 8 * r
            low, high = narrow(right[row : row + 2, group], kind)
            b[lane, r] = low | high << 16
    return a, b


@pytest.mark.parametrize("kind", ["bf16", "f16", "tf32"])
def test_products_of_a_warp(kind):
    depth = 8 if kind == "tf32" else 16
    random = np.random.default_rng(0)
    left = random.integers(-8, 9, (16, depth)).astype(np.float64)
    right = random.integers(-8, 9, (depth, 8)).astype(np.float64)
    start = random.integers(-8, 9, (16, 8)).astype(np.float32)
    a, b = packed_operands(left, right, kind)
    c = np.zeros((32, 4), np.float32)
    for lane in range(32):
        group, member = divmod(lane, 4)
        c[lane] = [*start[group, 2 * member : 2 * member + 2],
                   *start[group + 8, 2 * member : 2 * member + 2]]  # fmt: skip
    given = np.concatenate([a, b, c.view(np.uint32), np.zeros((32, 6), np.uint32)], 1)  # 64 bytes
    body = f"""
    ld.global.v4.u32 {{%r10,%r11,%r12,%r13}}, [%d5];
    ld.global.v2.u32 {{%r14,%r15}}, [%d5+16];
    ld.global.v2.f32 {{%f0,%f1}}, [%d5+24];
    ld.global.v2.f32 {{%f2,%f3}}, [%d5+32];
    mma.sync.aligned.m16n8k{depth}.row.col.f32.{kind}.{kind}.f32 {{%f0,%f1,%f2,%f3}},
      {{%r10,%r11,%r12,%r13}}, {{%r14,%r15}}, {{%f0,%f1,%f2,%f3}};
    st.global.v4.f32 [%d4], {{%f0,%f1,%f2,%f3}};"""
    d = run(body, given, np.float32, size=64)[0].reshape(32, 16)[:, :4]
    exact = start + left @ right
    for lane in range(32):
        group, member = divmod(lane, 4)
        for r, (row, column) in enumerate([(0, 0), (0, 1), (8, 0), (8, 1)]):
            assert d[lane, r] == exact[group + row, 2 * member + column]


def test_a_product_without_all_lanes_is_found():
    body = """
    setp.eq.u32 %p1, %r1, 5;
    mov.b32 %r10, 0;
    mov.f32 %f0, 0f00000000;
    @%p1 bra $END;
    mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f0,%f0,%f0,%f0},
      {%r10,%r10,%r10,%r10}, {%r10,%r10}, {%f0,%f0,%f0,%f0};
  $END:
    st.global.f32 [%d4], %f0;"""
    with pytest.raises(RuntimeError, match=r"lanes of a warp are missing \(at: mma"):
        run(body)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_tiles_of_shared_memory(count, transposed):
    numbers = np.arange(count * 64, dtype=np.uint16).reshape(count, 8, 8)
    given = np.zeros((32, 8), np.uint16)
    given[: count * 8] = numbers.reshape(-1, 8)
    registers = ",".join(f"%r{10 + i}" for i in range(count))
    names = registers.split(",") + ["%r20"] * (4 - count)
    body = f"""
    shl.b32 %r3, %r1, 4;
    mov.u32 %r2, shared_memory;
    add.u32 %r4, %r2, %r3;
    mov.u32 %r20, 0;
    ld.global.v4.u32 {{%r5,%r6,%r7,%r8}}, [%d5];
    st.shared.v4.u32 [%r4], {{%r5,%r6,%r7,%r8}};
    bar.sync 0;
    ldmatrix.sync.aligned.m8n8.x{count}{".trans" * transposed}.shared.b16 {{{registers}}}, [%r4];
    st.global.v4.u32 [%d4], {{{",".join(names)}}};"""
    values = run(body, given, shared=512, size=16)[0].reshape(32, 4)
    for lane in range(32):
        for i in range(count):
            row, column = lane // 4, 2 * (lane % 4)
            if transposed:
                low, high = numbers[i, column, row], numbers[i, column + 1, row]
            else:
                low, high = numbers[i, row, column], numbers[i, row, column + 1]
            assert values[lane, i] == int(low) | int(high) << 16


@pytest.mark.parametrize(
    ("mode", "by", "clamp", "source"),
    [
        ("bfly", 5, 31, lambda lane: lane ^ 5),
        ("idx", 3, 31, lambda lane: 3),
        ("up", 1, 0, lambda lane: max(lane - 1, 0)),
        ("down", 2, 31, lambda lane: lane + 2 if lane < 30 else lane),
        ("bfly", 8, 0x181F - 0x10, lambda lane: lane ^ 8 if lane ^ 8 <= lane | 7 else lane),
    ],
)  # fmt: skip
def test_shuffles(mode, by, clamp, source):
    body = f"""
    add.u32 %r2, %r1, 100;
    shfl.sync.{mode}.b32 %r3|%p1, %r2, {by}, {clamp}, -1;
    st.global.u32 [%d4], %r3;"""
    assert run(body)[0].tolist() == [100 + source(lane) for lane in range(32)]


def test_votes():
    body = """
    setp.lt.u32 %p1, %r1, 3;
    vote.sync.ballot.b32 %r2, %p1, -1;
    vote.sync.any.pred %p2, %p1, -1;
    selp.u32 %r3, 16, 0, %p2;
    add.u32 %r2, %r2, %r3;
    st.global.u32 [%d4], %r2;"""
    assert run(body)[0].tolist() == [7 + 16] * 32


def test_integer_atomics_count_and_float_atomics_are_refused():
    values, _ = run("atom.global.add.u32 %r2, [%d1], 2; st.global.u32 [%d4+4], %r2;".replace(
        "[%d4+4]", "[%d4]"), threads=32)  # fmt: skip
    assert sorted(values.tolist())[1:] == list(range(2, 64, 2))
    with pytest.raises(RuntimeError, match="its sum depends on the order"):
        run("mov.f32 %f1, 0f3F800000; atom.global.add.f32 %f2, [%d1], %f1;")


def test_a_register_that_nobody_wrote_is_found_where_it_is_used():
    _, counted = run("add.u32 %r3, %r2, 1; st.global.u32 [%d4], %r3;")
    assert counted.undefined == {"%r2 in add.u32 %r3, %r2, 1"}
    partly = "setp.lt.u32 %p1, %r1, 5; @%p1 mov.u32 %r2, 1;"
    _, counted = run(partly + "mov.u32 %r4, %r2; st.global.u32 [%d4], %r4;")
    assert counted.undefined == {"%r4 in st.global.u32 [%d4], %r4"}
    _, counted = run(partly + "selp.u32 %r4, %r2, 0, %p1; st.global.u32 [%d4], %r4;")
    assert counted.undefined == set()


def test_accesses_outside_of_arrays_are_found():
    with pytest.raises(IndexError, match=r"4 bytes at 128 of an array of 128 bytes"):
        run("ld.global.u32 %r2, [%d5+4]; st.global.u32 [%d4], %r2;", np.zeros(32, np.uint32))
    with pytest.raises(IndexError, match="out of bounds: 8 bytes"):
        run("ld.global.u64 %d6, [%d2+-8];", np.zeros(32, np.uint32))
    with pytest.raises(IndexError, match="misaligned"):
        run("ld.global.u64 %d6, [%d2+4];", np.zeros(32, np.uint32))


def test_blocks_see_what_blocks_before_them_wrote():
    body = """
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %nctaid.x;
    ld.global.u32 %r4, [%d4];
    mad.lo.u32 %r4, %r4, %r3, %r2;
    st.global.u32 [%d4], %r4;"""
    assert run(body, blocks=3)[0].tolist() == [0 * 9 + 1 * 3 + 2] * 32


def test_what_it_does_not_know_it_names():
    with pytest.raises(NotImplementedError, match=r"does not know: wgmma\.fence"):
        run("wgmma.fence.sync.aligned;")
    with pytest.raises(ValueError, match="local memory and calls"):
        run(".local .align 4 .b8 depot[16];")
    with pytest.raises(ValueError, match=r"8 bytes of parameters; the kernel takes 16"):
        Machine(parse(FRAME.format(body="", size=4)), Memory()).run(1, 32, 0, bytes(8))
