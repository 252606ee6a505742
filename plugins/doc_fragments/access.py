# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options that lead a module into Redis and Sentinel."""

from __future__ import annotations


class ModuleDocFragment:
    """C(openclaw.ha.access.redis) and C(openclaw.ha.access.sentinel); literals, because ansible-test reads them without running this file."""

    REDIS = r"""
options:
  redis_access:
    description: How to get into the Redis servers.
    type: dict
    default: {}
    suboptions:
      username:
        description: ACL user; without one, the user C(default).
        type: str
      password:
        description: The user's password.
        type: str
      tls_ca:
        description: Path of the authority's certificate on the host where the module runs; TLS is spoken when it is given.
        type: path
      tls_cert:
        description: Path of the client's certificate, for servers that want one.
        type: path
      tls_key:
        description: Path of the client's private key.
        type: path
requirements:
  - redis (the Python library)
"""

    SENTINEL = r"""
options:
  sentinel_access:
    description: How to get into the Sentinels.
    type: dict
    default: {}
    suboptions:
      username:
        description: ACL user; without one, the user C(default).
        type: str
      password:
        description: The user's password.
        type: str
      tls_ca:
        description: Path of the authority's certificate on the host where the module runs; TLS is spoken when it is given.
        type: path
      tls_cert:
        description: Path of the client's certificate, for servers that want one.
        type: path
      tls_key:
        description: Path of the client's private key.
        type: path
requirements:
  - redis (the Python library)
"""
