# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Judges the append-only files of a Redis server (multi-part layout, Redis 7 and later).

Standard library only and nothing of Ansible: the role ``redis`` puts this file beside the start-up guard on the host.
Everything is pure but the last section, which reads the disk and has programs run. What runs them is given, because a
module and the guard do it in different ways: ``run(words, seconds=None) -> (exit code, what it printed)``.

A *finding* is a dict: ``verdict`` (see :data:`ADVICE`), ``sentence``, and where known ``file`` (name), ``offset`` and
``bytes`` (what is damaged or missing from there on).

A *record* is what the guard remembers of the base file that it saw last: ``{"base": name, "seq": number, "digest":
text}``.
The number of the base rises at each rewrite and a base is never written again, so a lower number, or another content
under the same number, means that the files were made anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex

#: Verdict -> what to do. In the order in which a verdict wins over the later ones.
ADVICE = {
    "unreadable": (
        "Make the directory and its files readable and writable for the user that runs Redis, then look "
        "again; nothing is said about the data."
    ),
    "bad_manifest": (
        "Do not start Redis. On a replica whose primary is healthy: move the directory aside and let it copy "
        "anew. Else keep a copy, write the missing lines by the names of the files (one base, then the "
        "incremental files in order), and check again."
    ),
    "orphan_files": (
        "Do not start Redis: it would begin empty or without these files. Restore the manifest from a backup,"
        " or write it by the names of the files; a replica whose primary is healthy may be moved aside and "
        "copied anew."
    ),
    "missing_file": (
        "Do not start Redis. Bring the file back from a backup or the volume that is not mounted; a replica "
        "whose primary is healthy may be moved aside and copied anew."
    ),
    "started_empty": (
        "Stop Redis before it is copied to replicas, and bring the former files back from a backup, or accept"
        " the present ones for the guard."
    ),
    "corrupt": (
        "Keep a copy. On a replica whose primary is healthy: move the directory aside and let it copy anew. "
        "Else restore a backup; redis-check-aof --fix would drop everything after the damage, intact commands"
        " too."
    ),
    "write_failed": (
        "Look at free space and the disk of the data directory, then at the log of Redis; writes are refused "
        "until the file can be written again."
    ),
    "truncated_tail": (
        "Redis drops an unfinished end by itself when aof-load-truncated is yes. Else repair it with repair: "
        "true while Redis is stopped."
    ),
    "ok": "",
}

_DATA_FILE = r"{name}\.(?P<seq>\d+)\.(?P<kind>base|incr)\.(?:rdb|aof)"
_COMMAND = re.compile(rb"\r\n\*\d+\r\n\$\d+\r\n")
_HEAD = 65536


def finding(verdict, sentence, file=None, offset=None, size=None):
    """One finding; ``size`` becomes ``bytes``."""
    return {"verdict": verdict, "sentence": sentence, "file": file, "offset": offset, "bytes": size}


def worst(findings):
    """The finding that decides, or the one that says ok."""
    order = list(ADVICE)
    return min(
        findings, key=lambda one: order.index(one["verdict"]), default=finding("ok", "The append-only files are whole.")
    )


def summary(one):
    """A finding in a few words, for a table."""
    return " ".join(
        str(part) for part in (one["verdict"], one["file"], one["bytes"] and f"({one['bytes']} bytes)") if part
    )


# The manifest


def parse_manifest(text):
    """The entries of a manifest.

    :returns: list of ``{"file": name, "seq": number, "type": "b"|"i"|"h"}`` in the order of the file
    :raises ValueError: with a sentence, where Redis would refuse the manifest too
    """
    entries = []
    for number, line in enumerate(text.split("\n")[:-1] if text.endswith("\n") else text.split("\n"), 1):
        if line.startswith("#"):
            continue
        try:
            words = shlex.split(line)
        except ValueError:
            words = []
        fields = dict(zip((word.lower() for word in words[::2]), words[1::2]))
        if (
            len(words) % 2
            or not {"file", "seq", "type"} <= fields.keys()
            or not fields["seq"].isdigit()
            or fields["type"] not in ("b", "i", "h")
        ):
            raise ValueError(f"Line {number} of the manifest is not what Redis writes.")
        if "/" in fields["file"]:
            raise ValueError(f"Line {number} of the manifest names a path.")
        entries.append({"file": fields["file"], "seq": int(fields["seq"]), "type": fields["type"]})
    if not text.endswith("\n") and text:
        raise ValueError("The last line of the manifest is cut off.")
    return entries


