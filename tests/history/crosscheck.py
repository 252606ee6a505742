# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The second opinion: Porcupine, a linearizability checker, judges the same history. Built when needed."""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess

MODULE = pathlib.Path(__file__).parent / "porcupine"
CACHE = pathlib.Path(__file__).resolve().parents[2] / ".cache" / "history"


class CrossCheckError(RuntimeError):
    """The second opinion could not be had; the text says why in one sentence."""


def binary(cache=CACHE):
    """Build the program into a directory and return its path; Go's own cache makes this quick the second time."""
    go = shutil.which("go")
    if go is None:
        raise CrossCheckError(
            "The cross-check with Porcupine needs the Go toolchain (1.24 or newer): no `go` was found on PATH."
        )
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / "history-porcupine"
    built = subprocess.run(
        [go, "build", "-buildvcs=false", "-trimpath", "-o", path, "."],
        check=False,
        cwd=MODULE,
        capture_output=True,
        text=True,
        timeout=900,
    )
    if built.returncode:
        raise CrossCheckError(f"The cross-check with Porcupine could not be built: {built.stderr.strip()[-1000:]}")
    return path


def judge(history, pictures=None, seconds=60, program=None):
    """Porcupine's opinion of a saved history.

    :param pathlib.Path history: as :meth:`tests.history.history.History.save` wrote it
    :param pictures: directory for a timeline (HTML) of every conversation that is not linearizable; None: no pictures
    :param seconds: how long each conversation may take
    :returns: {"verdict": "ok"|"illegal"|"unknown", "operations": n, "conversations": {name: verdict}, "pictures":
        [path]}; conversations that are fine are left out
    """
    command = [program or binary(), "-history", history, "-seconds", str(seconds)]
    if pictures:
        pictures.mkdir(parents=True, exist_ok=True)
        command += ["-pictures", pictures]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise CrossCheckError(f"The cross-check with Porcupine failed: {done.stderr.strip()[-1000:]}")
    return json.loads(done.stdout)
