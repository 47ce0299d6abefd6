"""Processes of a test that have imported PyTorch and nothing else, and run a piece of code.

A new interpreter takes three seconds of processor to import PyTorch. Here one process imports it,
once for all tests of a run, and forks for each piece of code. What it imports of fastht and of
other libraries is imported as by a new interpreter; what an interpreter reads when it starts
(``PYTHONHASHSEED``, encodings, ``LD_LIBRARY_PATH``) needs ``subprocess``.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path


def run(
    code: str,
    *arguments: str,
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run code as ``python -c`` does; return its status and what it wrote.

    ``arguments`` are its ``sys.argv[1:]``; ``env`` and ``cwd`` are as for ``subprocess.run``.
    """
    if not hasattr(os, "fork"):
        found = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            input=stdin, capture_output=True, env=env, cwd=cwd, check=False,
        )  # fmt: skip
        wrote = (text.decode("utf-8", "replace") for text in (found.stdout, found.stderr))
        return subprocess.CompletedProcess(found.args, found.returncode, *wrote)
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder, name) for name in ("stdin", "stdout", "stderr")]
        streams[0].write_bytes(stdin)
        asked = {
            "code": code,
            "arguments": arguments,
            "environment": dict(os.environ if env is None else env),
            "folder": str(cwd or Path.cwd()),
            "streams": [str(path) for path in streams],
        }
        server = _server()
        server.stdin.write(json.dumps(asked) + "\n")
        server.stdin.flush()
        status = server.stdout.readline()
        assert status, "the process that forks has ended"
        wrote = (path.read_text(encoding="utf-8", errors="replace") for path in streams[1:])
        return subprocess.CompletedProcess(code, int(status), *wrote)


@functools.cache
def _server() -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    server = subprocess.Popen([sys.executable, __file__], stdin=pipe, stdout=pipe, text=True)
    atexit.register(server.communicate)  # at the end of its standard input it ends
    return server


def _serve() -> None:
    import torch  # noqa: F401

    while line := sys.stdin.readline():
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(**asked)
            return
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _become(
    code: str, arguments: list[str], environment: dict[str, str], folder: str, streams: list[str]
) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, (name, mode) in enumerate(zip(streams, ("rb", "wb", "wb"), strict=True)):
        with open(name, mode) as file:
            os.dup2(file.fileno(), number)
    sys.stdin = os.fdopen(os.dup(0), encoding="utf-8")
    sys.argv, sys.path[0] = ["-c", *arguments], ""
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    _serve()
