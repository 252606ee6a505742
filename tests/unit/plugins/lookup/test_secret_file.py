import os

import pytest
from ansible.errors import AnsibleLookupError
from ansible.parsing.dataloader import DataLoader
from ansible.parsing.vault import VaultLib, VaultSecret
from ansible.template import Templar

from ansible_collections.openclaw.ha.plugins.lookup.secret_file import LookupModule

SECRET = "b5a1c0ffee5ec4e7b5a1c0ffee5ec4e7"


@pytest.fixture
def loader():
    return DataLoader()


@pytest.fixture
def look(loader):
    return lambda *paths: LookupModule(loader=loader, templar=Templar(loader=loader)).run(
        [str(path) for path in paths], {}
    )


@pytest.fixture
def secret(tmp_path):
    def write(content=SECRET + "\n", mode=0o600, name="token"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        path.chmod(mode)
        return path

    return write


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_reads_what_only_its_owner_can_read(look, secret, mode):
    assert look(secret(mode=mode)) == [SECRET]


@pytest.mark.parametrize(
    "content, expected",
    [("a", "a"), ("a\n", "a"), ("a\n\n", "a\n"), (" a b \n", " a b "), ("{{ a }}\n", "{{ a }}"), ("ä\n", "ä")],
)
def test_strips_one_newline_and_nothing_else(look, secret, content, expected):
    assert look(secret(content)) == [expected]


def test_reads_several_files_in_order(look, secret):
    assert look(secret("a\n", name="one"), secret("b\n", name="two")) == ["a", "b"]


def test_relative_paths_start_at_the_playbook(look, loader, secret):
    loader.set_basedir(str(secret().parent))
    assert look("token") == [SECRET]


def test_follows_a_link_to_a_good_file(look, secret, tmp_path):
    (tmp_path / "link").symlink_to(secret())
    assert look(tmp_path / "link") == [SECRET]


def test_decrypts_a_vault_file(look, loader, secret):
    key = [("default", VaultSecret(b"vault password"))]
    encrypted = VaultLib(key).encrypt(SECRET + "\n")
    with pytest.raises(AnsibleLookupError, match="found content that cannot be read"):
        look(secret(encrypted))
    loader.set_vault_secrets(key)
    assert look(secret(encrypted)) == [SECRET]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o644, 0o666, 0o700, 0o200])
def test_refuses_every_other_mode(look, secret, mode):
    path = secret(mode=mode)
    with pytest.raises(AnsibleLookupError) as refused:
        look(path)
    assert str(refused.value) == (
        f"{path}: found mode {mode:04o}; allowed 0600 or 0400, so that only its owner reads it; run: chmod 0600 {path}"
    )


def test_refuses_a_link_to_an_open_file_and_names_it(look, secret, tmp_path):
    path = secret(mode=0o644)
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(AnsibleLookupError) as refused:
        look(tmp_path / "link")
    assert str(refused.value).startswith(f"{tmp_path}/link (a link to {path}): found mode 0644; allowed 0600 or 0400")


def test_refuses_a_missing_file(look, tmp_path):
    with pytest.raises(
        AnsibleLookupError, match=r"absent: found no file to read \(No such file or directory\); allowed .*0600 or 0400"
    ):
        look(tmp_path / "absent")


def test_refuses_a_link_to_nothing(look, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    with pytest.raises(AnsibleLookupError, match="link: found no file to read"):
        look(tmp_path / "link")


def test_refuses_a_directory(look, tmp_path):
    with pytest.raises(AnsibleLookupError, match="found no regular file"):
        look(tmp_path)


@pytest.mark.parametrize("content", ["", "\n", "  \n\n"])
def test_refuses_an_empty_file(look, secret, content):
    with pytest.raises(AnsibleLookupError, match="found an empty file; allowed a secret; write one into it"):
        look(secret(content))


def test_quotes_the_path_in_the_command(look, secret):
    path = secret(mode=0o644, name="my token")
    with pytest.raises(AnsibleLookupError, match=f"run: chmod 0600 '{path}'$"):
        look(path)


@pytest.mark.parametrize("content, mode", [(SECRET.encode() + b"\xff", 0o600), (SECRET, 0o644)])
def test_no_error_holds_the_content(look, secret, content, mode):
    with pytest.raises(AnsibleLookupError) as refused:
        look(secret(content, mode))
    error, told = refused.value, ""
    while error:
        told += repr(error) + str(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    assert SECRET not in told


def test_the_error_says_one_sentence(look, secret):
    with pytest.raises(AnsibleLookupError) as refused:
        look(secret(mode=0o644))
    assert os.linesep not in str(refused.value)
