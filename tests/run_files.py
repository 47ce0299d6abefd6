"""Reads what a run leaves."""

import csv
import json


def read(path):
    return json.loads(path.read_text())


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
