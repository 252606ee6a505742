"""dns_weights with Route 53: moto stands for its API, tests/doubles/route53_dns.py for its name servers."""

from __future__ import annotations

import collections
import json

import boto3
import moto
import pytest

from ansible_collections.openclaw.ha.plugins.modules import dns_weights
from tests.doubles.route53_dns import Route53Dns
from tests.ports import free_port
from tests.unit.plugins.modules.name_servers import addresses, ask

ZONE, NAME = "example.org", "claw.example.org"
SITES = {"dc1": ["192.0.2.10"], "dc2": ["198.51.100.10", "198.51.100.11"]}
SECRET = "thesecretofthekeyfortests"


@pytest.fixture
def cloud(monkeypatch):
    """(boto3's client, id of the zone, its name server)"""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    with moto.mock_aws():
        client = boto3.client("route53", region_name="us-east-1", aws_access_key_id="one", aws_secret_access_key="two")
        zone = client.create_hosted_zone(Name=ZONE, CallerReference="1")["HostedZone"]["Id"].rpartition("/")[2]
        server = Route53Dns(client, zone, free_port())
        yield client, zone, server
        server.shutdown()
        server.server_close()


@pytest.fixture
def call(run_module, cloud):
    def run(check=False, **arguments):
        known = {
            "provider": "route53",
            "name": NAME,
            "zone": ZONE,
            "addresses": SITES,
            "servers": [{"host": "aws", "address": "127.0.0.1", "port": cloud[2].server_address[1]}],
            "aws_access_key": "thekey",
            "aws_secret_key": SECRET,
            "deadline": 5,
        }
        return run_module(dns_weights, check=check, **{**known, **arguments})

    return run


def sets(cloud, kind="A"):
    found = cloud[0].list_resource_record_sets(HostedZoneId=cloud[1])["ResourceRecordSets"]
    return {one["SetIdentifier"]: one for one in found if one["Type"] == kind and "SetIdentifier" in one}


def test_weighted_record_sets_are_made_once_and_answered(cloud, call):
    assert call(check=True, weights={"dc1": 90, "dc2": 10})["changed"] and not sets(cloud)
    done = call(weights={"dc1": 90, "dc2": 10})
    assert (done["failed"], done["changed"]) == (False, True), done
    found = sets(cloud)
    assert {name: one["Weight"] for name, one in found.items()} == {"openclaw-dc1": 90, "openclaw-dc2": 10}
    assert [record["Value"] for record in found["openclaw-dc2"]["ResourceRecords"]] == SITES["dc2"]
    assert found["openclaw-dc1"]["TTL"] == 30
    assert collections.Counter(addresses(cloud[2].server_address[1], 100, NAME))["192.0.2.10"] == 90
    assert not call(weights={"dc1": 90, "dc2": 10})["changed"]
    assert SECRET not in json.dumps(done)


def test_weights_in_force_are_kept_and_read_from_the_record_sets(cloud, call):
    call(weights={"dc1": 100}, ramp_from={"dc1": 50, "dc2": 50})
    done = call(first={"dc2": 100})
    assert (done["changed"], done["weights"], done["ramp_from"]) == (False, {"dc1": 100, "dc2": 0}, {"dc1": 50, "dc2": 50})
    changed = {**sets(cloud)["openclaw-dc2"], "Weight": 40}
    batch = {"Changes": [{"Action": "UPSERT", "ResourceRecordSet": changed}]}
    cloud[0].change_resource_record_sets(HostedZoneId=cloud[1], ChangeBatch=batch)
    done = call(first={"dc2": 100})
    assert (done["changed"], done["weights"]) == (True, {"dc1": 100, "dc2": 40})
    assert not call()["changed"]


def test_weights_survive_when_the_record_beside_them_is_deleted(cloud, call):
    call(weights={"dc1": 0, "dc2": 100})
    text = next(one for one in cloud[0].list_resource_record_sets(HostedZoneId=cloud[1])["ResourceRecordSets"] if one["Type"] == "TXT")
    cloud[0].change_resource_record_sets(HostedZoneId=cloud[1], ChangeBatch={"Changes": [{"Action": "DELETE", "ResourceRecordSet": text}]})
    assert call(first={"dc1": 100})["weights"] == {"dc1": 0, "dc2": 100}


def test_record_sets_of_a_family_or_datacenter_that_has_left_go(cloud, call):
    call(weights={"dc1": 100}, addresses={"dc1": ["192.0.2.10", "2001:db8::1"], "dc2": ["198.51.100.10"]})
    assert set(sets(cloud, "AAAA")) == {"openclaw-dc1"}
    call(addresses={"dc1": ["192.0.2.10"]})
    assert not sets(cloud, "AAAA") and set(sets(cloud)) == {"openclaw-dc1"}
    assert not call(addresses={"dc1": ["192.0.2.10"]})["changed"]


def test_somebody_elses_records_of_the_name_are_left_alone(cloud, call):
    other = {"Name": NAME, "Type": "A", "TTL": 60, "ResourceRecords": [{"Value": "203.0.113.9"}]}
    cloud[0].change_resource_record_sets(HostedZoneId=cloud[1], ChangeBatch={"Changes": [{"Action": "CREATE", "ResourceRecordSet": other}]})
    done = call(weights={"dc1": 100})
    assert done["failed"] and "not ours" in done["msg"] and not sets(cloud)
    assert ask(cloud[2].server_address[1], NAME).answer[0][0].to_text() == "203.0.113.9"


def test_name_servers_that_do_not_give_the_change_fail_it(cloud, call):
    call(weights={"dc1": 100})
    cloud[2].frozen = cloud[2].sets()
    done = call(weights={"dc2": 100}, deadline=0.3)
    assert done["failed"] and "aws" in done["msg"] and "still says dc1=100 dc2=0" in done["msg"]


def test_a_change_that_stays_pending_fails_it(call, monkeypatch):
    monkeypatch.setattr(dns_weights.providers.Route53, "settled", lambda _self: False)
    done = call(weights={"dc1": 100}, deadline=0.3)
    assert done["failed"] and "has not yet given the change to its servers" in done["msg"]


def test_a_zone_that_is_not_there_or_not_alone_is_refused(cloud, call):
    done = call(weights={"dc1": 100}, name="claw.example.net", zone="example.net")
    assert done["failed"] and "no public hosted zone" in done["msg"]
    cloud[0].create_hosted_zone(Name=ZONE, CallerReference="2")
    done = call(weights={"dc1": 100})
    assert done["failed"] and "2 public hosted zones" in done["msg"] and "dns_route53_zone_id" in done["msg"]
    assert not call(weights={"dc1": 100}, route53_zone_id=cloud[1])["failed"]


def test_what_aws_refuses_is_told_without_the_secret(call):
    done = call(weights={"dc1": 100}, route53_zone_id="ZDOESNOTEXIST")
    assert done["failed"] and "NoSuchHostedZone" in done["msg"] and SECRET not in json.dumps(done)
