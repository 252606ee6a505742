# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Name servers and Route 53: what they say now, and how they are told otherwise."""

from __future__ import annotations

import base64
import binascii
import socket
import struct

from ansible_collections.openclaw.ha.plugins.module_utils import dns_weights as core

try:
    import dns.exception
    import dns.flags
    import dns.message
    import dns.query
    import dns.rcode
    import dns.rdata
    import dns.rdataclass
    import dns.rdataset
    import dns.rdatatype
    import dns.tsig
    import dns.update
except ImportError:
    dns = None
try:
    import boto3
    import botocore.exceptions
except ImportError:
    boto3 = botocore = None

#: Seconds for one answer.
ANSWER = 3
ALGORITHMS = ("hmac-sha256", "hmac-sha384", "hmac-sha512")
#: PowerDNS' number for the type LUA, one of those for private use.
_LUA = 65402
#: Ours are known by it among the record sets of Route 53.
_SET = "openclaw-"
_TTL_OF_SERVERS = 3600


class ProviderError(RuntimeError):
    """A provider cannot be asked or does not do as it is told; one sentence says who, what was found, and what to do."""


def query(server, name, kind):
    """(answer as a list of texts, clause about what is wrong with it, whether nothing came) of one server."""
    question = dns.message.make_query(name, kind)
    question.flags &= ~dns.flags.RD
    try:
        answer, _by_tcp = dns.query.udp_with_fallback(question, server["address"], timeout=ANSWER, port=int(server["port"]))
    except dns.exception.Timeout:
        return [], f"gave no answer within {ANSWER} s", True
    except OSError as error:
        return [], f"cannot be asked ({error.strerror or error})", True
    except dns.exception.DNSException as error:
        return [], f"gave an answer that is no DNS ({type(error).__name__})", False
    code = dns.rcode.to_text(answer.rcode())
    if code not in ("NOERROR", "NXDOMAIN"):
        return [], f"answers {code} for {name}", False
    if not answer.flags & dns.flags.AA:
        return [], f"is no authoritative server of {name}", False
    found = [rdata for rrset in answer.answer if rrset.rdtype == dns.rdatatype.from_text(kind) for rdata in rrset]
    if kind == "TXT":
        return [b"".join(rdata.strings).decode(errors="replace") for rdata in found], "", False
    return sorted(rdata.to_text() for rdata in found), "", False


def see(server, name):
    """What a server says: the statement beside the name, and the name's addresses."""
    texts, failure, silent = query(server, f"{core.LABEL}.{name}", "TXT")
    answers = {}
    for family in core.FAMILIES:
        if not failure:
            answers[family], failure, silent = query(server, name, family)
    known = [text for text in texts if core.decode(text)]
    return core.Sight(
        host=f"{server['host']} ({server['address']}:{server['port']})",
        statement=core.decode(known[0]) if known else None,
        answers=answers,
        text=known[0] if known else "",
        failure=failure,
        silent=silent,
    )


