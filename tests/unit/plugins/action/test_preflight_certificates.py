"""What preflight says about files of certificates on the controller."""

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ansible_collections.openclaw.ha.plugins.action.preflight_check import certificate_info

PEM = serialization.Encoding.PEM


@pytest.fixture
def files(tmp_path):
    """Writes a certificate that is valid for so many days from now, and its key; returns their paths."""

    def make(begin=-1, end=90, passphrase=None, name="site"):
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.timezone.utc)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "site")])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(now + datetime.timedelta(days=begin))
            .not_valid_after(now + datetime.timedelta(days=end, hours=1))
            .sign(key, hashes.SHA256())
        )
        encryption = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
        cert, private = tmp_path / f"{name}.crt", tmp_path / f"{name}.key"
        cert.write_bytes(certificate.public_bytes(PEM))
        private.write_bytes(key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, encryption))
        return str(cert), str(private)

    return make


def test_what_is_sound(files):
    assert certificate_info(*files(end=90)) == {"days": 90}


def test_a_chain_is_judged_by_its_first_certificate(files):
    cert, key = files()
    other, _key = files(end=-1, begin=-2, name="other")
    with open(cert, "a", encoding="ascii") as chain, open(other, encoding="ascii") as more:
        chain.write(more.read())
    assert certificate_info(cert, key) == {"days": 90}


@pytest.mark.parametrize("begin, end", [(-10, -2), (2, 10)])
def test_one_that_is_not_valid_now(files, begin, end):
    assert "that is valid from" in certificate_info(*files(begin=begin, end=end))["problem"]


def test_a_key_of_another_certificate(files):
    cert, _key = files()
    _cert, key = files(name="other")
    assert "that is not the one of the certificate" in certificate_info(cert, key)["problem"]


def test_a_key_with_a_passphrase(files):
    assert "without a passphrase" in certificate_info(*files(passphrase=b"secret"))["problem"]


def test_files_that_are_something_else(files, tmp_path):
    cert, key = files()
    assert "no PEM certificate" in certificate_info(key, key)["problem"]
    assert "no usable private key" in certificate_info(cert, cert)["problem"]
    assert "No such file" in certificate_info(cert, str(tmp_path / "absent"))["problem"]
    assert "Is a directory" in certificate_info(str(tmp_path), key)["problem"]
    assert "allowed an absolute path" in certificate_info("site.crt", key)["problem"]