def judge_manifest(text):
    """The manifest's entries and findings. ``redis-check-aof`` accepts some manifests with which Redis starts without
    data; these rules do not."""
    if not text:
        return [], [finding("bad_manifest", "The manifest is empty.")]
    try:
        entries = parse_manifest(text)
    except ValueError as error:
        return [], [finding("bad_manifest", str(error))]
    bases = [entry for entry in entries if entry["type"] == "b"]
    increments = [entry for entry in entries if entry["type"] == "i"]
    findings = []
    if len(bases) != 1:
        findings.append(
            finding(
                "bad_manifest",
                f"The manifest lists {len(bases) or 'no'} base file{'s' if bases else ''} instead of one.",
            )
        )
    if not increments:
        findings.append(
            finding(
                "bad_manifest", "The manifest lists no incremental file: what was written since the base would be lost."
            )
        )
    if any(earlier["seq"] >= later["seq"] for earlier, later in zip(increments, increments[1:])):
        findings.append(finding("bad_manifest", "The numbers of the incremental files in the manifest do not rise."))
    if len({entry["file"] for entry in entries}) != len(entries):
        findings.append(finding("bad_manifest", "The manifest lists a file twice."))
    return entries, findings


# The files


def listed(entries, kind):
    return [entry for entry in entries if entry["type"] == kind]


def judge_files(seen, record=None):
    """Findings from the names and sizes of the files, the manifest and the guard's record.

    :param seen: as :func:`look` returns it
    :param record: the guard's record, or None
    """
    name, sizes, text = seen["name"], seen["sizes"], seen["manifest"]
    if seen["error"]:
        return [finding("unreadable", seen["error"])]
    data = {file: match for file in sizes if (match := re.fullmatch(_DATA_FILE.format(name=re.escape(name)), file))}
    if text is None:
        if any(sizes[file] for file in data):
            kept = ", ".join(sorted(data))
            return [
                finding(
                    "orphan_files",
                    f"The manifest is missing, but there are data files ({kept}): Redis would start empty.",
                    f"{name}.manifest",
                )
            ]
        return [finding("missing_file", _nothing(seen, record), f"{name}.manifest")]
    entries, findings = judge_manifest(text)
    for entry in entries:
        if entry["type"] != "h" and entry["file"] not in sizes:
            findings.append(
                finding("missing_file", f"The manifest lists {entry['file']}, which is missing.", entry["file"])
            )
    if entries and not findings:
        findings += _orphans(data, sizes, entries)
        findings += _replaced(seen, entries, record)
    return findings


def _nothing(seen, record):
    if record:
        return f"There are no append-only files, but {record['base']} was here at an earlier start: Redis would start empty."
    if seen["snapshot"]:
        return (
            "There are no append-only files, but a snapshot with keys, which Redis ignores when appendonly is yes: "
            "it would start empty."
        )
    return "There are no append-only files."


def _orphans(data, sizes, entries):
    """Files with data that the manifest does not list. What a crash in the middle of a rewrite leaves is no loss: an
    empty
    incremental file, the next base beside the old one, and files of the past."""
    known = {entry["file"] for entry in entries}
    base, last = listed(entries, "b")[0]["seq"], listed(entries, "i")[-1]["seq"]
    lost = sorted(
        file
        for file, match in data.items()
        if file not in known and sizes[file] and int(match["seq"]) > (last if match["kind"] == "incr" else base + 1)
    )
    if not lost:
        return []
    return [
        finding(
            "orphan_files",
            f"Newer than the manifest and not listed by it: {', '.join(lost)}.",
            lost[0],
            size=sum(sizes[file] for file in lost),
        )
    ]


def _replaced(seen, entries, record):
    base = listed(entries, "b")[0]
    if (
        not record
        or base["seq"] > record["seq"]
        or (base["seq"] == record["seq"] and seen["digest"] == record["digest"])
    ):
        return []
    return [
        finding(
            "started_empty",
            f"{base['file']} was made anew: {record['base']} was here at an earlier start, with other data.",
            base["file"],
        )
    ]


def is_new(seen, record):
    """Whether nothing is there and nothing was: the first start of a server."""
    return not (seen["error"] or record or seen["snapshot"] or seen["sizes"])


def record_of(seen):
    """The guard's record of the present files, or None when there is no base."""
    try:
        base = listed(parse_manifest(seen["manifest"] or ""), "b")[0]
    except (ValueError, IndexError):
        return None
    return {"base": base["file"], "seq": base["seq"], "digest": seen["digest"]}


# redis-check-aof


