"""The real model (fetched on first use): its tokenizer's rules, and where Paris is."""

import pytest

from dynacompress.profile.llama import KvCache, Llama
from smollm2 import Tokenizer, load_model


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer()


@pytest.mark.parametrize(
    "text", ["The capital of France is", "héllo 12345\n\n  \tdef f(x):  # 日本", "  "]
)
def test_round_trip_without_bos(tokenizer: Tokenizer, text: str) -> None:
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert 0 not in tokens and 1 not in tokens  # neither <|endoftext|> nor <|im_start|> is added


def test_digits_are_tokens_of_their_own(tokenizer: Tokenizer) -> None:
    assert [tokenizer.decode([t]) for t in tokenizer.encode("x4821")] == ["x", "4", "8", "2", "1"]


def test_control_tokens_are_whole(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("<|im_start|>user") == [1, *tokenizer.encode("user")]


def test_the_capital_of_france(tokenizer: Tokenizer) -> None:
    config, weights = load_model()
    model, cache = Llama(config, weights), KvCache.empty(config, 8)
    logs = model.log_probabilities(tokenizer.encode("The capital of France is"), cache)
    assert tokenizer.decode([int(logs[-1].argmax())]) == " Paris"
