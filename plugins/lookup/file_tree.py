# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lookup that reads a directory of the controller as a whole."""

from __future__ import annotations

DOCUMENTATION = r"""
name: file_tree
short_description: Read all files below a directory of the controller
version_added: "0.1.0"
author:
  - The openclaw.ha contributors (@openclaw-ha)
description:
  - Returns what M(openclaw.ha.file_tree) writes, so that a directory reaches a host in one task however many files it
    holds.
  - Symbolic links are followed when they lead to a file, and refused when they lead to a directory.
options:
  _terms:
    description: The directories.
    type: list
    elements: str
    required: true
  exclude:
    description: Names of files and directories that are left out, at any depth.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Copy skills
  openclaw.ha.file_tree:
    path: /opt/openclaw/skills
    files: "{{ lookup('openclaw.ha.file_tree', 'skills', exclude=['.git']) }}"
"""

RETURN = r"""
_raw:
  description: For each directory, its files as a mapping of relative path to content in base64.
  type: list
  elements: dict
"""

import base64
import os

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase


def read_tree(root, exclude):
    """Relative path -> content in base64, of all files below ``root``.

    :raises ValueError: when ``root`` is no directory, or a link below it leads to a directory
    """
    if not os.path.isdir(root):
        raise ValueError(f"{root} is no directory on the controller.")
    found = {}
    for directory, names, files in os.walk(root):
        names[:] = sorted(set(names) - set(exclude))
        for name in names:
            if os.path.islink(os.path.join(directory, name)):
                raise ValueError(
                    f"{os.path.join(directory, name)} is a link to a directory; put the directory itself there."
                )
        for name in sorted(set(files) - set(exclude)):
            full = os.path.join(directory, name)
            with open(full, "rb") as stream:
                found[os.path.relpath(full, root)] = base64.b64encode(stream.read()).decode()
    return found


class LookupModule(LookupBase):
    """Ansible's entry point."""

    def run(self, terms, variables=None, **kwargs):
        self.set_options(var_options=variables, direct=kwargs)
        found = []
        for term in terms:
            root = self._loader.path_dwim(str(term))
            try:
                found.append(read_tree(root, self.get_option("exclude")))
            except OSError as error:
                raise AnsibleLookupError(f"{error.strerror} ({error.filename}).") from error
            except ValueError as error:
                raise AnsibleLookupError(str(error)) from error
        return found
