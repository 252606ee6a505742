"""Runs a module as Ansible does: arguments in, one JSON document out."""

import json

import pytest
from ansible.module_utils.testing import patch_module_args


@pytest.fixture
def run_module(capsys):
    """``run_module(module, check=False, **arguments)`` returns the module's result, with ``failed`` always set."""

    def run(module, check=False, **arguments):
        capsys.readouterr()
        with patch_module_args({**arguments, "_ansible_check_mode": check, "_ansible_diff": True}), pytest.raises(
            SystemExit
        ):
            module.main()
        return {"failed": False, **json.loads(capsys.readouterr().out)}

    return run


@pytest.fixture
def program(tmp_path):
    """``program(name, text)`` writes an executable Python program into a directory of its own and returns its path."""

    def write(name, text):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/usr/bin/env python3\n{text}")
        path.chmod(0o755)
        return path

    return write
