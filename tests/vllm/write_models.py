"""Writes tiny random-weight models in Hugging Face's format: `python write_models.py DIRECTORY`.

Runs under the Python that has vLLM, torch and transformers, and needs nothing of Maxwell. The text of the
chat model is noise, but valid: one dimension of its hidden state is kept constant, so that a column of the
output matrix is a bias of each token's logit. Printable ASCII has none; all else is as good as impossible,
the end of a turn too, unless a grammar leaves nothing else.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch  # type: ignore[import-not-found, unused-ignore]
from tokenizers import (  # type: ignore[import-not-found, unused-ignore]
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (  # type: ignore[import-not-found, unused-ignore]
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

WORDS = """
the a cat dog bird house river city road day night sun moon rain long short old new red blue green one two
three go come see say ask answer find make take give keep walk run sleep true false null name value count list
""".split()  # noqa: SIM905 - one word a line would fill two pages

CHATML = (
    "{%- if tools %}<|im_start|>system\nYou may call:"
    "{%- for tool in tools %}\n{{ tool | tojson }}{%- endfor %}\n"
    'Call one as <tool_call>{{ \'{\' }}"name": ..., "arguments": ...}</tool_call><|im_end|>\n{% endif %}'
    "{%- for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{%- if message['content'] %}{{ message['content'] }}{%- endif %}"
    "{%- for call in message.tool_calls or [] %}"
    "\n<tool_call>{{ call.function | tojson }}</tool_call>{%- endfor %}"
    "<|im_end|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONSTANT = 8.0
IMPOSSIBLE = -30.0


def write_chat(directory: Path) -> None:
    """A Llama of 2 layers for 8,192 tokens, with a chat template that knows tools."""
    bytes_of = Tokenizer(models.BPE())
    bytes_of.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_of.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=448,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    bytes_of.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytes_of,
        bos_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHATML,
    )
    size = (bytes_of.get_vocab_size() + 63) // 64 * 64
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        _randomise(model, _biases(bytes_of, size))
    _save(directory, model, tokenizer)


def _biases(tokens: Any, size: int) -> Any:
    """Each token's logit bias."""
    biases = torch.full((size,), IMPOSSIBLE)
    for token in range(tokens.get_vocab_size()):
        text = tokens.decode([token])
        if text and text.isascii() and text.isprintable():
            biases[token] = 0.0
    return biases


def _randomise(model: Any, biases: Any) -> None:
    model.model.embed_tokens.weight.normal_(0, 1)
    model.model.embed_tokens.weight[:, 0] = CONSTANT
    for layer in model.model.layers:
        for linear in (*layer.self_attn.children(), *layer.mlp.children()):
            if isinstance(linear, torch.nn.Linear):
                linear.weight.normal_(0, linear.in_features**-0.5)
        layer.self_attn.o_proj.weight[0] = 0  # nothing is added to the constant
        layer.mlp.down_proj.weight[0] = 0
    model.lm_head.weight.normal_(0, 0.2)
    # The last norm passes the constant on as about 3.
    model.lm_head.weight[:, 0] = biases / 3


def write_embedding(directory: Path) -> None:
    """A BERT of 2 layers: vectors of 64, inputs of up to 128 tokens."""
    characters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*special, *characters, *("##" + character for character in characters), *WORDS]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    words = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    words.normalizer = normalizers.BertNormalizer(lowercase=True)
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]", "pad_token": "[PAD]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=128, **names)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=128,
        initializer_range=0.3,
    )
    _save(directory, BertModel(config), tokenizer)


def _save(directory: Path, model: Any, tokenizer: Any) -> None:
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


if __name__ == "__main__":
    torch.manual_seed(20)
    write_chat(Path(sys.argv[1]) / "chat")
    write_embedding(Path(sys.argv[1]) / "embedding")
