#!/usr/bin/python

# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_aof_check
short_description: Judge the append-only files of a Redis server
version_added: "0.1.0"
author:
  - The openclaw.ha contributors (@openclaw-ha)
description:
  - Says whether a Redis server can start with all it has written, from its append-only files (multi-part layout,
    Redis 7 and later).
  - Its own rules come first, because C(redis-check-aof) accepts an empty manifest and one that has lost lines, with
    which Redis starts without data.
    Where the rules find a whole set of files, C(redis-check-aof) reads it through.
  - With O(address) it also asks the running server whether it writes them. Without an answer the files alone are
    judged, and RV(refusal) says why.
  - Runs on the host of the files, as a user who can read them.
  - Changes nothing unless O(repair) is true.
options:
  directory:
    description:
      - Data directory of Redis, its setting C(dir).
      - Without it the running server is asked, which needs O(address).
      - Given together with O(address), a server that runs in another directory is a finding.
    type: path
  folder:
    description: Directory of the append-only files below O(directory), Redis's setting C(appenddirname).
    type: str
    default: appendonlydir
  filename:
    description: Beginning of their names, Redis's setting C(appendfilename).
    type: str
    default: appendonly.aof
  address:
    description: Address of the running server.
    type: str
  port:
    description: Port of the running server.
    type: int
    default: 6379
  record:
    description: What the start-up guard of the role P(openclaw.ha.redis#role) remembers of the files. Without that
      file nothing is compared.
    type: path
    default: /etc/redis/openclaw/data-seen.json
  repair:
    description:
      - Drop an unfinished command at the end of the last incremental file (RV(verdict=truncated_tail)); any other
        damage is left alone and fails the task.
      - The work is done and checked on a copy, which then takes the place of the file; the file as it was stays
        beside it.
      - Refused while a process uses the directory.
    type: bool
    default: false
extends_documentation_fragment:
  - openclaw.ha.access.redis
attributes:
  check_mode:
    description: With O(repair), says what would be dropped.
    support: full
  diff_mode:
    description: With O(repair), the size of the file before and after. What is dropped is not shown, it may be part
      of a conversation.
    support: full
notes:
  - A changed byte inside a value is not found, as an incremental file has no checksum. The base file has one.
  - It takes about a quarter of a second for 64 MB.
  - The library C(redis) is needed with O(address) only.
"""

EXAMPLES = r"""
- name: Judge the files of the running server
  openclaw.ha.redis_aof_check:
    address: 192.0.2.11
    redis_access:
      password: "{{ redis_password }}"
  register: aof

- name: Judge the files of a stopped server, and drop an unfinished command at the end
  openclaw.ha.redis_aof_check:
    directory: /var/lib/redis
    repair: true
"""

RETURN = r"""
verdict:
  description:
    - V(ok); V(truncated_tail) (an unfinished command at the end of the last file); V(corrupt); V(missing_file) (a
      listed file, or all);
      V(bad_manifest); V(orphan_files) (data that the manifest does not list); V(unreadable); V(started_empty) (the
      files were made anew, or the server runs
      elsewhere); V(write_failed) (the running server cannot write them).
    - When there are several findings, the gravest.
  type: str
  returned: always
file:
  description: Name of the file that is meant.
  type: str
  returned: always
offset:
  description: How far this file is good, in bytes.
  type: int
  returned: always
bytes:
  description: How many bytes follow from there, or, of files that the manifest does not list, how many there are.
  type: int
  returned: always
sentence:
  description: What was found.
  type: str
  returned: always
advice:
  description: What to do.
  type: str
  returned: always
summary:
  description: Verdict, file and bytes in a few words.
  type: str
  returned: always
  sample: truncated_tail appendonly.aof.2.incr.aof (17 bytes)
findings:
  description: All findings, each with RV(verdict), RV(sentence), RV(file), RV(offset) and RV(bytes).
  type: list
  elements: dict
  returned: always
path:
  description: Directory of the append-only files.
  type: str
  returned: always
online:
  description: Whether the running server answered.
  type: bool
  returned: always
server:
  description: What the running server said of its append-only files, the fields C(aof_...) of INFO persistence, and
    C(keys), the number of its keys (null while it loads them).
  type: dict
  returned: when the server answered
refusal:
  description: Why the server was not asked, in its own words or the library's. The files alone were judged then.
  type: str
  returned: when an address was given and there was no answer
kept:
  description: Path of the file as it was before the repair.
  type: str
  returned: when something was repaired
"""

import os
import shutil
import tempfile
import time

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.openclaw.ha.plugins.module_utils import aof, redis_client


def ask(module):
    """The running server's own words: (INFO fields, directory, folder, filename); or the reason why there are none,
    as a text."""
    parameters = module.params
    redis_client.require_redis(module)
    try:
        client = redis_client.connect(parameters, parameters["redis_access"], timeout=5)
        info = {**client.info("persistence"), **client.info("replication")}
        config = client.config_get("dir") | client.config_get("append*name")
        info["keys"] = None if info["loading"] else client.dbsize()
    except redis_client.redis.RedisError as error:
        return str(error) or type(error).__name__
    return info, config["dir"], config["appenddirname"], config["appendfilename"]


def runner(module):
    """How :mod:`aof` has programs run."""

    def run(words, _seconds=None):
        code, out, err = module.run_command(words, handle_exceptions=False)
        return code, out + err

    return run


def examine(module, directory, folder, filename, in_use):
    """What lies there and the findings about it. Files in use are looked at until two looks agree: a rewrite or a
    write may be under way."""
    try:
        record = aof.read_record(module.params["record"])
    except (OSError, ValueError) as error:
        module.fail_json(msg=f"The guard's record cannot be read: {error}.")
    before = None
    for _look in range(20 if in_use else 1):
        seen = aof.look(directory, folder, filename, run=runner(module))
        try:
            findings = aof.examine(seen, record, run=runner(module))
        except FileNotFoundError as error:
            # A rewrite may take a file away between two steps; a missing program stays missing.
            if not shutil.which("redis-check-aof"):
                module.fail_json(msg="redis-check-aof is needed on this host (package redis-tools).")
            findings = [aof.finding("missing_file", str(error))]
        except OSError as error:
            findings = [aof.finding("unreadable", f"{error.filename} cannot be read: {error.strerror}.")]
        if not findings or findings == before:
            break
        before = findings
        if in_use:
            time.sleep(0.1)  # a rewrite may be at work: the same finding twice is true, and the number of looks is bounded
    return seen, findings


def users_of(path):
    """Processes that have a file below a directory open, or run in it or above it: their ids."""
    path = os.path.realpath(path)
    found = []
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            links = [f"/proc/{process}/fd/{number}" for number in os.listdir(f"/proc/{process}/fd")]
            targets = [os.readlink(link) for link in links]
            home = os.readlink(f"/proc/{process}/cwd")
            with open(f"/proc/{process}/comm", encoding="utf-8") as file:
                is_redis = file.read().startswith("redis-server")
        except OSError:
            continue
        if any(target.startswith(f"{path}/") for target in targets) or (is_redis and home == os.path.dirname(path)):
            found.append(int(process))
    return found


def repaired(module, seen, found):
    """Put a checked copy without the unfinished command in the file's place; returns where the file as it was is
    kept."""
    folder = seen["path"]
    file = os.path.join(folder, found["file"])
    with tempfile.TemporaryDirectory(prefix=".repair.", dir=os.path.dirname(folder)) as bench:
        for name in seen["sizes"]:
            if name != found["file"]:
                os.link(os.path.join(folder, name), os.path.join(bench, name))
        copy = os.path.join(bench, found["file"])
        shutil.copy2(file, copy)
        owner = os.stat(file)
        os.chown(copy, owner.st_uid, owner.st_gid)
        with open(copy, "r+b") as stream:
            stream.truncate(found["offset"])
            os.fsync(stream.fileno())
        run = runner(module)
        after = aof.examine(aof.look(os.path.dirname(bench), os.path.basename(bench), seen["name"], run=run), run=run)
        if after:
            module.fail_json(
                msg=f"The repaired copy is not good either, nothing was changed: {aof.worst(after)['sentence']}"
            )
        kept = f"{file}.before-repair-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
        os.link(file, kept)
        os.replace(copy, file)
    directory = os.open(folder, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)
    return kept


def main():
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path"},
            "folder": {"type": "str", "default": "appendonlydir"},
            "filename": {"type": "str", "default": "appendonly.aof"},
            "address": {"type": "str"},
            "port": {"type": "int", "default": 6379},
            "redis_access": redis_client.ACCESS,
            "record": {"type": "path", "default": "/etc/redis/openclaw/data-seen.json"},
            "repair": {"type": "bool", "default": False},
        },
        required_one_of=[("directory", "address")],
        supports_check_mode=True,
    )
    parameters = module.params
    directory, folder, filename = parameters["directory"], parameters["folder"], parameters["filename"]
    answer = ask(module) if parameters["address"] else None
    online = isinstance(answer, tuple)
    findings = []
    if online:
        info, live, folder, filename = answer
        findings = aof.judge_server(info, directory, live)
        directory = live
    if directory is None:
        module.fail_json(
            msg=f"Redis at {parameters['address']}:{parameters['port']} does not answer ({answer}); to judge its files alone, directory is needed."
        )

    seen, about_files = examine(module, directory, folder, filename, in_use=bool(answer))
    findings += about_files
    found = aof.worst(findings)
    result = {"changed": False, "path": seen["path"], "online": online}
    if answer and not online:
        result["refusal"] = answer
    if online:
        result["server"] = {
            "keys": info["keys"],
            **{key: value for key, value in info.items() if key.startswith("aof_")},
        }

    if parameters["repair"] and found["verdict"] != "ok":
        if found["verdict"] != "truncated_tail":
            module.fail_json(
                msg=f"Only an unfinished end is repaired, this is {found['verdict']}: {found['sentence']} {aof.ADVICE[found['verdict']]}",
                findings=findings,
            )
        users = users_of(seen["path"])
        if online or users:
            module.fail_json(
                msg=f"{seen['path']} is in use{' by process ' + ', '.join(map(str, users)) if users else ''}; stop Redis first. Nothing was changed."
            )
        cut = found
        result["changed"] = True
        result["diff"] = {
            "before": f"{cut['file']}: {cut['offset'] + cut['bytes']} bytes\n",
            "after": f"{cut['file']}: {cut['offset']} bytes ({cut['bytes']} dropped)\n",
        }
        if not module.check_mode:
            result["kept"] = repaired(module, seen, cut)
            seen, findings = examine(module, directory, folder, filename, in_use=False)
            found = aof.worst(findings)
    module.exit_json(
        **result, **found, advice=aof.ADVICE[found["verdict"]], summary=aof.summary(found), findings=findings
    )


if __name__ == "__main__":
    main()