def parse_check(output, code):
    """What ``redis-check-aof MANIFEST`` said.

    :returns: dict with ``ok``, ``file``, ``offset`` (how far the file is good), ``size`` (of the file) and ``error``
      (its sentence), each None where unknown
    """
    if code == 0:
        return {"ok": True, "file": None, "offset": None, "size": None, "error": None}
    found = {"ok": False, "file": None, "offset": None, "size": None, "error": None}
    for line in output.splitlines():
        if match := re.match(r"AOF analyzed: filename=(.+), size=(\d+), ok_up_to=(\d+)", line):
            found.update(file=os.path.basename(match[1]), size=int(match[2]), offset=int(match[3]))
        elif match := re.match(r"\[offset (\d+)\] (.*)", line):
            if checked := re.match(r"Checking RDB file (.*)", match[2]):
                found.update(file=os.path.basename(checked[1]), size=None)
            elif not match[2].startswith("\\o/"):
                found.update(offset=int(match[1]), error=match[2])
        elif match := re.match(r"Cannot open file (.+): (.*?),? aborting", line):
            return {**found, "file": os.path.basename(match[1]), "offset": None, "size": None, "error": match[2]}
        elif "is valid" in line:
            found.update(error=None)
        elif match := re.match(r"0x\s*[0-9a-f]+: (.*)", line):
            found.update(error=match[1])
    found["error"] = found["error"] or (output.strip().splitlines() or ["no output"])[-1]
    return found


def judge_check(check, entries, tail):
    """Findings from :func:`parse_check`.

    :param tail: bytes of the last incremental file from ``offset`` on, None when they were not read
    """
    if check["ok"]:
        return []
    file, error = check["file"], check["error"]
    if "No such file" in error:
        return [finding("missing_file", f"{file} is missing.", file)]
    if "denied" in error:
        return [finding("unreadable", f"{file} cannot be read: {error}.", file)]
    rest = check["size"] - check["offset"] if check["size"] is not None else None
    if file != listed(entries, "i")[-1]["file"]:
        where = (
            ""
            if file in (entry["file"] for entry in listed(entries, "b"))
            else " and it is not the last one: Redis would drop its end at one start and load the rest at the next"
        )
        return [finding("corrupt", f"{file} is damaged ({error}){where}.", file, check["offset"], rest)]
    if tail is not None and is_torn(tail):
        return [
            finding(
                "truncated_tail",
                f"The last {rest} bytes of {file} are an unfinished command{_name_of(tail)}.",
                file,
                check["offset"],
                rest,
            )
        ]
    return [
        finding(
            "corrupt",
            f"{file} is damaged at byte {check['offset']} ({error}); {rest} bytes follow.",
            file,
            check["offset"],
            rest,
        )
    ]


def is_torn(tail):
    """Whether ``tail`` is the beginning of one command, or of one transaction, and nothing else.

    A damaged length in the middle of a file looks like an end that is cut off, because everything after it is
    swallowed as one value; then
    a further command is found inside.
    """
    at, transaction = 0, False
    while at < len(tail):
        if tail[at : at + 1] == b"#":  # a time stamp
            at = (tail.find(b"\r\n", at) + 2) if b"\r\n" in tail[at:] else len(tail)
            continue
        words, end, torn = _command(tail, at)
        if torn is not None:
            return torn
        if not transaction and words[0].upper() != b"MULTI":
            return False
        transaction, at = True, end
    return transaction


def _command(data, at):
    """Reads one command: (words, end, None); or (words, end, whether it is plausibly cut off) when it is not whole."""
    count, at, torn = _number(data, at, b"*")
    if torn is not None:
        return [], at, torn
    words = []
    for _index in range(count):
        length, at, torn = _number(data, at, b"$")
        if torn is not None:
            return words, at, torn
        if at + length + 2 > len(data):
            return words, at, not _COMMAND.search(data, at)
        words.append(data[at : at + length])
        at += length + 2
    return words or [b""], at, None


def _number(data, at, prefix):
    end = data.find(b"\r\n", at)
    text = data[at:] if end < 0 else data[at:end]
    if end < 0:
        return 0, at, re.fullmatch(rb"(?:%s\d*\r?)?" % re.escape(prefix), text) is not None
    if not re.fullmatch(rb"%s\d+" % re.escape(prefix), text):
        return 0, at, False
    return int(text[1:]), end + 2, None


def _name_of(tail):
    words, _end, _torn = _command(tail, 0)
    return f" ({words[0].decode('ascii', 'replace')})" if words and words[0] else ""


# The running server


