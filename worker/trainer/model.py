"""GPT-2 as published (Radford et al. 2019): pre-norm, learned positions, a head tied to the token table.

Tensors have the names that nanoGPT gave them, with Linear where OpenAI's files have transposed Conv1D.
"""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gptjobs.config import ModelConfig, TrainConfig
from worker.trainer.dropout import Dropout
from worker.trainer.products import Linear
from worker.trainer.tables import cross_entropies, cross_entropy, embed

INIT_STD = 0.02
SITES_OF_BLOCK = 3
"""where dropout acts: probabilities, attention's output, the feed-forward's; and once on what enters the first block"""


def flops_per_token(config: ModelConfig, context: int) -> float:
    """Operations of a token's forward and backward passes (appendix B of PaLM, Chowdhery et al. 2022)."""
    weights = config.n_layer * 12 * config.n_embd**2 + config.vocab_size * config.n_embd
    return 6 * weights + 12 * config.n_layer * config.n_embd * context


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.n_head
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor, dropout: Dropout | None, site: int) -> Tensor:
        batch, context, width = x.shape
        q, k, v = (
            each.view(batch, context, self.heads, width // self.heads).transpose(1, 2)
            for each in self.c_attn(x).split(width, dim=2)
        )
        if dropout is None and _has_right_attention(q):
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            y = _attention_written_out(q, k, v, dropout, site)
        y = self.c_proj(y.transpose(1, 2).reshape(batch, context, width))
        return dropout.apply(y, site + 1) if dropout else cast(Tensor, y)


def _has_right_attention(q: Tensor) -> bool:
    """In half precision on Metal, torch's own let queries see later keys (pytorch issue 195910)."""
    return q.device.type != "mps" or q.dtype is torch.float32


def _attention_written_out(q: Tensor, k: Tensor, v: Tensor, dropout: Dropout | None, site: int) -> Tensor:
    """Causal attention [batch, heads, context, size]. It can drop probabilities as said, where torch's own draws from a
    random state."""
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
    probabilities = scores.masked_fill(later, -math.inf).softmax(-1, dtype=torch.float32)
    kept = dropout.apply(probabilities, site) if dropout else probabilities
    return kept.to(v.dtype) @ v


class FeedForward(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.approximate = "tanh" if config.activation == "gelu_tanh" else "none"

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.c_proj(_gelu(self.c_fc(x), self.approximate)))


def _gelu(x: Tensor, approximate: str) -> Tensor:
    """Compiled, the approximation by a sigmoid, the same function (Hendrycks & Gimpel 2016): a tenth of a small
    model's step less than by the tanh that torch's compiler would write."""
    if approximate == "tanh" and torch.compiler.is_compiling():
        return x * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))
    return F.gelu(x, approximate=approximate)


class Block(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor, dropout: Dropout | None, site: int) -> Tensor:
        """Draws at the three sites from `site` on."""
        x = x + self.attn(self.ln_1(x), dropout, site)
        y = self.mlp(self.ln_2(x))
        return x + (dropout.apply(y, site + 2) if dropout else y)


class GPT(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self._computed = self._blocks
        self.recompute = False
        """whether backward passes compute each block again, instead of keeping what is within it"""
        self.is_split = False
        """whether each rank has only a part of the weights, see shards.py: then autograd has to make all gradients"""
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, config.n_embd),
                "wpe": nn.Embedding(config.n_positions, config.n_embd),
                "h": nn.ModuleList([Block(config) for _ in range(config.n_layer)]),
                "ln_f": nn.LayerNorm(config.n_embd, bias=config.bias),
            }
        )
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tied:
            self.lm_head.weight = self.wte.weight
        self._initialise()

    @property
    def wte(self) -> nn.Embedding:
        return cast(nn.Embedding, self.transformer["wte"])

    @property
    def wpe(self) -> nn.Embedding:
        return cast(nn.Embedding, self.transformer["wpe"])

    def _initialise(self) -> None:
        """GPT-2's: normal with 0.02; what is added to the residual stream scaled by 1/sqrt(2 layers)."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name.endswith("c_proj.weight"):
                nn.init.normal_(parameter, std=INIT_STD / math.sqrt(2 * self.config.n_layer))
            elif parameter.dim() >= 2:
                nn.init.normal_(parameter, std=INIT_STD)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [batch, context] to logits [batch, context, vocabulary]."""
        return cast(Tensor, self.lm_head(self._hidden(tokens, None)))

    def loss(self, tokens: Tensor, targets: Tensor, dropout: Dropout | None = None, count: int | None = None) -> Tensor:
        """Cross-entropy in nats; both [batch, context]. The mean, or the sum over `count`: a micro-batch's share of
        the mean over an update. The tables' gradients are partly made here already: what is returned wants a
        backward() before the next update."""
        x, count = self._hidden(tokens, dropout), count or targets.numel()
        if self.is_split:
            return F.cross_entropy(self.lm_head(x).flatten(0, -2).float(), targets.flatten(), reduction="sum") / count
        return cross_entropy(x, self.lm_head.weight, targets, count)

    @torch.no_grad()
    def losses(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The cross-entropy of each target in nats [batch, context], for an evaluation."""
        x = self._hidden(tokens, None)
        if self.is_split:
            logits = self.lm_head(x).flatten(0, -2).float()
            return F.cross_entropy(logits, targets.flatten(), reduction="none").view(targets.shape)
        return cross_entropies(x, self.lm_head.weight, targets)

    def dropout(self, train: TrainConfig, step: int, places: range) -> Dropout | None:
        """What is dropped of the windows at these places of an update; None without dropout."""
        if not train.dropout:
            return None
        sites, device = 1 + SITES_OF_BLOCK * self.config.n_layer, self.wte.weight.device
        return Dropout.drawn(train.dropout, seed=train.seed, step=step, places=places, sites=sites, device=device)

    def _hidden(self, tokens: Tensor, dropout: Dropout | None) -> Tensor:
        """What the head reads [batch, context, width]."""
        x = self.wte(tokens) if self.is_split else embed(self.wte.weight, tokens)
        x = x + self.wpe.weight[: tokens.shape[1]]
        blocks = self._computed if torch.is_grad_enabled() else self._blocks
        x = blocks(dropout.apply(x, 0) if dropout else x, dropout)
        return cast(Tensor, self.transformer["ln_f"](x))

    def compile_blocks(self, on: bool) -> None:
        """Let gradients be computed through compiled blocks, or not. The tables stay outside: torch's compiler adds the
        gradients of an embedding up in the order in which threads come, so that no two are equal to the bit."""
        self._computed = torch.compile(self._blocks, dynamic=False) if on else self._blocks

    def _blocks(self, x: Tensor, dropout: Dropout | None) -> Tensor:
        for number, block in enumerate(cast(nn.ModuleList, self.transformer["h"])):
            site = 1 + SITES_OF_BLOCK * number
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, dropout, site, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, dropout, site)
        return x
