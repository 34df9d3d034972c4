"""Tiny random-weight GGUF models: real servers load and serve them, and their text is noise.

The same arguments give the same bytes. How a chat model is kept well behaved although its weights are noise:

- Dimension 0 of the hidden state is a constant carrier: every token's embedding holds the same large value
  there and no layer writes to it, so column 0 of the output matrix acts as a bias of each token's logit.
  Printable ASCII gets none; control bytes, bytes above 127 and special tokens get a strongly negative one.
  So the text is valid UTF-8, and the end of a turn comes only as often as `eos_bias` lets it.
- Dimension 1 is a memory of one token, made the same way: after `<tool_call>` comes a newline, which is what
  the server's tool grammar waits for before it takes over.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from maxwell.local import MissingExtraError

try:
    import gguf
    import numpy as np
except ImportError as error:
    raise MissingExtraError(
        f"writing tiny models needs {error.name}, which is not installed: pip install 'maxwell-lm[local]'"
    ) from error

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Matrix = NDArray[np.float32]

_WORDS = """
the of and to in is it you that he was for on are as with his they at be this have from or one
had by word but not what all were we when your can said there use an each which she do how their
if will up other about out many then them these so some her would make like him into time has look
two more write go see number no way could people my than first water been call who oil its now find
long down day did get come made may part def return print class import self None True False name
value city weather Paris answer question model token
""".split()  # noqa: SIM905 - one word a line would fill two pages

# ChatML turns and <tool_call> JSON, so that llama.cpp finds out that the model can call tools.
_CHAT_TEMPLATE = """{%- if tools %}
{{- '<|im_start|>system\\n' }}
{%- if messages[0]['role'] == 'system' %}{{- messages[0]['content'] + '\\n\\n' }}{%- endif %}
{{- 'You may call these functions:\\n<tools>' }}
{%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{%- endfor %}
{{- '\\n</tools>\\nReply to call one:\\n<tool_call>\\n{"name": <name>, "arguments": <args>}\\n</tool_call>' }}
{{- '<|im_end|>\\n' }}
{%- elif messages[0]['role'] == 'system' %}
{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message['role'] == 'system' %}
{%- elif message['role'] == 'tool' %}
{{- '<|im_start|>user\\n<tool_response>\\n' + message['content'] + '\\n</tool_response><|im_end|>\\n' }}
{%- elif message['role'] == 'assistant' and message.tool_calls %}
{{- '<|im_start|>assistant' }}
{%- if message['content'] %}{{- '\\n' + message['content'] }}{%- endif %}
{%- for tc in message.tool_calls %}
{%- set f = tc.function if tc.function else tc %}
{{- '\\n<tool_call>\\n{"name": "' + f.name + '", "arguments": ' + (f.arguments | tojson) }}
{{- '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- else %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

_CARRIER = 8.0
_NEVER = -30.0
_HEADS = 4
_KV_HEADS = 2
_NEWLINE = 10  # token ids 0 to 255 are the bytes


class _Shape(Struct, frozen=True, kw_only=True):
    """Sizes every kind of model has."""

    layers: int
    dim: int
    ff: int
    context: int
    name: str
    seed: int


class _Vocabulary(Struct, frozen=True):
    """A chat model's tokens: `plain` of them are text, five special ones follow."""

    tokens: list[str]
    types: list[gguf.TokenType]
    merges: list[str]
    plain: int

    @property
    def end_of_text(self) -> int:
        return self.plain

    @property
    def end_of_turn(self) -> int:
        return self.plain + 2

    @property
    def tool_call(self) -> int:
        return self.plain + 3


class _Noise:
    """A reproducible source of random weights."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.Generator(np.random.PCG64(seed))

    def matrix(self, rows: int, columns: int, scale: float | None = None) -> Matrix:
        """Normal weights; `scale` defaults to what keeps a product of unit variance."""
        drawn = self._rng.standard_normal((rows, columns)) * (columns**-0.5 if scale is None else scale)
        return drawn.astype(np.float32)

    def reserved(self, rows: int, columns: int) -> Matrix:
        """The same, but nothing is written to dimensions 0 and 1."""
        drawn = self.matrix(rows, columns)
        drawn[:2, :] = 0.0
        return drawn


def write_chat(  # noqa: PLR0913 - a model is described by its sizes
    path: Path | str,
    *,
    layers: int = 2,
    dim: int = 64,
    ff: int | None = None,
    context: int = 8192,
    eos_bias: float = _NEVER,
    tool_bias: float = _NEVER,
    name: str = "tiny-random-chat",
    seed: int = 1234,
) -> None:
    """Write a chat model.

    Args:
        path: The file; one that exists is overwritten.
        layers: Transformer blocks; the more, the slower.
        dim: Width of the hidden state, a multiple of 8; the wider, the slower and the larger.
        ff: Width of the feed-forward part; twice `dim` when None.
        context: Context length it claims to be trained for, in tokens.
        eos_bias: Logit bias of the end of a turn: -30 never, 0 as often as any token, 4 after a few tokens.
        tool_bias: Logit bias of `<tool_call>`. The server's grammar lets free text come first, so a random
            model calls a tool only if this is high; 8 does, with `eos_bias` 12 to end the turn after it.
        name: The model's own name for itself.
        seed: Seed of its weights.
    """
    shape = _Shape(layers=layers, dim=dim, ff=ff or 2 * dim, context=context, name=name, seed=seed)
    vocabulary = _chat_vocabulary()
    writer = _writer(path, "llama", shape, vocabulary.tokens, vocabulary.types)
    _describe_chat(writer, shape, vocabulary)
    noise = _Noise(seed)
    writer.add_tensor("token_embd.weight", _chat_embedding(noise, vocabulary, dim))
    for index in range(layers):
        _add_chat_block(writer, noise, f"blk.{index}.", shape)
    # The final norm passes the carrier on, as about _CARRIER / rms(hidden state).
    writer.add_tensor("output_norm.weight", _ones(dim))
    writer.add_tensor("output.weight", _chat_output(noise, vocabulary, dim, eos_bias, tool_bias))
    _finish(writer)


def write_embedding(  # noqa: PLR0913 - a model is described by its sizes
    path: Path | str,
    *,
    layers: int = 2,
    dim: int = 64,
    ff: int | None = None,
    context: int = 128,
    name: str = "tiny-random-embedding",
    seed: int = 4321,
) -> None:
    """Write an embedding model: BERT, mean pooled, vectors of `dim` numbers. Arguments: see `write_chat`."""
    shape = _Shape(layers=layers, dim=dim, ff=ff or 2 * dim, context=context, name=name, seed=seed)
    writer = _write_bert(path, shape, _Noise(seed), gguf.PoolingType.MEAN)
    _finish(writer)


def write_reranker(  # noqa: PLR0913 - a model is described by its sizes
    path: Path | str,
    *,
    layers: int = 2,
    dim: int = 64,
    ff: int | None = None,
    context: int = 128,
    name: str = "tiny-random-reranker",
    seed: int = 4321,
) -> None:
    """Write a reranker: BERT with a classifier of one output. Arguments: see `write_chat`."""
    shape = _Shape(layers=layers, dim=dim, ff=ff or 2 * dim, context=context, name=name, seed=seed)
    noise = _Noise(seed)
    writer = _write_bert(path, shape, noise, gguf.PoolingType.RANK)
    writer.add_tensor("cls.weight", noise.matrix(dim, dim))
    writer.add_tensor("cls.bias", _zeros(dim))
    writer.add_tensor("cls.output.weight", noise.matrix(1, dim))
    writer.add_tensor("cls.output.bias", _zeros(1))
    _finish(writer)


def demo_models(directory: Path) -> dict[str, Path]:
    """Write the models that the demo and the tests use, under a second in all.

    Returns:
        The files by what they are: "fast", "medium" and "slow" chat models that never end by themselves (a
        short reply comes at roughly 8,000, 1,200 and 250 tokens per second from one idle 2.6 GHz core),
        "stops" (ends its turn after a few tokens), "tools" (calls a tool it is offered), "embedding"
        (64 dimensions, 128 tokens).
    """
    directory.mkdir(parents=True, exist_ok=True)
    names = ("fast", "medium", "slow", "stops", "tools", "embedding")
    files = {name: directory / f"tiny-{name}.gguf" for name in names}
    write_chat(files["fast"], name="tiny-fast")
    write_chat(files["medium"], name="tiny-medium", layers=24, dim=128)
    write_chat(files["slow"], name="tiny-slow", layers=96, dim=128, ff=128)
    write_chat(files["stops"], name="tiny-stops", eos_bias=5.5, seed=8)  # ends at temperature 0 too
    write_chat(files["tools"], name="tiny-tools", eos_bias=12.0, tool_bias=8.0)
    write_embedding(files["embedding"], name="tiny-embedding")
    return files


def _writer(
    path: Path | str, architecture: str, shape: _Shape, tokens: list[str], types: list[gguf.TokenType]
) -> Any:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(shape.name)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.dim)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ff)
    writer.add_head_count(_HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    return writer


def _finish(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file(progress=False)
    writer.close()


def _byte_alphabet() -> dict[int, str]:
    """Byte -> printable character, reversibly, as GPT-2's tokenizer writes bytes."""
    itself = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = (byte for byte in range(256) if byte not in itself)
    moved = {byte: chr(256 + index) for index, byte in enumerate(others)}
    return {byte: moved.get(byte, chr(byte)) for byte in range(256)}


def _chat_vocabulary() -> _Vocabulary:
    """256 bytes, then every prefix of every word with and without a space before it, merged left to right."""
    alphabet = _byte_alphabet()
    tokens = list(alphabet.values())
    merges: dict[str, str] = {}
    for text in (form for word in _WORDS for form in (word, " " + word)):
        letters = [alphabet[byte] for byte in text.encode()]
        for index in range(1, len(letters)):
            left = "".join(letters[:index])
            merges.setdefault(left + letters[index], f"{left} {letters[index]}")
    tokens += merges
    plain = len(tokens)
    tokens += ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>"]
    kinds = gguf.TokenType
    types = [kinds.NORMAL] * plain + [kinds.CONTROL] * 3 + [kinds.USER_DEFINED] * 2
    return _Vocabulary(tokens, types, list(merges.values()), plain)


def _describe_chat(writer: Any, shape: _Shape, vocabulary: _Vocabulary) -> None:
    writer.add_head_count_kv(_KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.dim // _HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_merges(vocabulary.merges)
    writer.add_bos_token_id(vocabulary.end_of_text)
    writer.add_eos_token_id(vocabulary.end_of_turn)
    writer.add_eot_token_id(vocabulary.end_of_turn)
    writer.add_pad_token_id(vocabulary.end_of_text)
    writer.add_add_bos_token(False)
    writer.add_chat_template(_CHAT_TEMPLATE)


def _chat_embedding(noise: _Noise, vocabulary: _Vocabulary, dim: int) -> Matrix:
    embedding = noise.matrix(len(vocabulary.tokens), dim, 1.0)
    embedding[:, 0] = _CARRIER
    embedding[:, 1] = 0.0
    embedding[vocabulary.tool_call, 1] = _CARRIER
    return embedding


def _add_chat_block(writer: Any, noise: _Noise, prefix: str, shape: _Shape) -> None:
    dim, head = shape.dim, shape.dim // _HEADS
    writer.add_tensor(prefix + "attn_norm.weight", _ones(dim))
    writer.add_tensor(prefix + "ffn_norm.weight", _ones(dim))
    writer.add_tensor(prefix + "attn_q.weight", noise.matrix(_HEADS * head, dim))
    writer.add_tensor(prefix + "attn_k.weight", noise.matrix(_KV_HEADS * head, dim))
    writer.add_tensor(prefix + "attn_v.weight", noise.matrix(_KV_HEADS * head, dim))
    writer.add_tensor(prefix + "attn_output.weight", noise.reserved(dim, _HEADS * head))
    writer.add_tensor(prefix + "ffn_gate.weight", noise.matrix(shape.ff, dim))
    writer.add_tensor(prefix + "ffn_up.weight", noise.matrix(shape.ff, dim))
    writer.add_tensor(prefix + "ffn_down.weight", noise.reserved(dim, shape.ff))


def _chat_output(
    noise: _Noise, vocabulary: _Vocabulary, dim: int, eos_bias: float, tool_bias: float
) -> Matrix:
    output = noise.matrix(len(vocabulary.tokens), dim, 0.25)
    bias = np.full(len(vocabulary.tokens), _NEVER, np.float32)
    printable = {character for byte, character in _byte_alphabet().items() if 32 <= byte < 127}
    for index, token in enumerate(vocabulary.tokens[: vocabulary.plain]):
        if printable.issuperset(token):
            bias[index] = 0.0
    bias[vocabulary.end_of_turn] = eos_bias
    bias[vocabulary.tool_call : vocabulary.tool_call + 2] = tool_bias  # opening and closing
    output[:, 0] = bias / 4.0
    output[:, 1] = 0.0
    output[_NEWLINE, 1] = 20.0
    return output


def _wordpieces() -> tuple[list[str], list[gguf.TokenType]]:
    """BERT's five special tokens, then characters at and after a word's start, then whole words."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    characters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    pieces = list(dict.fromkeys([*_starting(characters), *characters, *_starting(_WORDS)]))
    kinds = gguf.TokenType
    types = [kinds.UNUSED, kinds.UNKNOWN, *[kinds.CONTROL] * 3, *[kinds.NORMAL] * len(pieces)]
    return special + pieces, types


def _starting(pieces: list[str]) -> list[str]:
    return ["\u2581" + piece.lower() for piece in pieces]


def _write_bert(path: Path | str, shape: _Shape, noise: _Noise, pooling: gguf.PoolingType) -> Any:
    tokens, types = _wordpieces()
    writer = _writer(path, "bert", shape, tokens, types)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(pooling)
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_type_count(2)
    for role, token in (("pad", 0), ("unk", 1), ("bos", 2), ("eos", 3), ("sep", 3), ("mask", 4)):
        getattr(writer, f"add_{role}_token_id")(token)
    writer.add_tensor("token_embd.weight", noise.matrix(len(tokens), shape.dim, 1.0))
    writer.add_tensor("token_types.weight", noise.matrix(2, shape.dim, 0.1))
    writer.add_tensor("position_embd.weight", noise.matrix(shape.context, shape.dim, 0.1))
    _add_norm(writer, "token_embd_norm", shape.dim)
    for index in range(shape.layers):
        _add_bert_block(writer, noise, f"blk.{index}.", shape)
    return writer


def _add_bert_block(writer: Any, noise: _Noise, prefix: str, shape: _Shape) -> None:
    for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
        _add_linear(writer, noise, prefix + part, shape.dim, shape.dim)
    _add_norm(writer, prefix + "attn_output_norm", shape.dim)
    _add_linear(writer, noise, prefix + "ffn_up", shape.ff, shape.dim)
    _add_linear(writer, noise, prefix + "ffn_down", shape.dim, shape.ff)
    _add_norm(writer, prefix + "layer_output_norm", shape.dim)


def _add_linear(writer: Any, noise: _Noise, name: str, rows: int, columns: int) -> None:
    writer.add_tensor(name + ".weight", noise.matrix(rows, columns))
    writer.add_tensor(name + ".bias", _zeros(rows))


def _add_norm(writer: Any, name: str, dim: int) -> None:
    writer.add_tensor(name + ".weight", _ones(dim))
    writer.add_tensor(name + ".bias", _zeros(dim))


def _ones(size: int) -> NDArray[np.float32]:
    return np.ones(size, np.float32)


def _zeros(size: int) -> NDArray[np.float32]:
    return np.zeros(size, np.float32)
