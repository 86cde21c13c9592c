"""Text from a model: the same with keys and values kept as computed anew, drawn as it was asked for."""

import itertools

import pytest
import torch

from gptjobs.config import ModelConfig
from worker.trainer.generate import Cache, Sampling, generate
from worker.trainer.model import GPT

GREEDY = Sampling(temperature=0)


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(1)
    made = GPT(ModelConfig(n_layer=2, n_head=2, n_embd=16, n_positions=12, vocab_size=40)).eval()
    for each in made.parameters():
        torch.nn.init.normal_(each, std=0.3)
    return made


def made(model: GPT, prompt: list[int], count: int, sampling: Sampling = GREEDY, vocabulary: int = 40) -> list[int]:
    return list(itertools.islice(generate(model, prompt, sampling, vocabulary), count))


@torch.no_grad()
def test_kept_keys_and_values_give_the_logits_of_the_whole_text(model: GPT) -> None:
    tokens = torch.randint(40, (12,))
    seen = Cache(model)
    for first, last in ((0, 5), (5, 6), (6, 7), (7, 8)):
        logits = seen.extend(tokens[first:last])
        torch.testing.assert_close(logits, model(tokens[None, :last])[0, -1], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_likeliest_token_is_that_of_the_whole_text_also_past_the_position_table(model: GPT) -> None:
    text = [3, 1, 4]
    text += made(model, text, 30)
    begins = {length: 0 for length in range(3, 13)} | {13: 7, 18: 7, 19: 13}
    for length, first in begins.items():  # at 12 tokens the last 6, with the next one, begin a new window
        if length != 12:
            assert text[length] == int(model(torch.tensor([text[first:length]]))[0, -1].argmax()), length


def test_the_same_seed_draws_the_same_and_another_one_otherwise(model: GPT) -> None:
    first, again = (made(model, [1], 20, Sampling(seed=7)) for _ in range(2))
    assert first == again != made(model, [1], 20, Sampling(seed=8))


def test_no_token_beyond_the_vocabulary_or_the_likeliest_is_drawn(model: GPT) -> None:
    assert max(made(model, [1], 60, Sampling(temperature=5.0), vocabulary=10)) < 10
    assert made(model, [1], 20, Sampling(temperature=5.0, top_k=1)) == made(model, [1], 20)
    assert made(model, [1], 20, Sampling(temperature=5.0, top_p=1e-6)) == made(model, [1], 20)


def test_tokens_are_drawn_as_often_as_their_probabilities_say(model: GPT) -> None:
    with torch.no_grad():
        expected = model(torch.tensor([[1, 2]]))[0, -1].softmax(0)
    drawn = torch.tensor([made(model, [1, 2], 1, Sampling(temperature=1.0, seed=seed))[0] for seed in range(2000)])
    counts = torch.bincount(drawn, minlength=40) / 2000
    assert (counts - expected).abs().max() < 0.05


def test_a_prompt_longer_than_the_position_table_counts_by_its_end(model: GPT) -> None:
    long = list(range(1, 31))
    assert made(model, long, 1) == made(model, long[-12:], 1)
