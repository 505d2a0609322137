#!/usr/bin/env python3
"""Token-Shuffle (arXiv 2504.17789) in PyTorch, from tsar's README and tsar.h alone: an implementation that stands on its own, and the example of how one is verified.

    shuffle.py trace    MODEL INPUTS OUT [float32|bfloat16|float64]     the whole sequence in one pass: tsar verify -m MODEL OUT
    shuffle.py generate MODEL INPUTS OUT [float32|bfloat16|float64]     greedy codes with their logits, token after token: the same

MODEL is a tsar model file of arch token-shuffle, INPUTS a safetensors file with input.text (and, to trace, input.codes)."""
import sys

import torch
from torch import nn
from torch.nn import functional as F
from trace import read_file, rows, trace, write_trace


class RMSNorm(nn.Module):
    def __init__(self, weight, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(weight), eps

    def forward(self, x):  # in float32 at least, back to the type of x, then the weight
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype) * self.weight


class Linear(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        return F.linear(x, self.weight)


class Block(nn.Module):
    """h = x + wo . attention(rope(q), rope(k), v); y = h + w2 . (silu(w1 . n) * (w3 . n))"""

    def __init__(self, w, config, store, name):
        super().__init__()
        self.heads, self.kv, self.eps, self.store, self.name = int(config["n_head"]), int(config["n_kv_head"]), float(config["norm_eps"]), store, name
        self.attention_norm, self.ffn_norm = RMSNorm(w("attention_norm"), self.eps), RMSNorm(w("ffn_norm"), self.eps)
        self.wqkv, self.wo = Linear(w("attention.wqkv")), Linear(w("attention.wo"))
        self.w1, self.w2, self.w3 = (Linear(w("feed_forward.w" + k)) for k in "123")

    def forward(self, x, cos, sin):
        T, hd = len(x), self.wo.weight.shape[1] // self.heads
        qkv = self.wqkv(self.attention_norm(x)).view(T, self.heads + 2 * self.kv, hd)
        q, k, v = qkv[:, : self.heads], qkv[:, self.heads : -self.kv], qkv[:, -self.kv :]

        def rope(t):  # neighbouring pairs (a, b) turn by the position's angle
            a, b = t[..., 0::2], t[..., 1::2]
            return torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)

        q, k = rope(q), rope(k)
        for part, tensor in (("q", q), ("k", k), ("v", v)):
            rows(self.store, f"{self.name}.{part}", tensor)
        k, v = (t.repeat_interleave(self.heads // self.kv, 1) for t in (k, v))
        score = torch.einsum("ihd,jhd->hij", q, k) * hd**-0.5
        score = score.masked_fill(torch.ones(T, T, dtype=torch.bool).triu(1), float("-inf"))
        h = x + self.wo(torch.einsum("hij,jhd->ihd", score.softmax(-1), v).reshape(T, -1))
        n = self.ffn_norm(h)
        return h + self.w2(F.silu(self.w1(n)) * self.w3(n))


class ShuffleBlock(nn.Module):
    """z + fc2 . gelu(fc1 . rmsnorm(z)), the tanh form"""

    def __init__(self, w, eps):
        super().__init__()
        self.norm, self.fc1, self.fc2 = RMSNorm(w("norm"), eps), Linear(w("fc1")), Linear(w("fc2"))

    def forward(self, z):
        return z + self.fc2(F.gelu(self.fc1(self.norm(z)), approximate="tanh"))


class TokenShuffle(nn.Module):
    def __init__(self, path, dtype):
        super().__init__()
        tensors, c = read_file(path)
        self.store, eps, self.dtype = {}, float(c["norm_eps"]), dtype
        w = lambda name: tensors[f"gpt.{name}.weight"].to(dtype)
        self.s, self.text_vocab, self.grid = int(c["shuffle"]), int(c["text_vocab"]), (int(c["grid_h"]), int(c["grid_w"]))
        self.hd, self.base = int(c["dim"]) // int(c["n_head"]), float(c.get("rope_base", 10000))
        self.embedding = nn.Parameter(w("tok_embeddings"))
        self.layers = nn.ModuleList(Block(lambda n, i=i: w(f"layers.{i}.{n}"), c, self.store, f"gpt.block.{i}") for i in range(int(c["n_layer"])))
        self.norm, self.output = RMSNorm(w("norm"), eps), Linear(w("output")[-int(c["codebook_size"]) :])
        blocks = range(int(c["shuffle_blocks"]) if self.s > 1 else 0)
        self.shuffle, self.unshuffle = (nn.ModuleList(ShuffleBlock(lambda n, b=b: w(f"{side}.blocks.{b}.{n}"), eps) for b in blocks) for side in ("shuffle", "unshuffle"))
        self.compress, self.expand = (Linear(w(n)) if self.s > 1 else nn.Identity() for n in ("shuffle.compress", "unshuffle.expand"))

    def windows(self, x):  # [gh, gw, ...] -> [n, s*s, ...], windows in raster order, row-major inside
        gh, gw, s = *x.shape[:2], self.s
        return x.view(gh // s, s, gw // s, s, *x.shape[2:]).transpose(1, 2).reshape(-1, s * s, *x.shape[2:])

    def forward(self, text, codes):
        """logits [n', s*s, V] at <soi> and behind the fused tokens of the rows of windows in codes [rows, gw]"""
        e = self.compress(self.embedding[self.text_vocab + codes])
        z = self.windows(e).flatten(1)
        if self.s > 1:
            rows(self.store, "gpt.shuffle.compress", e.flatten(0, 1))
            rows(self.store, "gpt.shuffle.merge", z)
        for block in self.shuffle:
            z = block(z)
        x = torch.cat((self.embedding[text], z))
        rows(self.store, "gpt.embed", x)
        wide = torch.promote_types(self.dtype, torch.float32)
        angle = torch.arange(len(x), dtype=wide)[:, None, None] * self.base ** (-torch.arange(0, self.hd, 2, dtype=wide) / self.hd)
        cos, sin = angle.cos().to(self.dtype), angle.sin().to(self.dtype)
        for block in self.layers:
            x = block(x, cos, sin)
        h = x[len(text) - 1 :][: self.grid[0] * self.grid[1] // self.s**2]
        for block in self.unshuffle:
            h = block(h)
        return self.output(self.norm(self.expand(h.view(len(h), self.s**2, -1))))


TABLE = [
    ("layers.{i}", "out", "gpt.block.{i}"),
    ("layers.{i}.wo", "in", "gpt.block.{i}.attn"),
    ("layers.{i}.ffn_norm", "in", "gpt.block.{i}.h"),
    ("layers.{i}.w2", "in", "gpt.block.{i}.ffn"),
    ("shuffle.{i}", "out", "gpt.shuffle.block.{i}"),
    ("unshuffle.{i}", "out", "gpt.unshuffle.block.{i}"),
    ("expand", lambda given, out: out, "gpt.unshuffle.expand"),
    ("norm", lambda given, out: out, "gpt.norm"),
    ("output", lambda given, out: out, "gpt.logits"),
]


def generate(model, text):
    """Greedy codes in raster order [gh, gw] and each decision's logits [n, s*s, V]; the whole sequence anew for each token."""
    gh, gw, s = *model.grid, model.s
    codes, logits = torch.zeros(gh, gw, dtype=torch.int64), []
    for t in range(gh * gw // s**2):
        y, x = t // (gw // s) * s, t % (gw // s) * s
        logits.append(model(text, codes)[t])
        model.store.clear()
        codes[y : y + s, x : x + s] = logits[-1].argmax(-1).view(s, s)
    return codes, torch.stack(logits)


def main():
    command, path, inputs, out = sys.argv[1:5]
    model = TokenShuffle(path, getattr(torch, sys.argv[5] if len(sys.argv) > 5 else "float32"))
    given, metadata = read_file(inputs)
    text = given["input.text"]
    if command == "trace":
        table = TABLE if model.s > 1 else [row for row in TABLE if row[0] != "expand"]
        trace(model, lambda: model(text, given["input.codes"]), out, table, {k: given[k] for k in ("input.text", "input.codes")}, metadata, model.store)
    else:
        with torch.no_grad():
            codes, logits = generate(model, text)
        settings = {"generate.greedy": 1, "generate.cfg": 1, "generate.decode": "raster"}
        write_trace(out, {"input.text": text, "codes": codes, "logits": logits}, settings)


if __name__ == "__main__":
    main()
