# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters that build what the programs around messaging channels read."""

from __future__ import annotations

from ansible.errors import AnsibleFilterError

from ansible_collections.openclaw.ha.plugins.module_utils import channels


def ingress_config(entries, topology, directory):
    """See ingress_config.yml."""
    return _built(channels.ingress, entries, topology["replicas"], directory)


def ingress_secrets(entries):
    """See ingress_secrets.yml."""
    return _built(channels.ingress_secrets, entries)


def channel_packages(entries):
    """See channel_packages.yml."""
    return _built(channels.packages, entries)


def owner_singletons(entries):
    """See owner_singletons.yml."""
    return _built(channels.singles, entries)


def _built(function, *arguments):
    try:
        return function(*arguments)
    except channels.ChannelError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """Ansible's entry point."""

    def filters(self):
        return {
            "channel_packages": channel_packages,
            "ingress_config": ingress_config,
            "ingress_secrets": ingress_secrets,
            "owner_replicas": channels.owner_replicas,
            "owner_singletons": owner_singletons,
        }
