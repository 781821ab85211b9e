"""A random tiny Llama and a byte-level BPE trained on the spot, laid out like the models of a run."""

import os

os.environ.setdefault("TQDM_DISABLE", "1")  # lm-eval's progress bars read this when tqdm is imported

import pytest

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = [
    "Return the sum of all elements of the list. Raises ValueError when the list is empty.",
    "What does the function `json.dumps` do?\nIt serialises an object to a JSON formatted string.",
    "Tom has 12 apples and buys 30 more.\nHe now has 12 + 30 = 42 apples.\n#### 42",
    "Question: which of these describes the class? Answer: a thread-safe queue.",
    'naïve café 東京 emoji 🎉 — dashes, "quotes" and   runs of    spaces\n\n\tand tabs',
]


def make_tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(TEXT * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|endoftext|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_model(tokenizer, seed=0, context=96, **overrides):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    torch.set_num_threads(1)
    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": context,
        "initializer_range": 0.3,  # far from uniform, so that wrong positions change the numbers
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return LlamaForCausalLM(LlamaConfig(**{**settings, **overrides})).eval()


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="session")
def tiny_llama(tokenizer):
    return make_model(tokenizer)


@pytest.fixture(scope="session")
def evaluated(tiny_llama, tokenizer):
    from pipeline_lib.evaluation.language_model import EvaluatedModel

    return EvaluatedModel(tiny_llama, tokenizer, batch_tokens=256)


@pytest.fixture(scope="session")
def new_llama():
    """The function that makes a random tiny Llama: (tokenizer, seed, context, configuration overrides)."""
    return make_model
