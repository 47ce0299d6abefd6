"""The command line and what the package needs: torch alone for the core, one line for the rest."""

import errno
import json
import os
import re
import signal
import subprocess
import sys

import pytest

import fastht
from fastht.cli import main
from fastht.doctor import PACKAGES, report

# An environment in which nothing but the core's dependencies can be imported.
CORE_ONLY = """
import importlib.abc, sys

OPTIONAL = {
    "PIL", "accelerate", "matplotlib", "numpy", "open_clip", "pandas", "pydicom", "tensorboard",
    "nibabel", "peft", "timm", "torchvision", "tqdm", "transformers", "triton", "tyro",
    "webdataset",
}

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in OPTIONAL:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])

sys.meta_path.insert(0, Refuse())
"""


# One process says all that the tests below ask of it: importing torch takes seconds.
ASKED = """
import contextlib, io, json, torch, fastht
from fastht.cli import main
from torch import nn

class Tower(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, 8, 4, 4)
        self.patch_embed.grid_size = (4, 4)
        self.blocks = nn.Sequential(nn.Linear(8, 8))
        self.embed_dim, self.num_prefix_tokens = 8, 0

    def forward(self, x):
        return self.blocks(self.patch_embed.proj(x).flatten(2).transpose(1, 2))

model = fastht.patch(Tower(), fastht.HTConfig(bottleneck_dim=4))
model(torch.randn(2, 3, 16, 16)).sum().backward()
trained = bool(fastht.adapters(model)[0].up.bias.grad.abs().sum() > 0)

said = {}
for command in COMMANDS:
    with (
        contextlib.redirect_stdout(io.StringIO()) as text,
        contextlib.redirect_stderr(io.StringIO()) as errors,
    ):
        try:
            status = main(command.split())
        except SystemExit as end:
            status = end.code
    said[command] = (status, text.getvalue(), errors.getvalue())
print(json.dumps({"trained": trained, "said": said}))
"""

EXTRAS = {
    "train": "train",
    "bench": "bench",
    "data check": "tasks",
    "segment train": "tasks",
    "classify eval": "tasks",
    "fewshot": "tasks",
    "zeroshot": "tasks",
    "probe": "tasks",
    "retrieve": "tasks",
    "report": "tasks",
}


@pytest.fixture(scope="module")
def without_extras():
    """What the core does and each command says where nothing but the core is installed."""
    code = CORE_ONLY + f"COMMANDS = {['doctor', *EXTRAS]}\n" + ASKED
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_core_works_with_torch_alone(without_extras):
    assert without_extras["trained"]


@pytest.mark.parametrize(("command", "extra"), EXTRAS.items())
def test_a_command_that_needs_an_extra_says_how_to_get_it(without_extras, command, extra):
    status, _, text = without_extras["said"][command]
    assert status == 1
    assert f"fastht {command} needs " in text
    assert f"pip install 'fastht[{extra}]'" in text
    assert "Traceback" not in text


def test_data_check_reads_the_sample_and_lists_the_problems_of_a_folder(tmp_path, capsys):
    pytest.importorskip("open_clip")
    assert main(["data", "check"]) == 0
    assert "320 cases from" in capsys.readouterr().out
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    (tmp_path / "images" / "1.png").write_bytes(b"no image")
    assert main(["data", "check", "--data", str(tmp_path)]) == 1
    assert "1.png" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["data", "mend"])


def test_doctor_tells_versions_devices_and_backends():
    text = report()
    for name in PACKAGES:
        assert f"  {name} " in text
    assert fastht.__version__ in text
    assert "cpu" in text
    for name, status in fastht.backends().items():
        # A package may have the name of a backend; the backends stand last.
        line = [line for line in text.splitlines() if line.split()[:1] == [name]][-1]
        assert status.detail in line
        assert ("not usable" in line) != status.usable


def test_doctor_runs_without_the_extras(without_extras):
    status, text, _ = without_extras["said"]["doctor"]
    assert status == 0
    assert "reference" in text


@pytest.mark.parametrize(
    ("arguments", "folder"),
    [
        (["train", "--data", "my/pairs.csv", "--method", "lora"], "train-pairs-ViT-B-16-lora"),
        (["segment", "train", "--data", "sets/BUSI"], "segment-BUSI-ViT-B-16"),
        (["classify", "train", "--data", "sets/BUSI", "--model", "timm:vit"], "classify-BUSI-vit"),
        (["fewshot", "--task", "segment", "--data", "TN3K"], "fewshot-segment-TN3K-ViT-B-16"),
        (["segment", "train"], "sample-segment"),
    ],
)
def test_help_shows_the_defaults_that_hold(arguments, folder, capsys):
    pytest.importorskip("open_clip")
    with pytest.raises(SystemExit, match="0"):
        main([*arguments, "--help"])
    shown = " ".join(re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    assert f"(default: runs/{folder})" in shown
    sample = "--data" not in arguments
    assert ("The defaults below are for the simulated sample." in shown) == sample
    if sample:
        assert "With --data for images of your own they are --model ViT-B-16" in shown
        assert "--image-size 224" in shown
        assert "--epochs 200" in shown


def test_version_is_the_packages(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"fastht {fastht.__version__}\n"


def test_an_unknown_command_names_the_known_ones(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["fly"])
    assert "train" in capsys.readouterr().err


def test_every_public_name_exists_and_is_documented():
    assert sorted(fastht.__all__) == fastht.__all__
    for name in fastht.__all__:
        assert getattr(fastht, name).__doc__, name


def told(error, capsys, resume=""):
    """What a command says that ends by an error, and its status."""
    from fastht.ending import run_to_end

    def fail():
        raise error

    status = run_to_end("train", fail, (OSError, ValueError), resume)
    return status, capsys.readouterr().err


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_with_the_file_and_the_remedy(code, capsys):
    error = OSError(code, os.strerror(code), "run/state.pt")
    status, text = told(error, capsys, "; go on with --resume (folder run)")
    assert status == 1
    assert "run/state.pt" in text
    assert "nothing that was saved is lost: free some space; go on with --resume" in text


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written_is_told_with_the_remedy(code, capsys):
    status, text = told(OSError(code, os.strerror(code), "/mnt/run"), capsys)
    assert status == 1
    assert "'/mnt/run'; give a folder that can be written, by --out" in text


def test_sigterm_ends_a_command_as_an_interrupt_does(capsys):
    from fastht.ending import run_to_end

    before = signal.getsignal(signal.SIGTERM)

    def run():
        signal.raise_signal(signal.SIGTERM)
        return 0

    status = run_to_end("train", run, (), "; go on with --resume (folder run)")
    assert status == 143
    assert capsys.readouterr().err == (
        "\nfastht train: ended by SIGTERM; go on with --resume (folder run)\n"
    )
    assert signal.getsignal(signal.SIGTERM) == before


def test_names_that_the_console_cannot_print_stop_nothing(tmp_path):
    pytest.importorskip("tyro")
    folder = tmp_path / "乳腺"
    code = "import sys; from fastht.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "data", "check", "--data", str(folder)],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"},
        timeout=120,
    )
    assert done.returncode == 1
    assert rb"\u4e73\u817a: no such file or folder" in done.stdout
    assert b"charmap" not in done.stderr
