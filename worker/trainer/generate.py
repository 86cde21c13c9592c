"""Text from a model: one token after another, with the keys and values of those before it kept."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worker.trainer.model import GPT, Block


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn: by probabilities of logits over `temperature` (0: the likeliest), among the `top_k`
    likeliest (0: all) and the fewest that together have the probability `top_p` (Holtzman et al. 2020)."""

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 1337


@torch.no_grad()
def generate(model: GPT, prompt: Sequence[int], sampling: Sampling, vocabulary: int) -> Iterator[int]:
    """The tokens that follow `prompt`, which has one at least, without an end; below `vocabulary`, as a table may have
    spare rows. Where the position table ends, the later half of what is there stands for all of it."""
    positions = model.config.n_positions
    place = model.wte.weight.device
    draw = torch.Generator().manual_seed(sampling.seed)
    window = list(prompt)[-positions:]
    seen = Cache(model)
    fresh = window
    while True:
        logits = seen.extend(torch.tensor(fresh, device=place))[:vocabulary].float().cpu()
        token = _drawn(logits, sampling, draw)
        yield token
        window.append(token)
        fresh = [token]
        if seen.length == positions:
            window = window[-max(1, positions // 2) :]
            seen, fresh = Cache(model), window


class Cache:
    """Keys and values of the tokens so far, [heads, positions, size] a layer."""

    def __init__(self, model: GPT) -> None:
        config, table = model.config, model.wte.weight
        shape = (config.n_layer, 2, config.n_head, config.n_positions, config.n_embd // config.n_head)
        self._kept = torch.empty(shape, device=table.device, dtype=table.dtype)
        self._model = model
        self.length = 0

    def extend(self, tokens: Tensor) -> Tensor:
        """Take these tokens as the next ones; the logits [vocabulary] of what follows the last."""
        first, self.length = self.length, self.length + len(tokens)
        x = self._model.wte(tokens) + self._model.wpe.weight[first : self.length]
        blocks = self._model.transformer["h"]
        assert isinstance(blocks, nn.ModuleList)
        for block, kept in zip(blocks, self._kept, strict=True):
            assert isinstance(block, Block)
            x = x + self._attend(block, block.ln_1(x), kept, first)
            x = x + block.mlp(block.ln_2(x))
        logits: Tensor = self._model.lm_head(self._model.transformer["ln_f"](x[-1]))
        return logits

    def _attend(self, block: Block, x: Tensor, kept: Tensor, first: int) -> Tensor:
        count, width = x.shape
        q, k, v = (
            each.view(count, block.attn.heads, -1).transpose(0, 1) for each in block.attn.c_attn(x).split(width, dim=1)
        )
        kept[0, :, first : self.length], kept[1, :, first : self.length] = k, v
        # several tokens come at once only at the beginning
        keys, values = kept[:, :, : self.length]
        y = F.scaled_dot_product_attention(q, keys, values, is_causal=first == 0)
        attended: Tensor = block.attn.c_proj(y.transpose(0, 1).reshape(count, width))
        return attended


def _drawn(logits: Tensor, sampling: Sampling, draw: torch.Generator) -> int:
    if sampling.temperature == 0:
        return int(logits.argmax())
    ranked, order = (logits / sampling.temperature).sort(descending=True)
    if sampling.top_k:
        ranked = ranked[: sampling.top_k]
    probabilities = ranked.softmax(0)
    before = probabilities.cumsum(0) - probabilities
    probabilities = probabilities * (before < sampling.top_p)
    return int(order[torch.multinomial(probabilities, 1, generator=draw)])
