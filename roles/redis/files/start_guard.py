# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeps Redis from starting empty, or with a hole, where data was before.

    start_guard.py check USER CONFIG...    before the start: ends with 1, and says why, when the start would lose data
    start_guard.py record USER CONFIG...   after the start: remembers which files the server runs on

The CONFIG files are read in the order in which Redis reads them. Beside the last one lie ``data-seen.json``, what was
seen at the
latest start, and ``accept-loss-once``, made by an operator who wants the next start whatever is lost; it is removed
after that start.
The work is done as USER, who runs Redis, so that what is readable here is readable there.
"""

import json
import os
import pwd
import shlex
import subprocess
import sys

import aof

#: Above this many bytes the files are not read through before a start, only their manifest, names and sizes are judged.
MOST_BYTES = 1 << 30
#: Seconds for reading them through; systemd gives the whole start 90.
MOST_SECONDS = 60
DEFAULTS = {
    "appendonly": "no",
    "dir": ".",
    "appenddirname": "appendonlydir",
    "appendfilename": "appendonly.aof",
    "dbfilename": "dump.rdb",
    "aof-load-truncated": "yes",
}


def settings_of(texts):
    """The settings that matter here, from configuration files in the order in which Redis reads them."""
    settings = dict(DEFAULTS)
    for line in "\n".join(texts).splitlines():
        name, _space, value = line.strip().partition(" ")
        if name.lower() in settings:
            settings[name.lower()] = " ".join(shlex.split(value))
    return settings


def become(user):
    """Give up root for the user who runs Redis."""
    if os.geteuid() == 0:
        account = pwd.getpwnam(user)
        os.initgroups(user, account.pw_gid)
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)


def say(text):
    print(f"start guard: {text}", file=sys.stderr, flush=True)


def run(words, seconds=None):
    done = subprocess.run(
        words, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, timeout=seconds, check=False
    )
    return done.returncode, done.stdout + done.stderr


def see(settings):
    return aof.look(
        settings["dir"], settings["appenddirname"], settings["appendfilename"], settings["dbfilename"], run=run
    )


def examine(seen, record):
    """The findings about the files, as far as there is time to look."""
    size = sum(seen["sizes"].values())
    if size > MOST_BYTES:
        say(
            f"{size} bytes are too many to be read through before each start; manifest, names and sizes were looked at."
        )
        return aof.judge_files(seen, record)
    try:
        return aof.examine(seen, record, run=run, seconds=MOST_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        say(f"the files could not be read through ({error}); manifest, names and sizes were looked at.")
        return aof.judge_files(seen, record)


def check(settings, record_path, accept_path):
    """Whether Redis may start."""
    if settings["appendonly"] != "yes":
        return True
    try:
        record = aof.read_record(record_path)
    except (OSError, ValueError) as error:
        say(f"{error}; going on without it.")
        record = None
    seen = see(settings)
    if aof.is_new(seen, record) or (seen["old_style"] and not seen["error"]):
        return True
    found = aof.worst(examine(seen, record))
    if found["verdict"] == "ok" or (found["verdict"] == "truncated_tail" and settings["aof-load-truncated"] == "yes"):
        if found["verdict"] != "ok":
            say(f"{found['sentence']} Redis drops them.")
        return True
    if os.path.exists(accept_path):
        say(
            f"{found['verdict']}: {found['sentence']} Started all the same, because {accept_path} says so; it holds for this start only."
        )
        return True
    say(f"Redis is not started. {found['verdict']} in {seen['path']}: {found['sentence']}")
    say(f"What to do: {aof.ADVICE[found['verdict']]}")
    say(
        f"If what is lost is to be lost: touch {accept_path}, then systemctl restart redis-server. It is believed once."
    )
    return False


def remember(settings, record_path, accept_path):
    """Write down which files the server runs on, and that nothing is accepted any more."""
    record = aof.record_of(see(settings)) if settings["appendonly"] == "yes" else None
    # Without a digest a rewrite has just replaced the base; what was remembered before is true of the next one too.
    if record and record["digest"]:
        with open(f"{record_path}.new", "w", encoding="utf-8") as file:
            json.dump(record, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(f"{record_path}.new", record_path)
        if os.path.exists(accept_path):
            os.unlink(accept_path)


def main(action, user, *configs):
    become(user)
    texts = []
    for config in configs:
        with open(config, encoding="utf-8") as file:
            texts.append(file.read())
    directory = os.path.dirname(configs[-1])
    places = (os.path.join(directory, "data-seen.json"), os.path.join(directory, "accept-loss-once"))
    if action == "check":
        return 0 if check(settings_of(texts), *places) else 1
    remember(settings_of(texts), *places)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
