"""``tests.history`` for its unit tests, and its Go program, built once."""

import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    from tests.history import crosscheck

    return crosscheck.binary(tmp_path_factory.mktemp("porcupine"))


@pytest.fixture
def porcupine(program, tmp_path):
    """A history -> Porcupine's whole answer."""
    from tests.history import crosscheck

    def judge(history, **options):
        path = tmp_path / "history.json"
        history.save(path)
        return crosscheck.judge(path, program=program, **options)

    return judge
