#!/usr/bin/python

# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: file_tree
short_description: Make a directory hold exactly the given files
version_added: "0.1.0"
author:
  - The openclaw.ha contributors (@openclaw-ha)
description:
  - Writes all files of a directory in one task, and removes what else is in it.
  - Everything belongs to root and is readable by all. Each file is replaced as a whole, and the directory itself
    stays the same one, so that mounts and watchers of it see the change.
options:
  path:
    description: The directory.
    type: path
    required: true
  files:
    description: Relative path to content in base64, as the lookup P(openclaw.ha.file_tree#lookup) returns it.
    type: dict
    required: true
  keep:
    description: Names directly below O(path) that are left alone.
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    description: Says what would change.
    support: full
  diff_mode:
    description: Lists the files that differ.
    support: full
"""

EXAMPLES = r"""
- name: Copy the plugin
  openclaw.ha.file_tree:
    path: /opt/openclaw/plugins/shared_state
    files: "{{ lookup('openclaw.ha.file_tree', role_path ~ '/files/shared_state', exclude=['node_modules', 'test']) }}"
    keep: [node_modules]
"""

RETURN = r"""
written:
  description: Relative paths of the files that were written.
  returned: always
  type: list
  elements: str
removed:
  description: Relative paths of what was removed.
  returned: always
  type: list
  elements: str
"""

import base64
import os
import shutil
import stat
import tempfile

from ansible.module_utils.basic import AnsibleModule

PARTIAL = ".partial."


def ancestors(name):
    """The directories above a relative path, without the root."""
    while name := os.path.dirname(name):
        yield name


def compare(path, wanted, keep):
    """What differs between a directory and ``wanted`` (relative path -> bytes): (to write, to remove), sorted."""
    directories = {above for name in wanted for above in ancestors(name)}
    remove = []  # a link to a directory goes too, and what was seen through it has to be written
    for directory, names, files in os.walk(path):
        here = os.path.relpath(directory, path)
        found = {
            os.path.normpath(os.path.join(here, name)): name in names
            and not os.path.islink(os.path.join(directory, name))
            for name in [*names, *files]
            if here != "." or name not in keep
        }
        entered = [where for where, is_directory in found.items() if is_directory and where in directories]
        remove += [where for where, is_directory in found.items() if where not in (entered if is_directory else wanted)]
        names[:] = [os.path.basename(where) for where in entered]
    gone = set(remove)
    missing = [
        name
        for name, content in wanted.items()
        if not gone.isdisjoint(ancestors(name)) or not holds(os.path.join(path, name), content)
    ]
    return sorted(missing), sorted(remove)


def holds(path, content):
    """Whether a file is there with this content, readable by all and writable by its owner alone."""
    try:
        seen = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    if not stat.S_ISREG(seen.st_mode) or stat.S_IMODE(seen.st_mode) != 0o644 or (seen.st_uid, seen.st_gid) != owner():
        return False
    with open(path, "rb") as stream:
        return stream.read() == content


def owner():
    """Who everything belongs to: the one who runs the module, which is root."""
    return os.geteuid(), os.getegid()


def write(path, content):
    """Replace a file as a whole."""
    handle, partial = tempfile.mkstemp(prefix=PARTIAL, dir=os.path.dirname(path))
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            os.fchown(stream.fileno(), *owner())
            os.fchmod(stream.fileno(), 0o644)
        os.rename(partial, path)
    except BaseException:
        os.unlink(partial)
        raise


def main():
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "files": {"type": "dict", "required": True},
            "keep": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    path, keep = module.params["path"], module.params["keep"]
    wanted = {}
    for name, text in module.params["files"].items():
        if os.path.isabs(name) or os.path.normpath(name) != name or name.split("/")[0] in ("..", *keep):
            module.fail_json(
                msg=f"files names {name!r}; it must be a plain path below {path}, and not in what is kept."
            )
        try:
            wanted[name] = base64.b64decode(text, validate=True)
        except ValueError:
            module.fail_json(msg=f"files has something else than base64 for {name!r}.")
    written, removed = compare(path, wanted, keep)
    missing = not os.path.isdir(path)
    if not module.check_mode:
        os.umask(0o022)
        try:
            os.makedirs(path, mode=0o755, exist_ok=True)
            for name in removed:
                full = os.path.join(path, name)
                shutil.rmtree(full) if os.path.isdir(full) and not os.path.islink(full) else os.unlink(full)
            for name in written:
                os.makedirs(os.path.dirname(os.path.join(path, name)), mode=0o755, exist_ok=True)
                write(os.path.join(path, name), wanted[name])
        except OSError as error:
            module.fail_json(msg=f"Cannot fill {path}: {error.strerror or error} ({error.filename}).")
    module.exit_json(
        changed=bool(written or removed or missing),
        written=written,
        removed=removed,
        diff={"before": "".join(f"{name}\n" for name in removed), "after": "".join(f"{name}\n" for name in written)},
    )


if __name__ == "__main__":
    main()