class Updated:
    """Name servers that take RFC 2136 updates signed with TSIG: one primary of somebody's zone, or PowerDNS servers that each have the zone to themselves."""

    def __init__(self, parameters):
        self.parameters = parameters
        self.weighted = parameters["provider"] == "powerdns"
        self.name, self.zone, self.ttl = core.name_of(parameters["name"]), core.name_of(parameters["zone"]), parameters["ttl"]
        self.servers = parameters["servers"]
        key = parameters["key"]
        try:
            if not base64.b64decode(key["secret"], validate=True):
                raise binascii.Error
            self.key = dns.tsig.Key(f"{key['name']}.", key["secret"], key["algorithm"])
        except (binascii.Error, dns.exception.DNSException, ValueError):
            raise ProviderError(
                f"dns_key_secret or dns_key_name: found values that are no key named {key['name']}; allowed base64 and a domain name; correct them."
            ) from None
        #: Each PowerDNS server is written to; of others the first one, which gives it to its secondaries.
        self.written = self.servers if self.weighted else self.servers[:1]
        self._texts = {}

    def look(self):
        sights = [see(server, self.name) for server in self.servers]
        self._texts = {server["host"]: sight.text for server, sight in zip(self.servers, sights)}
        return sights

    def believed(self, sights):
        """Those that say what is in force. Secondaries lag behind their primary."""
        return sights if self.weighted else sights[:1]

    def rows(self, weights, addresses):
        return core.shares(weights, addresses)

    def describe(self, rows):
        """The records besides the statement, as data from which their digest is made."""
        records = {"name": [self.name, self.ttl, rows if self.weighted else {family: [one for one, _weight in kept] for family, kept in rows.items()}]}
        if self.weighted:
            records["servers"] = [self.parameters["hostmaster"], self.parameters["nameservers"]]
        return records

    def differs(self, sight, wanted, rows):
        """Whether a server has to be written to."""
        if sight.text != core.encode(wanted):
            return True
        if self.weighted:
            return bool(core.answers_problem(sight.answers, rows))
        return any(sight.answers.get(family, []) != [address for address, _weight in rows.get(family, [])] for family in core.FAMILIES)

    def foreign(self, sights, addresses):
        """A sentence about addresses that somebody else gave to the name; empty when it is ours or free."""
        known = {one for texts in addresses.values() for kept in core.by_family(texts).values() for one in kept}
        for sight in sights:
            strangers = [one for family in core.FAMILIES for one in sight.answers.get(family, []) if one not in known]
            if strangers and not sight.statement:
                return (
                    f"dns_name: found that {sight.host} answers {self.name} with {', '.join(strangers)}, which no datacenter has, and no record "
                    f"of ours beside it; allowed a name that nobody else keeps; delete those records or take another name."
                )
        return ""

    def apply(self, sights, wanted, rows):
        """Clauses about servers that could not be told. ``sights`` are those that have to be."""
        hosts, failures = {sight.host for sight in sights}, []
        for server in self.written:
            title = f"{server['host']} ({server['address']}:{server['port']})"
            if title in hosts:
                failure = self._send(server, wanted, rows)
                if failure:
                    failures.append(f"{title} {failure}")
        return failures

    def _send(self, server, wanted, rows):
        message = self._message(self._texts.get(server["host"], ""), wanted, rows)
        if self.weighted:
            listed, _failure, _silent = query(server, self.zone, "NS")
            for one in set(map(core.name_of, listed)) - {row["name"] for row in self.parameters["nameservers"]}:
                message.delete(f"{self.zone}.", "NS", f"{one}.")
        try:
            answer = dns.query.tcp(message, server["address"], timeout=ANSWER * 2, port=int(server["port"]))
        except dns.tsig.PeerBadTime:
            return "refused the update because its clock is another; set the clocks"
        # PowerDNS answers a signature that it cannot check with one that no library can read.
        except (dns.tsig.PeerError, dns.exception.FormError):
            return f"does not know the key {self.parameters['key']['name']} or has another secret for it; give it the one of dns_key_secret"
        except dns.exception.Timeout:
            return f"did not take the update within {ANSWER * 2} s"
        except OSError as error:
            return f"could not be told ({error.strerror or error})"
        except dns.exception.DNSException as error:
            return f"answered the update with something that is not signed as it must be ({type(error).__name__})"
        code = answer.rcode()
        if code in (dns.rcode.NXRRSET, dns.rcode.YXRRSET, dns.rcode.NXDOMAIN, dns.rcode.YXDOMAIN):
            return "was changed by somebody else at the same time; nothing was changed there; look, then run this again"
        if code == dns.rcode.NOTAUTH:
            return f"does not know the key {self.parameters['key']['name']}, or is not authoritative for {self.zone}"
        if code != dns.rcode.NOERROR:
            return f"refused the update ({dns.rcode.to_text(code)}); let the key {self.parameters['key']['name']} update {self.name} there"
        return ""

    def _message(self, before, wanted, rows):
        message = dns.update.UpdateMessage(f"{self.zone}.", keyring=self.key)
        name, label = f"{self.name}.", f"{core.LABEL}.{self.name}."
        # Only what was read may be replaced: two runs at once would undo each other unseen.
        if before:
            message.present(label, _text(before))
        else:
            message.absent(label, "TXT")
        if self.weighted:
            names = [row["name"] for row in self.parameters["nameservers"]]
            soa = f"{names[0]}. {self.parameters['hostmaster']}. {wanted.serial} 60 30 604800 {self.ttl}"
            message.replace(f"{self.zone}.", self.ttl, "SOA", soa)
            # Before those that have left are deleted: a zone keeps its last one.
            for one in names:
                message.add(f"{self.zone}.", _TTL_OF_SERVERS, "NS", f"{one}.")
            for row in self.parameters["nameservers"]:
                if row["name"] == self.zone or row["name"].endswith(f".{self.zone}"):
                    message.replace(f"{row['name']}.", _TTL_OF_SERVERS, "AAAA" if ":" in row["address"] else "A", row["address"])
            contents = [core.lua(family, kept) for family, kept in rows.items()]
            self._replace(message, name, _LUA, [_lua(family, text) for family, text in contents])
        else:
            for family in core.FAMILIES:
                kept = [dns.rdata.from_text(dns.rdataclass.IN, family, address) for address, _weight in rows.get(family, [])]
                self._replace(message, name, family, kept)
        self._replace(message, label, "TXT", [_text(core.encode(wanted))])
        return message

    def _replace(self, message, name, kind, rdatas):
        message.delete(name, dns.rdatatype.RdataType.make(kind))
        if rdatas:
            message.add(name, dns.rdataset.from_rdata_list(self.ttl, rdatas))

    def settled(self):
        """Whether what was told has gone out to all servers, as far as the provider says."""
        return True