def judge_server(info, directory=None, live_directory=None):
    """Findings from INFO persistence and replication of a running server (dict of texts and numbers)."""
    findings = []
    copying = info.get("master_sync_in_progress")
    if directory and live_directory and os.path.realpath(directory) != os.path.realpath(live_directory):
        findings.append(finding("started_empty", f"Redis runs in {live_directory}, not in {directory}."))
    if not info.get("aof_enabled") and not copying:
        findings.append(finding("write_failed", "Redis writes no append-only file (appendonly is no)."))
    if info.get("aof_last_write_status", "ok") != "ok":
        findings.append(
            finding("write_failed", "The last write to the append-only file failed: Redis refuses writes (MISCONF).")
        )
    if info.get("aof_last_bgrewrite_status", "ok") != "ok":
        findings.append(finding("write_failed", "The last rewrite of the append-only file failed."))
    return findings


# The disk


def look(directory, folder="appendonlydir", name="appendonly.aof", snapshot="dump.rdb", *, run):
    """What lies in a data directory.

    :returns: dict with ``name``, ``path`` (of the folder), ``manifest`` (text or None), ``sizes`` (file -> bytes),
      ``digest`` (of the base's beginning, or
        None), ``snapshot`` (whether a snapshot holds keys; looked at only without append-only files), ``old_style``
        (a single file of before Redis 7)
        and ``error`` (a sentence when something cannot be read)
    """
    path = os.path.join(directory, folder)
    seen = {
        "name": name,
        "path": path,
        "manifest": None,
        "sizes": {},
        "digest": None,
        "snapshot": False,
        "old_style": False,
        "error": None,
    }
    try:
        os.listdir(directory)
        if os.path.isdir(path):
            for file in sorted(os.listdir(path)):
                try:
                    seen["sizes"][file] = os.stat(os.path.join(path, file)).st_size
                except FileNotFoundError:  # a rewrite has just removed it
                    continue
        if f"{name}.manifest" in seen["sizes"]:
            with open(os.path.join(path, f"{name}.manifest"), encoding="utf-8", errors="replace", newline="") as file:
                seen["manifest"] = file.read()
        base = record_of(seen)
        for file in [entry for entry in seen["sizes"] if re.fullmatch(_DATA_FILE.format(name=re.escape(name)), entry)]:
            with open(os.path.join(path, file), "rb") as stream:
                if base and file == base["base"]:
                    seen["digest"] = hashlib.sha256(stream.read(_HEAD)).hexdigest()
        seen["old_style"] = not seen["sizes"] and os.path.exists(os.path.join(directory, name))
        if not seen["sizes"]:
            seen["snapshot"] = _has_keys(os.path.join(directory, snapshot), run)
    except FileNotFoundError as error:
        if not os.path.isdir(directory):
            seen["error"] = f"{directory} is not there."
        elif record_of(seen) is None:
            seen["error"] = str(error)
    except (OSError, NotADirectoryError) as error:
        seen["error"] = f"{error.filename} cannot be read: {error.strerror}."
    return seen


def _has_keys(path, run):
    """Whether a snapshot holds keys. A server that was stopped without data leaves one without any."""
    if not os.path.exists(path) or not os.path.getsize(path):
        return False
    if os.path.getsize(path) > 4096:
        return True
    _code, printed = run(["redis-check-rdb", path])
    return re.search(r"^\[info\] 0 keys read", printed, re.MULTILINE) is None


def examine(seen, record=None, *, run, seconds=None):
    """All findings about the files: first the rules, then, where these find a whole set, ``redis-check-aof``."""
    findings = judge_files(seen, record)
    if {one["verdict"] for one in findings} - {"orphan_files", "started_empty"} or seen["manifest"] is None:
        return findings
    entries = parse_manifest(seen["manifest"])
    manifest = os.path.join(seen["path"], f"{seen['name']}.manifest")
    code, printed = run(["redis-check-aof", manifest], seconds)
    check = parse_check(printed, code)
    tail = None
    if not check["ok"] and check["size"] is not None and check["file"] == listed(entries, "i")[-1]["file"]:
        with open(os.path.join(seen["path"], check["file"]), "rb") as file:
            file.seek(check["offset"])
            tail = file.read()
    return findings + judge_check(check, entries, tail)


def read_record(path):
    """The guard's record, or None when there is none. Raises ValueError when it cannot be understood."""
    try:
        with open(path, encoding="utf-8") as file:
            record = json.load(file)
    except FileNotFoundError:
        return None
    if not isinstance(record, dict) or not {"base", "seq", "digest"} <= record.keys():
        raise ValueError(f"{path} is not a record of the start-up guard")
    return record
