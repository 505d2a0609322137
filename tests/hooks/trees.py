#!/usr/bin/env python3
"""Module trees with the names that LlamaGen's GPT and Hugging Face's Llama give theirs, so that the tables of trace.py are run on such names:

    trees.py llamagen|llama CHECKPOINT INPUTS TRACE [float32|bfloat16]     a small random model as torch.save writes it, its inputs, its hooked trace"""
import sys

import torch
from second import write_trace
from torch import nn
from torch.nn import functional as F
from trace import HF_LLAMA, LLAMAGEN_GPT, predictions, trace

D, HEADS, FFN, LAYERS, CODES, GRID, CLASSES = 64, 4, 128, 2, 48, 4, 5
IDS, FIRST, EOL, PREFIX = 80, 20, 9, [3, 7, 5, 4]
linear = lambda n, m: nn.Linear(n, m, bias=False)


class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(D) + 0.5)

    def forward(self, x):
        wide = x.float()
        return (wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt()).to(x.dtype) * self.weight


def attend(q, k, v):
    """causal attention of [1, T, D] each"""
    q, k, v = (t.view(1, -1, HEADS, D // HEADS).transpose(1, 2) for t in (q, k, v))
    above = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).triu(1)
    score = (q @ k.transpose(2, 3) * (D // HEADS) ** -0.5).masked_fill(above, float("-inf"))
    return (score.softmax(-1) @ v).transpose(1, 2).flatten(2)


def turn(x, angle, halves):
    """RoPE of [1, T, D]: pairs of neighbours, or of the two halves of a head"""
    x = x.view(1, -1, HEADS, D // HEADS).float()
    a, b = x.chunk(2, -1) if halves else (x[..., 0::2], x[..., 1::2])
    cos, sin = (t.nan_to_num(0)[:, None] for t in (angle.cos(), angle.sin()))
    parts = (a * cos - b * sin, b * cos + a * sin)
    return (torch.cat(parts, -1) if halves else torch.stack(parts, -1).flatten(-2)).flatten(2)


class Layer(nn.Module):
    """names: attention, o, ffn's gate, up, down, both norms"""

    def __init__(self, names):
        super().__init__()
        attention, out, ffn, gate, up, down, first, second = names
        self.get = lambda path: self.get_submodule(path)
        self.paths, self.halves = names, attention == "self_attn"
        qkv = {k: linear(D, D) for k in ("q_proj", "k_proj", "v_proj")} if self.halves else {"wqkv": linear(D, 3 * D)}
        self.add_module(attention, nn.ModuleDict({**qkv, out: linear(D, D)}))
        self.add_module(ffn, nn.ModuleDict({gate: linear(D, FFN), up: linear(D, FFN), down: linear(FFN, D)}))
        self.add_module(first, Norm()), self.add_module(second, Norm())

    def forward(self, x, angle):
        attention, out, ffn, gate, up, down, first, second = self.paths
        a, f, n = self.get(attention), self.get(ffn), self.get(first)(x)
        q, k, v = (a[s](n) for s in ("q_proj", "k_proj", "v_proj")) if self.halves else a["wqkv"](n).chunk(3, -1)
        q, k = (turn(t, angle, self.halves).to(x.dtype) for t in (q, k))
        h = x + a[out](attend(q, k, v))
        n = self.get(second)(h)
        y = h + f[down](F.silu(f[gate](n)) * f[up](n))
        return (y,) if self.halves else y  # Hugging Face's layers give tuples


LLAMAGEN = ("attention", "wo", "feed_forward", "w1", "w3", "w2", "attention_norm", "ffn_norm")
LLAMA = ("self_attn", "o_proj", "mlp", "gate_proj", "up_proj", "down_proj", "input_layernorm", "post_attention_layernorm")


class LlamaGen(nn.Module):
    def __init__(self):
        super().__init__()
        self.cls_embedding = nn.ModuleDict({"embedding_table": nn.Embedding(CLASSES + 1, D)})
        self.tok_embeddings, self.tok_dropout = nn.Embedding(CODES, D), nn.Dropout(0.1)
        self.layers, self.norm, self.output = nn.ModuleList(Layer(LLAMAGEN) for _ in range(LAYERS)), Norm(), linear(D, CODES)

    def forward(self, label, codes):
        x = self.tok_dropout(torch.cat((self.cls_embedding["embedding_table"](label)[:, None], self.tok_embeddings(codes.view(1, -1))), 1))
        y, inverse = torch.arange(GRID * GRID) // GRID, 10000.0 ** (-torch.arange(0, D // HEADS // 2, 2) / (D // HEADS // 2))
        angle = torch.cat((y[:, None] * inverse, (torch.arange(GRID * GRID) % GRID)[:, None] * inverse), 1)
        nothing = torch.full((1, angle.shape[1]), float("nan"))  # LlamaGen's condition: cos = sin = 0, so that q = k = 0
        for layer in self.layers:
            x = layer(x, torch.cat((nothing, angle)))
        return self.output(self.norm(x)).float()


class Llama(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = nn.ModuleDict({"embed_tokens": nn.Embedding(IDS, D), "layers": nn.ModuleList(Layer(LLAMA) for _ in range(LAYERS)), "norm": Norm()})
        self.lm_head = linear(D, IDS)

    def forward(self, ids):
        x = self.model["embed_tokens"](ids)[None]
        angle = torch.arange(len(ids))[:, None] * 10000.0 ** (-torch.arange(0, D // HEADS, 2) / (D // HEADS))
        for layer in self.model["layers"]:
            x = layer(x, angle)[0]
        return self.lm_head(self.model["norm"](x)).float()


def main():
    kind, checkpoint, inputs, path, dtype = sys.argv[1:5] + [(sys.argv[5:] + ["float32"])[0]]
    torch.manual_seed(1)
    model, codes = (LlamaGen() if kind == "llamagen" else Llama()).eval(), torch.randint(CODES, (GRID, GRID))
    torch.save(model.state_dict(), checkpoint)
    model.to(getattr(torch, dtype))
    ends = torch.full((GRID, 1), EOL)
    if kind == "llamagen":
        given, table, run = {"input.class": torch.tensor([2])}, LLAMAGEN_GPT, lambda: model(given["input.class"], codes)
    else:
        given, table = {"input.text": torch.tensor(PREFIX)}, HF_LLAMA + predictions(len(PREFIX), (GRID, GRID), eol=True, ids=slice(FIRST, FIRST + CODES))
        run = lambda: model(torch.cat((given["input.text"], torch.cat((FIRST + codes, ends), 1).flatten())))
    given["input.codes"] = codes
    write_trace(inputs, given)
    trace(model, run, path, table, given)


if __name__ == "__main__":
    main()
