# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters of playbooks/dns_ramp.yml."""

from __future__ import annotations

from ansible_collections.openclaw.ha.plugins.module_utils import dns_ramp, dns_ramp_page


class FilterModule:
    """Ansible's entry point."""

    def filters(self):
        return {
            "dns_ramp_begin": dns_ramp.begin,
            "dns_ramp_counts": dns_ramp.counts,
            "dns_ramp_look": dns_ramp.look,
            "dns_ramp_most_looks": dns_ramp.most_looks,
            "dns_ramp_summary": dns_ramp.summary,
            "dns_ramp_page": dns_ramp_page.page,
        }
