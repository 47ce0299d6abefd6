"""What Nsight Compute prints: the call, its table, its refusals, the comparison with the model.

The outputs here are made up after published examples: a table of launches among lines that begin
with ``==`` and what the program prints.
"""

import subprocess

import pytest

from benchmarks.gpu import dram

METRICS = tuple(dram.METRICS.values())
HEADER = ("ID", "Process ID", "Kernel Name", "Block Size", "Grid Size", *METRICS)
BASE_UNITS = ("byte", "byte", "sector", "ns")
REFUSED = """\
==PROF== Connected to process 4242 (/usr/bin/python3.12)
==ERROR== ERR_NVGPUCTRPERM - The user does not have permission to access NVIDIA GPU Performance \
Counters on the target device 0. For instructions on enabling permissions see https://…
==PROF== Disconnected from process 4242
==WARNING== No kernels were profiled.
"""


def output(*launches, units=BASE_UNITS):
    rows = [HEADER, ("",) * 5 + units]
    rows += [
        (str(i), "4242", kernel, "(128, 1, 1)", "(1,024, 1, 1)", *cells)
        for i, (kernel, *cells) in enumerate(launches)
    ]
    table = "\n".join(",".join(f'"{cell}"' for cell in row) for row in rows)
    return f"""\
==PROF== Connected to process 4242 (/usr/bin/python3.12)
==PROF== Profiling "down_kernel" - 0: 0%....50%....100% - 1 pass
"a line of the program, in quotes"
==PROF== Disconnected from process 4242
{table}
"""


LAUNCHES = (
    ("down_kernel", "77,463,552", "1,000,000", "419,430", "30,000"),
    ("fold_kernel", "1,000", "0", "10", "2,000"),
    ("fold_kernel", "3,000", "500", "20", "4,000"),
    ("void at::native::distribution_kernel<float, (int)4>(long)", "32", "0", "1", "1,500"),
)
MODEL = {"down": 100_000_000, "up": 50_000_000}


def test_launches_of_a_kernel_are_added_up():
    counted = dram.parse(output(*LAUNCHES))
    assert list(counted) == ["down", "fold", LAUNCHES[-1][0]]
    assert counted["fold"] == pytest.approx(
        {
            "launches": 2,
            "read_bytes": 4000,
            "written_bytes": 500,
            "stored_bytes": 30 * 32,
            "micros": 6,
        }
    )
    assert counted["down"]["read_bytes"] == 77_463_552


def test_other_units_mean_the_same():
    base = dram.parse(output(("up_kernel", "2,500,000", "500,000", "2", "1,500")))
    scaled = output(
        ("up_kernel", "2.5", "500", "2", "1.5"), units=("Mbyte", "Kbyte", "sector", "us")
    )
    assert dram.parse(scaled)["up"] == pytest.approx(base["up"])


def test_an_unknown_unit_is_refused():
    with pytest.raises(ValueError, match="in 'furlong'"):
        dram.parse(output(LAUNCHES[0], units=("furlong", *BASE_UNITS[1:])))


def test_what_is_not_counted_is_left_out():
    counted = dram.parse(output(("up_kernel", "100", "nan", "n/a", "")))
    assert counted == {"up": {"launches": 1, "read_bytes": 100}}
    row, total = dram.compare(counted, {"up": 100})
    assert row["ratio"] is None
    assert "stored_bytes" not in total


def test_ratio_is_of_read_and_stored_bytes():
    down, fold, other, total = dram.compare(dram.parse(output(*LAUNCHES)), MODEL)
    stored = 419_430 * 32
    assert down["ratio"] == pytest.approx((77_463_552 + stored) / 100_000_000)
    assert fold["kernel"] == "fold"
    assert fold["model_bytes"] is fold["ratio"] is None
    assert other["kernel"] == LAUNCHES[-1][0]
    assert total["launches"] == 4
    everything = 77_463_552 + stored + 4000 + 30 * 32 + 32 + 32
    assert total["ratio"] == pytest.approx(everything / 150_000_000)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (REFUSED, "ERR_NVGPUCTRPERM - The user does not have permission to access"),
        ("==PROF== Connected\n==WARNING== No kernels were profiled.\n", "No kernels were profiled"),
        ("==ERROR== Failed to initialize the profiler: LibraryNotLoaded", "LibraryNotLoaded"),
        ("Traceback …\nModuleNotFoundError: no triton\n", "ModuleNotFoundError: no triton"),
        ("", "nothing"),
    ],
)
def test_a_refusal_is_one_line(text, reason):
    assert dram.parse(text) == {}
    said = dram.refusal(text)
    assert reason in said
    assert "==" not in said
    assert len(said.splitlines()) == 1


def test_command_line_counts_between_the_marks_and_ends_in_time():
    program = ("python", "-m", "module", "--call")
    words = dram.command_line("/opt/ncu", program, 42.4)
    assert words[:5] == ["timeout", "-k", "5", "42", "/opt/ncu"]
    assert words[-4:] == list(program)
    options = words[words.index("--csv") + 1 : -4]
    assert dict(zip(options[::2], options[1::2], strict=True)) == {
        "--page": "raw",
        "--print-units": "base",
        "--metrics": ",".join(METRICS),
        "--profile-from-start": "off",
        "--target-processes": "application-only",
        "--cache-control": "all",
        "--clock-control": "none",
    }


@pytest.mark.parametrize(
    ("status", "text", "expected"),
    [
        (0, output(*LAUNCHES), None),
        (1, REFUSED, "permission"),
        (124, output(*LAUNCHES), "ncu has not finished in 5 seconds"),
        (0, output(("down_kernel", "n/a", "n/a", "n/a", "n/a")), "counted nothing"),
    ],
)
def test_what_becomes_of_a_run(monkeypatch, capsys, status, text, expected):
    def run(command, **options):
        return subprocess.CompletedProcess(command, status, stdout=text)

    monkeypatch.setattr(dram.shutil, "which", lambda name, path=None: "ncu")
    monkeypatch.setattr(dram.subprocess, "run", run)
    found = dram.measure(("program",), MODEL, 5)
    assert capsys.readouterr().out.strip() == text.strip()  # the log has all of it
    if expected is None:
        assert found == {"rows": dram.compare(dram.parse(text), MODEL)}
    else:
        assert expected in found["error"]


def test_without_ncu_it_says_so(monkeypatch):
    monkeypatch.setattr(dram.shutil, "which", lambda name, path=None: None)
    assert dram.measure(("program",), MODEL, 5) == {
        "error": "ncu (Nsight Compute) is not installed"
    }
