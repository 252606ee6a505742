# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lookup that reads a secret from a file which only its owner can read."""

from __future__ import annotations

DOCUMENTATION = r"""
name: secret_file
short_description: Read a secret from a file that only its owner can read
version_added: "0.1.0"
author:
  - The openclaw.ha contributors (@openclaw-ha)
description:
  - Returns the content of a file on the controller without its last newline, for tokens and passwords.
  - Refuses a file that is missing, empty, or open to anyone but its owner, so that a secret is never used
    that others could have read. A symbolic link is judged by the file it leads to.
  - The content never appears in an error.
options:
  _terms:
    description:
      - Paths of the files. A relative path starts at the directory of the playbook.
      - A file encrypted with Ansible Vault is decrypted.
    type: list
    elements: path
    required: true
notes:
  - Allowed modes are V(0600) and V(0400).
seealso:
  - plugin: ansible.builtin.file
    plugin_type: lookup
"""

EXAMPLES = r"""
# group_vars/all.yml
gateway_token: "{{ lookup('openclaw.ha.secret_file', inventory_dir ~ '/secrets/gateway_token') }}"
redis_password: "{{ lookup('openclaw.ha.secret_file', inventory_dir ~ '/secrets/redis_password') }}"
"""

RETURN = r"""
_raw:
  description: Content of each file, without its last newline.
  type: list
  elements: str
"""

import os
import shlex
import stat

from ansible.errors import AnsibleError, AnsibleLookupError
from ansible.plugins.lookup import LookupBase

ALLOWED_MODES = (0o600, 0o400)


def refusal(path):
    """Say in one sentence why the file must not be used as a secret, or return None."""
    quoted = shlex.quote(path)
    try:
        status = os.stat(path)
    except OSError as error:
        return (
            f"{path}: found no file to read ({error.strerror}); allowed a file of mode 0600 or 0400; "
            f"write the secret into it, then run: chmod 0600 {quoted}"
        )
    target = os.path.realpath(path)
    named = path if target == os.path.abspath(path) else f"{path} (a link to {target})"
    if not stat.S_ISREG(status.st_mode):
        return f"{named}: found no regular file; allowed a file of mode 0600 or 0400; name the file with the secret"
    mode = stat.S_IMODE(status.st_mode)
    if mode not in ALLOWED_MODES:
        found = f"{named}: found mode {mode:04o}"
        return f"{found}; allowed 0600 or 0400, so that only its owner reads it; run: chmod 0600 {quoted}"
    return None


class LookupModule(LookupBase):
    """Ansible's entry point."""

    def run(self, terms, variables=None, **kwargs):
        self.set_options(var_options=variables, direct=kwargs)
        return [self._read(self._loader.path_dwim(term)) for term in terms]

    def _read(self, path):
        reason = refusal(path)
        if reason:
            raise AnsibleLookupError(reason)
        quoted = shlex.quote(path)
        try:
            secret = self._loader.get_text_file_contents(path).removesuffix("\n")
            secret.encode()  # the loader escapes what is not UTF-8, with a warning at most
        except (AnsibleError, OSError, ValueError):
            # The error would quote what could not be decoded: its chain ends here.
            raise AnsibleLookupError(
                f"{path}: found content that cannot be read; allowed UTF-8 text, plain or encrypted with a vault "
                f"password that this run knows; write the secret into it again, or see: ansible-vault view {quoted}"
            ) from None
        if not secret.strip():
            raise AnsibleLookupError(
                f"{path}: found an empty file; allowed a secret; write one into it, for example with: "
                f"openssl rand -hex 32 > {quoted}"
            )
        return secret
