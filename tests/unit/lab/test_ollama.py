"""The tiny model's file is read back by a reader of the GGUF format; the builder of the server says what it lacks."""

import hashlib
import io
import json
import pathlib
import shutil
import struct
import types

import pytest

from lab import ollama
from lab.ollama import tiny_model
from lab.shell import LabError

SCALARS = {tiny_model.UINT32: "<I", tiny_model.INT32: "<i", tiny_model.FLOAT32: "<f"}


def read_gguf(raw):
    """Metadata and tensors ({name: (shape, values)}) of a GGUF file; only the types that the writer has."""
    stream = io.BytesIO(raw)

    def unpack(layout):
        return struct.unpack(layout, stream.read(struct.calcsize(layout)))

    def text():
        return stream.read(unpack("<Q")[0]).decode()

    def value(kind):
        if kind == tiny_model.ARRAY:
            element, count = unpack("<IQ")
            return [value(element) for _item in range(count)]
        return text() if kind == tiny_model.STRING else unpack(SCALARS[kind])[0]

    assert stream.read(4) == b"GGUF"
    version, tensor_count, key_count = unpack("<IQQ")
    assert version == 3
    metadata = {}
    for _key in range(key_count):
        key = text()
        metadata[key] = value(unpack("<I")[0])
    listed = []
    for _tensor in range(tensor_count):
        name = text()
        (dimensions,) = unpack("<I")
        shape = unpack(f"<{dimensions}Q")
        kind, offset = unpack("<IQ")
        assert kind == 0, "not float32"
        listed.append((name, shape, offset))
    start = stream.tell() + -stream.tell() % 32
    tensors, end = {}, 0
    for name, shape, offset in listed:
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        assert offset % 32 == 0 and offset >= end, f"{name} overlaps or is not aligned"
        end = offset + 4 * count
        tensors[name] = (shape, struct.unpack_from(f"<{count}f", raw, start + offset))
    assert len(raw) == start + end + -end % 32
    return metadata, tensors


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    return directory, tiny_model.write(directory)


@pytest.fixture(scope="module")
def model(written):
    return read_gguf((written[0] / "tiny.gguf").read_bytes())


def test_the_shapes_are_those_the_metadata_promises(model):
    metadata, tensors = model
    width, feed_forward = metadata["llama.embedding_length"], metadata["llama.feed_forward_length"]
    head = metadata["llama.attention.key_length"]
    tokens = len(metadata["tokenizer.ggml.tokens"])
    assert {name.removesuffix(".weight"): shape for name, (shape, _values) in tensors.items()} == {
        "token_embd": (width, tokens),
        "output_norm": (width,),
        "output": (width, tokens),
        "blk.0.attn_norm": (width,),
        "blk.0.attn_q": (width, head),
        "blk.0.attn_k": (width, head),
        "blk.0.attn_v": (width, head),
        "blk.0.attn_output": (head, width),
        "blk.0.ffn_norm": (width,),
        "blk.0.ffn_gate": (width, feed_forward),
        "blk.0.ffn_up": (width, feed_forward),
        "blk.0.ffn_down": (feed_forward, width),
    }
    assert head == metadata["llama.attention.value_length"] == metadata["llama.rope.dimension_count"]
    assert metadata["general.architecture"] == "llama" and metadata["llama.block_count"] == 1


def test_the_special_tokens_are_where_the_tokenizer_is_told(model):
    metadata, _tensors = model
    tokens = metadata["tokenizer.ggml.tokens"]
    assert len(set(tokens)) == len(tokens)
    assert len(metadata["tokenizer.ggml.scores"]) == len(metadata["tokenizer.ggml.token_type"]) == len(tokens)
    names = ("unknown", "bos", "eos", "seperator")
    assert [tokens[metadata[f"tokenizer.ggml.{name}_token_id"]] for name in names] == ["<unk>", "<s>", "</s>", "<sep>"]


def test_no_layer_writes_to_the_rails(model):
    _metadata, tensors = model
    for name in ("blk.0.attn_output.weight", "blk.0.ffn_down.weight"):
        shape, values = tensors[name]
        for rail in (tiny_model.ALWAYS, tiny_model.WORD):
            assert not any(values[rail * shape[0] : (rail + 1) * shape[0]])


