# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Passwords of the users of Redis and Sentinel."""

from __future__ import annotations

from ansible.errors import AnsibleFilterError

from ansible_collections.openclaw.ha.plugins.module_utils.redis_access import passwords


def redis_passwords(secret, kind, given=None, datacenter=None):
    """See redis_passwords.yml."""
    try:
        return passwords(secret, kind, given, datacenter)
    except ValueError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """Ansible's entry point."""

    def filters(self):
        return {"redis_passwords": redis_passwords}
