"""Lets a plain ``pytest tests/unit`` import the checkout as ``ansible_collections.openclaw.ha`` (ansible-test does so by itself)."""

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
if ROOT.parent.name != "openclaw" and (ROOT / ".collections").is_dir():
    sys.path.insert(0, str(ROOT / ".collections"))