def allowed(model, after):
    """The tokens that may follow the token ``after``: those that the rails do not forbid."""
    metadata, tensors = model
    tokens = metadata["tokenizer.ggml.tokens"]
    rows = {name: tensors[f"{name}.weight"][1] for name in ("token_embd", "output")}

    def rails(name, token):
        start = tokens.index(token) * metadata["llama.embedding_length"]
        return rows[name][start + tiny_model.ALWAYS], rows[name][start + tiny_model.WORD]

    always, word = rails("token_embd", after)
    logits = {token: always * rails("output", token)[0] + word * rails("output", token)[1] for token in tokens}
    return {token for token, logit in logits.items() if logit > -10}


def test_an_answer_begins_with_a_word_and_ends_only_after_one(model):
    words = {token for token in model[0]["tokenizer.ggml.tokens"] if token.startswith("\u2581")}
    assert len(words) > 100
    assert allowed(model, "<sep>") == words
    assert allowed(model, "\u2581ba") == words | {"</s>"}


def test_tensors_of_any_length_are_aligned():
    weights = {"a": ((3,), [1.0, 2.0, 3.0]), "b": ((1, 2), [4.0, 5.0])}
    raw = tiny_model.gguf({"key": (tiny_model.STRING, "value")}, weights)
    assert read_gguf(raw) == ({"key": "value"}, {"a": ((3,), (1.0, 2.0, 3.0)), "b": ((1, 2), (4.0, 5.0))})


def test_the_same_bytes_every_time(written, tmp_path):
    tiny_model.write(tmp_path)
    for path in written[0].iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_the_second_model_is_made_from_the_first_and_changes_with_it(written):
    _directory, (weights, model) = written
    raw, text = (pathlib.Path(entry["file"]).read_bytes() for entry in (weights, model))
    assert raw.startswith(b"GGUF")
    assert text.decode().startswith(f"FROM {weights['name'].removesuffix(':latest')}\n")
    assert hashlib.sha256(raw).hexdigest() in text.decode()


@pytest.mark.parametrize(
    ("version", "enough"),
    [
        ("go version go1.24.1 linux/amd64", True),
        ("go version go1.26.8 linux/amd64", True),
        ("go version go1.24 linux/amd64", False),
        ("go version go1.19.8 linux/amd64", False),
        ("", False),
    ],
)
def test_go_is_new_enough(version, enough):
    assert ollama.new_enough(version) is enough


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with nothing built: ``has`` its programs, ``commands`` what was run, ``answers`` what prints what."""

    answers = {"go version": "go version go1.26.8 linux/amd64"}
    state = types.SimpleNamespace(has=["g++", "go"], commands=[], answers=answers)

    def run(*command, **options):
        line = " ".join(str(word) for word in command)
        state.commands.append(line)
        for part, answer in state.answers.items():
            if part in line:
                return answer(options) if callable(answer) else answer
        raise LabError(f"{line} ended with 1")

    monkeypatch.setattr(ollama, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(ollama, "run", run)
    monkeypatch.setattr(shutil, "which", lambda name: name if name in state.has else None)
    return state


def test_without_a_compiler_it_names_the_package(machine):
    machine.has = ["go"]
    with pytest.raises(LabError, match=r"install the package g\+\+"):
        ollama.ensure()


def test_without_any_go_it_says_which_is_needed(machine):
    machine.answers = {"go version": "go version go1.19.8 linux/amd64"}
    with pytest.raises(LabError, match=r"needs Go 1\.24\.1 or newer"):
        ollama.ensure()
    assert not ollama.CACHE.exists(), "something half done was left"


def test_it_builds_once(machine, tmp_path):
    def built(options):
        include = options["env"]["CGO_CPPFLAGS"].removeprefix("-I")
        with open(f"{include}/nlohmann/json_fwd.hpp", encoding="utf-8") as header:
            assert header.read() == "header"
        with open(f"{options['env']['GOBIN']}/ollama", "w", encoding="utf-8") as file:
            file.write("binary")
        return ""

    downloads = []
    for module, path in ollama.HEADERS.values():
        name, version = module.split("@")
        file = tmp_path / name / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("header")
        downloads.append(json.dumps({"Path": name, "Version": version, "Dir": str(tmp_path / name)}, indent=1))
    machine.answers |= {"mod download": "\n".join(downloads), "go install": built}
    binary = ollama.ensure()
    assert binary.read_text() == "binary"
    count = len(machine.commands)
    assert ollama.ensure() == binary and len(machine.commands) == count
    assert {path.name for path in ollama.CACHE.iterdir()} == {binary.parent.name, "include"}, "scratch files were left"
