"""`fastht doctor --json`: what the tables say, for machines."""

import importlib.metadata
import json
import re

import fastht
from fastht.cli import main
from fastht.doctor import report


def test_doctor_tells_the_same_as_json(capsys, monkeypatch):
    def version(package):
        if package == "timm":
            raise importlib.metadata.PackageNotFoundError
        return "1.2.3"

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fastht"]["fastht"] == fastht.__version__
    assert found["packages"]["torch"] == "1.2.3"
    assert found["packages"]["timm"] is None
    assert re.search(r"^  timm +not installed \(fastht\[train\]\)$", report(), re.MULTILINE)
    for name, status in fastht.backends().items():
        assert found["backends"][name] == {"usable": status.usable, "detail": status.detail}
