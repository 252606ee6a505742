# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters of playbooks/status.yml."""

from __future__ import annotations

from ansible_collections.openclaw.ha.plugins.module_utils import status


class FilterModule:
    """Ansible's entry point."""

    def filters(self):
        return {
            "status": status.status,
            "status_table": status.table,
            "units_of": status.units_of,
            "probes_of": status.probes_of,
            "verdicts_of": status.verdicts_of,
        }
