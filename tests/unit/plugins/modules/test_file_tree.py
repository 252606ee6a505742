from __future__ import annotations

import base64
import os
import stat

import pytest

from ansible_collections.openclaw.ha.plugins.modules import file_tree


def coded(files):
    return {name: base64.b64encode(text.encode()).decode() for name, text in files.items()}


@pytest.fixture
def tree(run_module, tmp_path):
    def run(files, **more):
        return run_module(file_tree, path=str(tmp_path / "tree"), files=coded(files), **more)

    run.path = tmp_path / "tree"
    return run


def held(path):
    return {str(file.relative_to(path)): file.read_text() for file in path.rglob("*") if file.is_file()}


def test_it_holds_exactly_the_files(tree):
    files = {"a": "1", "d/b": "2", "d/e/c": "é"}
    result = tree(files)
    assert result["changed"] and result["written"] == sorted(files) and held(tree.path) == files
    assert not tree(files)["changed"]


def test_the_rest_goes(tree):
    tree({"a": "1", "d/b": "2", "d/e/c": "3", "f/g": "4"})
    result = tree({"a": "1", "d/b": "new"})
    assert (result["written"], result["removed"]) == (["d/b"], ["d/e", "f"])
    assert held(tree.path) == {"a": "1", "d/b": "new"} and not (tree.path / "f").exists()


def test_an_empty_tree_keeps_its_directory(tree):
    assert tree({})["changed"] and tree.path.is_dir() and not tree({})["changed"]
    tree({"a": "1"})
    assert tree({})["removed"] == ["a"] and tree.path.is_dir()


def test_the_directory_stays_the_same_one(tree):
    tree({"a": "1"})
    before = os.stat(tree.path).st_ino
    tree({"b": "2"})
    assert os.stat(tree.path).st_ino == before


def test_what_is_kept(tree):
    tree({"a": "1"})
    (tree.path / "node_modules" / "x").mkdir(parents=True)
    (tree.path / "sub" / "node_modules").mkdir(parents=True)
    assert tree({"a": "1"}, keep=["node_modules"])["removed"] == ["sub"]
    assert (tree.path / "node_modules" / "x").is_dir()


@pytest.mark.parametrize(("first", "second"), [({"a": "1"}, {"a/b": "2"}), ({"a/b": "2"}, {"a": "1"})])
def test_a_file_takes_the_place_of_a_directory_and_back(tree, first, second):
    tree(first)
    assert tree(second)["changed"] and held(tree.path) == second and not tree(second)["changed"]


def test_links_are_no_files(tree, tmp_path):
    tree({"a": "1", "d/b": "2"})
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b").write_text("2")
    (tmp_path / "one").write_text("1")
    (tree.path / "a").unlink()
    (tree.path / "a").symlink_to(tmp_path / "one")
    (tree.path / "d" / "b").unlink()
    (tree.path / "d").rmdir()
    (tree.path / "d").symlink_to(tmp_path / "elsewhere")
    assert tree({"a": "1", "d/b": "2"})["changed"]
    assert not (tree.path / "a").is_symlink() and not (tree.path / "d").is_symlink()
    assert (tmp_path / "elsewhere" / "b").exists() and not tree({"a": "1", "d/b": "2"})["changed"]


def test_modes(tree):
    tree({"d/a": "1"})
    assert stat.S_IMODE(os.stat(tree.path / "d" / "a").st_mode) == 0o644
    assert stat.S_IMODE(os.stat(tree.path / "d").st_mode) == 0o755
    (tree.path / "d" / "a").chmod(0o666)
    assert tree({"d/a": "1"})["written"] == ["d/a"]


def test_check_mode(tree):
    tree({"a": "1"})
    result = tree({"b": "2"}, check=True)
    assert (result["written"], result["removed"]) == (["b"], ["a"]) and held(tree.path) == {"a": "1"}
    assert result["diff"] == {"before": "a\n", "after": "b\n"}


@pytest.mark.parametrize("name", ["/etc/passwd", "../a", "a/../../b", "a//b", "./a", "node_modules/a", ".."])
def test_names_that_lead_elsewhere_are_refused(tree, name):
    result = tree({name: "1"}, keep=["node_modules"])
    assert result["failed"] and repr(name) in result["msg"] and not tree.path.exists()


def test_something_else_than_base64(run_module, tmp_path):
    assert run_module(file_tree, path=str(tmp_path / "t"), files={"a": "%%%"})["failed"]


def test_a_place_that_cannot_be_written(run_module, tmp_path):
    (tmp_path / "file").write_text("")
    result = run_module(file_tree, path=str(tmp_path / "file" / "t"), files=coded({"a": "1"}))
    assert result["failed"] and "Cannot fill" in result["msg"]
