# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter that turns the inventory into the topology."""

from __future__ import annotations

from ansible.errors import AnsibleFilterError

from ansible_collections.openclaw.ha.plugins.module_utils.topology import TopologyError, build


def topology(groups, hostvars, datacenter=None):
    """See topology.yml and module_utils/topology.py."""
    try:
        return build(groups, hostvars, datacenter)
    except TopologyError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """Ansible's entry point."""

    def filters(self):
        return {"topology": topology}
