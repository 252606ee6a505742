"""A language model of a few thousand random weights: it loads, tokenizes, streams and stops like any other.

Its words are noise. What is not left to chance, because a test has to rely on it: an answer is never empty, consists of
words alone, and ends by itself, after some 15 tokens as a rule.
"""

import array
import hashlib
import pathlib
import random
import struct

#: The weights become a model of their own, from which the model that is used is made with a chat template: the role
#: carries one file per model to the host, and a Modelfile can name another model where it cannot name a file.
WEIGHTS = "tiny-weights"
CONTEXT = 32768  # tokens
#: One attention head, and a narrow one: it is what a long prompt spends its time on.
WIDTH, HEAD, FEED_FORWARD = 32, 8, 64
SEED = 20261120

# Types of metadata and of tokens as the GGUF format numbers them.
UINT32, INT32, FLOAT32, STRING, ARRAY = 4, 5, 6, 8, 9
NORMAL, UNKNOWN, CONTROL = 1, 2, 3
UNK, BOS, EOS, SEP = range(4)

# Two of the model's dimensions are rails that no layer writes to: one is always on, one tells whether the last token
# was a word. The output layer reads them to forbid tokens, and to allow an end only after a word. A prompt's last token
# is the separator, which the tokenizer sets by itself.
ALWAYS, WORD = 0, 1
FORBIDDEN = -60.0
END = 0.9

MODELFILE = f"""\
FROM {WEIGHTS}
TEMPLATE \"\"\"{{{{ if .Tools }}}}tools:{{{{ range .Tools }}}} {{{{ .Function.Name }}}}{{{{ end }}}}
{{{{ end }}}}{{{{ range .Messages }}}}{{{{ .Role }}}}: {{{{ .Content }}}}
{{{{ end }}}}assistant:
\"\"\"
PARAMETER num_ctx {CONTEXT}
PARAMETER num_predict 256
"""


def vocabulary():
    """The tokens as (text, type): the control tokens, and the words, which begin with the mark of a word's beginning.

    The tokenizer takes every word that it does not know for one token, so that long prompts cost little.
    """
    special = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL), ("<sep>", CONTROL)]
    return special + [(f"\u2581{first}{vowel}", NORMAL) for first in "bcdfghjklmnpqrstvwxyz" for vowel in "aeiou"]


def tensors(tokens, seed=SEED):
    """The weights as {name: (shape, values)}, row by row; as in the format, a shape begins with the length of a row."""
    source = random.Random(seed)

    def noise(rows, columns, scale):
        # random() alone is promised to give the same numbers in every version of Python.
        return [[(2 * source.random() - 1) * scale for _column in range(columns)] for _row in range(rows)]

    def off_the_rails(rows):
        rows[ALWAYS] = rows[WORD] = [0.0] * len(rows[0])
        return rows

    embedding, output = noise(len(tokens), WIDTH, 1.0), noise(len(tokens), WIDTH, 0.2)
    for number, (_token, kind) in enumerate(tokens):
        embedding[number][ALWAYS], embedding[number][WORD] = 1.0, 1.0 if kind == NORMAL else -1.0
        output[number][ALWAYS], output[number][WORD] = 0.0 if kind == NORMAL else FORBIDDEN, 0.0
    output[EOS][ALWAYS], output[EOS][WORD] = (END + FORBIDDEN) / 2, (END - FORBIDDEN) / 2
    scale = WIDTH**-0.5
    matrices = {
        "token_embd.weight": embedding,
        "blk.0.attn_q.weight": noise(HEAD, WIDTH, scale),
        "blk.0.attn_k.weight": noise(HEAD, WIDTH, scale),
        "blk.0.attn_v.weight": noise(HEAD, WIDTH, scale),
        "blk.0.attn_output.weight": off_the_rails(noise(WIDTH, HEAD, scale)),
        "blk.0.ffn_gate.weight": noise(FEED_FORWARD, WIDTH, scale),
        "blk.0.ffn_up.weight": noise(FEED_FORWARD, WIDTH, scale),
        "blk.0.ffn_down.weight": off_the_rails(noise(WIDTH, FEED_FORWARD, scale)),
        "output.weight": output,
    }
    weights = {name: ((len(rows[0]), len(rows)), sum(rows, [])) for name, rows in matrices.items()}
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        weights[f"{name}.weight"] = ((WIDTH,), [1.0] * WIDTH)
    return weights


