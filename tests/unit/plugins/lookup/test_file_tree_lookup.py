from __future__ import annotations

import base64

import pytest
from ansible.errors import AnsibleLookupError
from ansible.parsing.dataloader import DataLoader

from ansible_collections.openclaw.ha.plugins.lookup.file_tree import LookupModule, read_tree


@pytest.fixture
def tree(tmp_path):
    for name, text in {"a": "1", "d/b": "2", "d/.git/x": "3", "test/t": "4"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def decoded(found):
    return {name: base64.b64decode(text).decode() for name, text in found.items()}


def test_all_files(tree):
    assert decoded(read_tree(str(tree), [])) == {"a": "1", "d/b": "2", "d/.git/x": "3", "test/t": "4"}


def test_names_left_out_at_any_depth(tree):
    assert decoded(read_tree(str(tree), [".git", "test"])) == {"a": "1", "d/b": "2"}


def test_bytes_survive(tree):
    (tree / "a").write_bytes(bytes(range(256)))
    assert base64.b64decode(read_tree(str(tree), [])["a"]) == bytes(range(256))


def test_a_link_to_a_file_is_followed_and_one_to_a_directory_refused(tree):
    (tree / "link").symlink_to(tree / "a")
    assert decoded(read_tree(str(tree), []))["link"] == "1"
    (tree / "loop").symlink_to(tree)
    with pytest.raises(ValueError, match="link to a directory"):
        read_tree(str(tree), [])


def test_no_directory(tree):
    with pytest.raises(ValueError, match="is no directory on the controller"):
        read_tree(str(tree / "a"), [])


@pytest.fixture
def lookup(monkeypatch):
    """The plugin with its options given directly: only Ansible's own loader knows their declaration."""
    found = LookupModule(loader=DataLoader())

    def run(path, exclude=()):
        monkeypatch.setattr(found, "set_options", lambda **_options: None)
        monkeypatch.setattr(found, "get_option", {"exclude": list(exclude)}.get)
        return found.run([str(path)], variables={})

    return run


def test_as_a_lookup(tree, lookup):
    (found,) = lookup(tree, [".git", "test"])
    assert decoded(found) == {"a": "1", "d/b": "2"}


@pytest.mark.parametrize("name", ["a", "none", "dangling"])
def test_errors_name_the_path(tree, lookup, name):
    (tree / "dangling").mkdir()
    (tree / "dangling" / "x").symlink_to(tree / "nowhere")
    with pytest.raises(AnsibleLookupError, match=str(tree / name)):
        lookup(tree / name)
