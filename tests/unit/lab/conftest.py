"""The lab is a package at the repository's root, which only `python -m lab` has on its path."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))