def metadata(tokens):
    """What the loader wants to know, as {key: (type, value)}; an array's type is (ARRAY, type of its elements)."""
    return {
        "general.architecture": (STRING, "llama"),
        "general.name": (STRING, "tiny"),
        "llama.context_length": (UINT32, CONTEXT),
        "llama.embedding_length": (UINT32, WIDTH),
        "llama.block_count": (UINT32, 1),
        "llama.feed_forward_length": (UINT32, FEED_FORWARD),
        "llama.attention.head_count": (UINT32, 1),
        "llama.attention.head_count_kv": (UINT32, 1),
        "llama.attention.layer_norm_rms_epsilon": (FLOAT32, 1e-5),
        "llama.attention.key_length": (UINT32, HEAD),
        "llama.attention.value_length": (UINT32, HEAD),
        "llama.rope.dimension_count": (UINT32, HEAD),
        "tokenizer.ggml.model": (STRING, "bert"),
        "tokenizer.ggml.tokens": ((ARRAY, STRING), [text for text, _kind in tokens]),
        "tokenizer.ggml.scores": ((ARRAY, FLOAT32), [0.0] * len(tokens)),
        "tokenizer.ggml.token_type": ((ARRAY, INT32), [kind for _text, kind in tokens]),
        "tokenizer.ggml.bos_token_id": (UINT32, BOS),
        "tokenizer.ggml.eos_token_id": (UINT32, EOS),
        "tokenizer.ggml.unknown_token_id": (UINT32, UNK),
        "tokenizer.ggml.seperator_token_id": (UINT32, SEP),  # the format spells it so
        "tokenizer.ggml.padding_token_id": (UINT32, EOS),
        "tokenizer.ggml.mask_token_id": (UINT32, UNK),
    }


def _text(text):
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(kind, value):
    if kind == STRING:
        return _text(value)
    return struct.pack({UINT32: "<I", INT32: "<i", FLOAT32: "<f"}[kind], value)


def _typed(kind, value):
    if isinstance(kind, tuple):
        kind, element = kind
        return struct.pack("<IIQ", kind, element, len(value)) + b"".join(_value(element, item) for item in value)
    return struct.pack("<I", kind) + _value(kind, value)


def gguf(keys, weights):
    """The bytes of a GGUF file, version 3: header, metadata, list of tensors, tensors aligned to 32 bytes."""
    head = [b"GGUF", struct.pack("<IQQ", 3, len(weights), len(keys))]
    head += [_text(key) + _typed(*value) for key, value in keys.items()]
    data = bytearray()
    for name, (shape, values) in weights.items():
        float32 = 0
        head.append(_text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, float32, len(data)))
        data += array.array("f", values).tobytes()
        data += bytes(-len(data) % 32)
    start = b"".join(head)
    return start + bytes(-len(start) % 32) + bytes(data)


def write(directory):
    """Write the model's files, the same bytes every time.

    :returns: what ``ollama_models`` takes: the weights, and the model ``tiny:latest`` made from them
    """
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tokens = vocabulary()
    weights = gguf(metadata(tokens), tensors(tokens))
    (directory / "tiny.gguf").write_bytes(weights)
    # The digest makes the Modelfile change with the weights, so that the second model is made again too.
    (directory / "Modelfile").write_text(f"{MODELFILE}# weights: {hashlib.sha256(weights).hexdigest()}\n")
    return [
        {"name": f"{WEIGHTS}:latest", "file": str(directory / "tiny.gguf")},
        {"name": "tiny:latest", "file": str(directory / "Modelfile")},
    ]