def _text(text):
    strings = [text[start : start + 255].encode() for start in range(0, len(text), 255)]
    quoted = " ".join('"' + string.decode().replace("\\", "\\\\").replace('"', '\\"') + '"' for string in strings)
    return dns.rdata.from_text(dns.rdataclass.IN, dns.rdatatype.TXT, quoted)


def _lua(family, text):
    """A LUA record on the wire: the type that it answers, then strings of up to 255 bytes."""
    raw, data = text.encode(), struct.pack("!H", dns.rdatatype.from_text(family))
    for start in range(0, len(raw), 255):
        part = raw[start : start + 255]
        data += bytes([len(part)]) + part
    return dns.rdata.GenericRdata(dns.rdataclass.IN, _LUA, data)


class Route53:
    """A hosted zone of Amazon Route 53 with weighted record sets, one for each datacenter and family."""

    def __init__(self, parameters):
        self.parameters = parameters
        self.name, self.zone, self.ttl = core.name_of(parameters["name"]), core.name_of(parameters["zone"]), parameters["ttl"]
        try:
            self.client = boto3.client(
                "route53",
                # Route 53 has one place for all; without a region boto3 would not start.
                region_name="us-east-1",
                aws_access_key_id=parameters["aws_access_key"],
                aws_secret_access_key=parameters["aws_secret_key"],
            )
        except (botocore.exceptions.BotoCoreError, ValueError) as error:
            raise ProviderError(f"Route 53: {_aws(error)}") from None
        self.zone_id = parameters["route53_zone_id"] or self._zone_id()
        self.servers = parameters["servers"] or self._servers()
        self._sets, self._change = [], None

    def _call(self, name, **arguments):
        try:
            return getattr(self.client, name)(**arguments)
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
            raise ProviderError(f"Route 53: {_aws(error)}") from None

    def _zone_id(self):
        found = [
            zone["Id"].rpartition("/")[2]
            for zone in self._call("list_hosted_zones_by_name", DNSName=self.zone)["HostedZones"]
            if core.name_of(zone["Name"]) == self.zone and not zone["Config"].get("PrivateZone")
        ]
        if len(found) != 1:
            what = f"{len(found)} public hosted zones ({', '.join(found)})" if found else "no public hosted zone"
            raise ProviderError(f"dns_zone: found {what} named {self.zone} in Route 53; allowed one; set dns_route53_zone_id to the one that is delegated.")
        return found[0]

    def _servers(self):
        names = self._call("get_hosted_zone", Id=self.zone_id).get("DelegationSet", {}).get("NameServers", [])
        found = []
        for name in names:
            try:
                found.append({"host": name, "address": socket.getaddrinfo(name, 53, proto=socket.IPPROTO_UDP)[0][4][0], "port": 53})
            except OSError:
                continue
        if not found:
            raise ProviderError(
                f"dns_servers: found no address of the zone's servers ({', '.join(names) or 'none named'}); allowed those that can be asked from here; "
                f"set dns_servers."
            )
        return found

    def look(self):
        self._sets = [one for page in self._pages() for one in page["ResourceRecordSets"]]
        text = "".join(
            _unquoted(record["Value"])
            for one in self._sets
            if core.name_of(one["Name"]) == f"{core.LABEL}.{self.name}" and one["Type"] == "TXT"
            for record in one["ResourceRecords"]
        )
        statement = core.decode(text)
        weights = {one["SetIdentifier"].removeprefix(_SET): one["Weight"] for one in self._own()}
        stated = statement.weights if statement else {}
        if weights and {**stated, **weights} != stated:
            # Somebody has set weights at Route 53 itself, or deleted the record beside them: what the record says is not in force.
            statement, text = core.Statement({**stated, **weights}, statement.serial if statement else 0), ""
        return [core.Sight(host="Route 53", statement=statement, text=text)]

    def _pages(self):
        try:
            yield from self.client.get_paginator("list_resource_record_sets").paginate(HostedZoneId=self.zone_id)
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
            raise ProviderError(f"Route 53: {_aws(error)}") from None

    def _at_name(self):
        return [one for one in self._sets if core.name_of(one["Name"]) == self.name and one["Type"] in (*core.FAMILIES, "CNAME")]

    def _own(self):
        return [one for one in self._at_name() if one.get("SetIdentifier", "").startswith(_SET) and "Weight" in one]

    def believed(self, sights):
        return sights

    def rows(self, weights, addresses):
        return core.shares(weights, addresses)

    def describe(self, rows):
        return {"name": [self.name, self.ttl, rows]}

    def foreign(self, _sights, _addresses):
        own = self._own()
        others = [one for one in self._at_name() if one not in own]
        if others:
            kinds = ", ".join(f"{one['Type']} {one.get('SetIdentifier', 'without a set identifier')}" for one in others)
            return (
                f"dns_name: found records of {self.name} in Route 53 that are not ours ({kinds}); allowed none; delete them, or take another name: "
                f"Route 53 would not weight them with ours."
            )
        return ""

    def differs(self, sight, wanted, _rows):
        have = {(one["Name"].rstrip("."), one["Type"], one.get("SetIdentifier")): _plain(one) for one in self._own()}
        want = {(one["Name"].rstrip("."), one["Type"], one.get("SetIdentifier")): _plain(one) for one in self._wanted(wanted)}
        return sight.text != core.encode(wanted) or have != want

    def _wanted(self, wanted):
        """A record set for each datacenter and family; those of weight 0 too, so that people find them."""
        addresses, found = self.parameters["addresses"], []
        used = core.shares(wanted.weights, addresses)
        for datacenter, weight in wanted.weights.items():
            families = core.by_family(addresses[datacenter])
            for family in used:
                if families[family]:
                    found.append(
                        {
                            "Name": f"{self.name}.",
                            "Type": family,
                            "SetIdentifier": f"{_SET}{datacenter}",
                            "Weight": weight,
                            "TTL": self.ttl,
                            "ResourceRecords": [{"Value": address} for address in families[family]],
                        }
                    )
        return found

    def apply(self, _sights, wanted, _rows):
        want = self._wanted(wanted)
        kept = {(one["Type"], one["SetIdentifier"]) for one in want}
        gone = [one for one in self._own() if (one["Type"], one["SetIdentifier"]) not in kept]
        text = {
            "Name": f"{core.LABEL}.{self.name}.",
            "Type": "TXT",
            "TTL": self.ttl,
            "ResourceRecords": [{"Value": _text(core.encode(wanted)).to_text()}],
        }
        changes = [{"Action": "DELETE", "ResourceRecordSet": one} for one in gone]
        changes += [{"Action": "UPSERT", "ResourceRecordSet": one} for one in (*want, text)]
        answer = self._call("change_resource_record_sets", HostedZoneId=self.zone_id, ChangeBatch={"Changes": changes})
        self._change = answer["ChangeInfo"]["Id"]
        return []

    def settled(self):
        return self._change is None or self._call("get_change", Id=self._change)["ChangeInfo"]["Status"] == "INSYNC"


def _unquoted(value):
    return b"".join(dns.rdata.from_text(dns.rdataclass.IN, dns.rdatatype.TXT, value).strings).decode()


def _plain(record_set):
    return {"weight": record_set["Weight"], "ttl": record_set["TTL"], "values": sorted(record["Value"] for record in record_set["ResourceRecords"])}


def _aws(error):
    """What AWS says, without what it was asked with."""
    if hasattr(error, "response"):
        return f"{error.response['Error'].get('Code')}: {error.response['Error'].get('Message')}"
    return " ".join(str(error).split())
