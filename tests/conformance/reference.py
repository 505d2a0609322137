#!/usr/bin/env python3
"""All families, methods and tokenizers of the conformance suite in numpy, from SPEC and QUIRKS: the second implementation that the suite is proven with, and the
example of what an adopting project writes.

    reference.py SUITE OUT [--only PATTERN] [--dtype float64|float32|float16]

Letters: T positions, d width, hd head_dim, n fused tokens, s side of a window; P positions of the prefix; R x C the grid of fused tokens. A Run computes one case:
`put` keeps a tensor and, stage by stage, goes on with the suite's own given/X instead of it."""
import argparse
import base64
import fnmatch
import functools
import json
import os
import re
import struct
import sys
import unicodedata

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from check import read  # noqa: E402

# ---------------------------------------------------------------------------------------------------------------- elementary functions


def silu(x):
    return x / (1 + np.exp(-x))


def gelu(x):  # the tanh form
    return 0.5 * x * (1 + np.tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))


def gelu_erf(x):
    erf = np.vectorize(__import__("math").erf, otypes=[np.float64])
    return (x * (1 + erf(x.astype(np.float64) * 0.7071067811865476)) / 2).astype(x.dtype)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def rmsnorm(x, g, eps):
    return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + eps) * g


def layernorm(x, g, b):  # of queries and keys, whatever norm_eps is
    c = x - x.mean(-1, keepdims=True)
    return c / np.sqrt(np.mean(c * c, -1, keepdims=True) + 1e-5) * g + b


# ---------------------------------------------------------------------------------------------------------------------- the transformer


class Run:
    """One case: its inputs, the model's weights in `dtype`, and the tensors that come out."""

    def __init__(self, case, weights, config, dtype, staged):
        self.case, self.c, self.dtype, self.staged, self.out = case, config, dtype, staged, {}
        self.w = {k: v.astype(dtype) if v.dtype == np.float64 else v for k, v in weights.items()}

    def put(self, name, x):
        self.out[name] = x
        return self.case["given/" + name].astype(self.dtype) if self.staged and "given/" + name in self.case else x

    def input(self, name):
        x = self.case.get("input." + name)
        return x.astype(self.dtype) if x is not None and x.dtype == np.float64 else x

    def number(self, key, default=None):
        return int(self.c.get(key, default)) if self.c.get(key, default) is not None else None


class Transformer:
    """A stack of blocks with a cache of keys and values by place; places beyond what was fed are unseen."""

    def __init__(self, run, part, n_head, n_kv, places, causal=True):
        self.run, self.part, self.n_head, self.n_kv, self.causal = run, part, n_head, n_kv, causal
        self.layers = run.number("n_layer" if part == "gpt" else "fine_n_layer")
        self.hd = run.w[f"{part}.layers.0.attention.wo.weight"].shape[1] // n_head
        self.eps = float(run.c["norm_eps"])
        self.keys = np.zeros((self.layers, places, n_kv, self.hd), run.dtype)
        self.values = np.zeros_like(self.keys)
        self.seen = np.zeros(places, bool)  # fed, and not forgotten
        self.padding = np.zeros(places, bool)
        self.put = lambda name, x: x

    def rope_table(self, coordinates):
        """cos, sin [T, hd/2] of one coordinate a position (1d), or of two (2d: the first half of the head by the row, the second by the column)."""
        base, width = float(self.run.c.get("rope_base", 10000)), self.hd if coordinates.shape[1] == 1 else self.hd // 2
        f = base ** (-np.arange(0, width, 2) / width)
        angle = np.concatenate([coordinates[:, i : i + 1] * f for i in range(coordinates.shape[1])], 1)
        return np.cos(angle).astype(self.run.dtype), np.sin(angle).astype(self.run.dtype)

    def rotate(self, x, cos, sin):  # neighbouring pairs (2i, 2i + 1)
        a, b = x[..., 0::2], x[..., 1::2]
        cos, sin = cos[:, None, :], sin[:, None, :]
        return np.stack((a * cos - b * sin, b * cos + a * sin), -1).reshape(x.shape)

    def attention(self, n, i, places, cos, sin):
        run, w, H, K, hd = self.run, self.run.w, self.n_head, self.n_kv, self.hd
        name, layer = f"{self.part}.block.{i}", f"{self.part}.layers.{i}.attention"
        qkv = (n @ w[f"{layer}.wqkv.weight"].T).reshape(len(n), H + 2 * K, hd)
        q, k, v = qkv[:, :H], qkv[:, H : H + K], qkv[:, H + K :]
        if f"{layer}.q_norm.weight" in w:  # head h takes row h * g / H
            g = run.number("qk_norm")
            row = lambda which, heads: w[f"{layer}.{which}"].reshape(g, hd)[np.arange(heads) * g // heads]
            q = layernorm(q, row("q_norm.weight", H), row("q_norm.bias", H))
            k = layernorm(k, row("k_norm.weight", K), row("k_norm.bias", K))
        q, k, v = self.put(name + ".q", self.rotate(q, cos, sin)), self.put(name + ".k", self.rotate(k, cos, sin)), self.put(name + ".v", v)
        self.keys[i, places], self.values[i, places] = k, v
        at = np.flatnonzero(self.seen)
        allowed = ((at[None, :] <= places[:, None]) | (not self.causal)) & ~self.padding[at][None, :] | (at[None, :] == places[:, None])
        head = np.arange(H) // (H // K)  # query head h uses key head h / (H / K)
        keys, values = self.keys[i, at][:, head], self.values[i, at][:, head]
        score = q.transpose(1, 0, 2) @ keys.transpose(1, 2, 0) * float(hd) ** -0.5  # [H, T, seen]
        score = np.where(allowed[None], score, -np.inf).astype(run.dtype)
        mixed = (softmax(score) @ values.transpose(1, 0, 2)).transpose(1, 0, 2).reshape(len(n), H * hd)
        return self.put(name + ".attn", mixed) @ w[f"{layer}.wo.weight"].T

    def feed_forward(self, n, i):
        w, layer = self.run.w, f"{self.part}.layers.{i}.feed_forward"
        return self.put(f"{self.part}.block.{i}.ffn", silu(n @ w[f"{layer}.w1.weight"].T) * (n @ w[f"{layer}.w3.weight"].T)) @ w[f"{layer}.w2.weight"].T

    def step(self, x, places, coordinates, unrotated=None, keep=None):
        """Feeds x [m, d] at `places`; the stream behind the last block. keep: False for stand-ins, which are forgotten."""
        places = np.asarray(places)
        cos, sin = self.rope_table(np.asarray(coordinates, np.float64))
        if unrotated is not None:  # LlamaGen's conditions: cos = sin = 0
            cos[unrotated], sin[unrotated] = 0, 0
        before = self.seen.copy()
        self.seen[places] = True
        post = self.run.c.get("norm_order") == "post"
        for i in range(self.layers):
            g1, g2 = self.run.w[f"{self.part}.layers.{i}.attention_norm.weight"], self.run.w[f"{self.part}.layers.{i}.ffn_norm.weight"]
            if post:
                h = self.put(f"{self.part}.block.{i}.h", x + rmsnorm(self.attention(x, i, places, cos, sin), g1, self.eps))
                x = self.put(f"{self.part}.block.{i}", h + rmsnorm(self.feed_forward(h, i), g2, self.eps))
            else:
                h = self.put(f"{self.part}.block.{i}.h", x + self.attention(rmsnorm(x, g1, self.eps), i, places, cos, sin))
                x = self.put(f"{self.part}.block.{i}", h + self.feed_forward(rmsnorm(h, g2, self.eps), i))
        if keep is not None:
            for place, kept in zip(places, keep):
                self.seen[place] = kept or before[place]
        return x


class Model:
    """What stands around the transformer: the prefix, codes in, logits out."""

    def __init__(self, run):
        self.run, c = run, run.c
        self.arch, self.s = c["arch"], run.number("shuffle", 1)
        self.gh, self.gw = run.number("grid_h"), run.number("grid_w")
        self.R, self.C = self.gh // self.s, self.gw // self.s
        self.n, self.eps = self.R * self.C, float(c["norm_eps"])
        self.V = run.number("n_coarse", c["codebook_size"])
        self.eol = run.number("eol")
        self.code_row = run.number("text_vocab", c.get("image_base", 0)) if self.arch != "janus" else 0
        self.put = lambda name, x: x

    # ---- in

    def windows(self, x):
        """[gh, gw, ...] -> [n, s*s, ...]: windows in raster order, row-major inside."""
        s = self.s
        return np.moveaxis(x.reshape(self.R, s, self.C, s, *x.shape[2:]), 1, 2).reshape(self.n, s * s, *x.shape[2:])

    def mlp(self, z, name):
        w = self.run.w
        return z + gelu(rmsnorm(z, w[name + ".norm.weight"], self.eps) @ w[name + ".fc1.weight"].T) @ w[name + ".fc2.weight"].T

    def merge(self, y):
        """Compressed codes [m, s*s, d/s^2] -> fused tokens [m, d]."""
        z = self.put("gpt.shuffle.merge", y.reshape(len(y), -1))
        for b in range(self.run.number("shuffle_blocks")):
            z = self.put(f"gpt.shuffle.block.{b}", self.mlp(z, f"gpt.shuffle.blocks.{b}"))
        return z

    def embed_codes(self, codes):
        """Codes [m, s*s] -> their tokens [m, d]."""
        w = self.run.w
        if self.arch == "janus":
            e = w["gpt.image_embed.tok_embeddings.weight"][codes[:, 0]]
            return gelu_erf(e @ w["gpt.image_embed.fc1.weight"].T + w["gpt.image_embed.fc1.bias"]) @ w["gpt.image_embed.fc2.weight"].T + w["gpt.image_embed.fc2.bias"]
        e = w["gpt.tok_embeddings.weight"][self.code_row + codes]
        return e[:, 0] if self.s == 1 else self.merge(e @ w["gpt.shuffle.compress.weight"].T)

    def embed_picture(self, codes):
        """Codes [gh, gw] -> tokens [n, d]; compressed codes are traced in raster order of the codes."""
        if self.s == 1:
            return self.embed_codes(codes.reshape(-1, 1))
        e = self.run.w["gpt.tok_embeddings.weight"][self.code_row + codes.reshape(-1)]
        y = self.put("gpt.shuffle.compress", e @ self.run.w["gpt.shuffle.compress.weight"].T)
        return self.merge(self.windows(y.reshape(self.gh, self.gw, -1)))

    def prefix(self, uncond=False):
        """The tokens in front [P, d], and which of them are padding."""
        run, w = self.run, self.run.w
        if self.arch == "llamagen-c2i":
            label = run.number("num_classes") if uncond else int(run.input("class")[0])
            return w["gpt.cls_embedding.embedding_table.weight"][[label]], np.zeros(1, bool)
        if self.arch == "llamagen-t2i":  # the unconditional features are not masked; the mask of attention is the caption's in both branches
            mask = run.input("caption_mask")
            x = w["gpt.cls_embedding.uncond_embedding"][: len(mask)] if uncond else run.input("caption") * mask[:, None]
            return gelu(x @ w["gpt.cls_embedding.cap_proj.fc1.weight"].T) @ w["gpt.cls_embedding.cap_proj.fc2.weight"].T, mask == 0
        ids = run.input("text")
        if uncond and run.input("text_uncond") is not None:
            ids = run.input("text_uncond")
        elif uncond and self.arch == "token-shuffle":
            ids = np.array([0, 1])  # <bos> <soi>
        elif uncond and self.arch == "lumina-mgpt":
            ids = ids[-3:]  # boi and the two sizes
        elif uncond and self.arch == "janus":
            ids = np.concatenate([ids[:1], np.full(len(ids) - 2, run.number("pad")), ids[-1:]])
        return w["gpt.tok_embeddings.weight"][ids], np.zeros(len(ids), bool)

    # ---- places

    def place(self, P, t):
        """Of fused token t: a row takes one more where eol ends it."""
        return P + t + (t // self.C if self.eol is not None else 0)

    def eol_place(self, P, row):
        return P + row * (self.C + 1) + self.C

    def coordinates(self, P, places):
        """What RoPE turns each place by: the place itself, or (2d) row and column of its token."""
        places = np.asarray(places)
        if self.run.c.get("rope") != "2d":
            return places[:, None]
        width = self.C + (self.eol is not None)
        row, column = (places - P) // width, (places - P) % width
        start = 0 if self.arch.startswith("llamagen") else P  # token-shuffle: behind the words, whose two coordinates are their position
        return np.where((places < P)[:, None], places[:, None], np.stack((start + row, start + column), 1))

    # ---- out

    def logits(self, h):
        """The stream [m, d] at what predicts -> logits [m, s*s, V]."""
        run, w, m = self.run, self.run.w, len(h)
        if self.s > 1:
            for b in range(run.number("shuffle_blocks")):
                h = self.put(f"gpt.unshuffle.block.{b}", self.mlp(h, f"gpt.unshuffle.blocks.{b}"))
            h = self.put("gpt.unshuffle.expand", h.reshape(m, self.s**2, -1) @ w["gpt.unshuffle.expand.weight"].T)
        llamagen = self.arch.startswith("llamagen")
        x = self.put("gpt.norm", rmsnorm(h if llamagen or self.s > 1 else h[:, None], w["gpt.norm.weight"], self.eps))
        if self.arch == "janus":
            y = gelu_erf(x @ w["gpt.image_head.fc1.weight"].T + w["gpt.image_head.fc1.bias"]) @ w["gpt.image_head.fc2.weight"].T + w["gpt.image_head.fc2.bias"]
        else:
            y = x @ w["gpt.output.weight"][self.code_row : self.code_row + self.V].T
        return self.put("gpt.logits", y).reshape(m, self.s**2, self.V)

    def stack(self, places):
        n_head = self.run.number("n_head")
        return Transformer(self.run, "gpt", n_head, self.run.number("n_kv_head"), places)

    def whole_sequence(self, codes):
        """gpt.* of a trace: the prefix and all codes in one pass."""
        run, picture = self.run, self.embed_picture(codes)
        prefix, padding = self.prefix()
        P = len(prefix)
        places = np.concatenate([np.arange(P), self.place(P, np.arange(self.n))])
        x = np.concatenate([prefix, picture])
        predicts = np.concatenate([[P - 1], places[P:-1]])
        if self.eol is not None:  # behind every row, the last too; a row's first code is predicted by it
            ends = self.eol_place(P, np.arange(self.R))
            x = np.concatenate([x, np.repeat(run.w["gpt.tok_embeddings.weight"][[self.eol]], self.R, 0)])
            places = np.concatenate([places, ends])
            x, places = x[np.argsort(places)], np.sort(places)
            predicts[self.C :: self.C] = ends[:-1]
        stack = self.stack(len(places))
        stack.put, stack.padding[:P] = self.put, padding
        llamagen = self.arch.startswith("llamagen")
        h = stack.step(self.put("gpt.embed", x), places, self.coordinates(P, places), np.arange(P) if llamagen else None)
        self.logits(h if llamagen else h[predicts])


def fine(run, labels, put):
    """CTF's second stage: the same blocks without a causal mask, RoPE over the token grid; logits [N, K] over the whole codebook."""
    w, shape = run.w, labels.shape
    stack = Transformer(run, "fine", run.number("fine_n_head"), run.number("fine_n_head"), labels.size, causal=False)
    stack.put = put
    x = put("fine.embed", w["fine.coarse_embeddings.weight"][labels.reshape(-1)])
    grid = np.stack(np.divmod(np.arange(labels.size), shape[1]), 1)
    x = put("fine.norm", rmsnorm(stack.step(x, np.arange(labels.size), grid), w["fine.norm.weight"], float(run.c["norm_eps"])))
    return put("fine.logits", x @ w["fine.output.weight"].T)


# ------------------------------------------------------------------------------------------------------------------- the text encoder


def bucket(r, buckets, most):
    """Of key minus query r: half for keys behind; each distance below m = buckets/4, then logarithmic steps, in integers (QUIRKS-t5)."""
    half = buckets // 2
    m, n = half // 2, min(abs(r), most)
    if n >= m:
        k = half - m
        n = m + max(e for e in range(k) if n**k >= m ** (k - e) * most**e)
    return n + (half if r > 0 else 0)


def t5(run):
    """A block with neither RoPE nor causal mask nor scale; a bias of distance and head is added to the scores, in every layer."""
    w, put, ids = run.w, run.put, run.input("t5_ids")
    eps, L = float(run.c.get("t5_norm_eps", 1e-6)), len(ids)
    H, hd, buckets, most = run.number("t5_n_head"), run.number("t5_head_dim"), run.number("t5_buckets", 32), run.number("t5_max_distance", 128)
    table = np.array([[bucket(j - i, buckets, most) for j in range(L)] for i in range(L)])
    x = put("t5.embed", w["t5.tok_embeddings.weight"][ids])
    for i in range(run.number("t5_n_layer")):
        name = f"t5.layers.{i}"
        qkv = (rmsnorm(x, w[name + ".attention_norm.weight"], eps) @ w[name + ".attention.wqkv.weight"].T).reshape(L, 3, H, hd)
        q, k, v = qkv[:, 0], qkv[:, 1], qkv[:, 2]
        score = q.transpose(1, 0, 2) @ k.transpose(1, 2, 0) + w["t5.position_bias.weight"][table].transpose(2, 0, 1)
        mixed = (softmax(score) @ v.transpose(1, 0, 2)).transpose(1, 0, 2).reshape(L, H * hd)
        h = put(f"t5.attn.{i}", x + mixed @ w[name + ".attention.wo.weight"].T)
        n = rmsnorm(h, w[name + ".ffn_norm.weight"], eps)
        gate = gelu(n @ w[name + ".feed_forward.w1.weight"].T) * (n @ w[name + ".feed_forward.w3.weight"].T)
        x = put(f"t5.block.{i}", h + gate @ w[name + ".feed_forward.w2.weight"].T)
    put("t5.norm", rmsnorm(x, w["t5.norm.weight"], eps))


# ----------------------------------------------------------------------------------------------------------------- the image tokenizer


def to_bytes(x, down):
    y = np.floor((np.clip(x, -1, 1) + 1) / 2 * 255) if down else np.floor(127.5 * x + 128)
    return np.clip(y, 0, 255).astype(np.int64)


class Tokenizer:
    """LlamaGen's, Chameleon's (attention in the middle only, raw codewords) and Emu3's (convolutions in time, guided norms). Pictures are [C, H, W]."""

    def __init__(self, run):
        self.run, self.w, self.put = run, run.w, run.put
        self.levels = len(run.c["vq_ch_mult"].split(","))
        self.res, self.groups = run.number("vq_res_blocks"), run.number("vq_groups", 32)
        self.l2, self.attn_mid = run.number("vq_l2_norm"), run.c.get("vq_attn") == "mid"
        self.temporal = run.number("vq_temporal", 0)
        self.guide = None

    # ---- layers

    def conv(self, x, name, stride=1, pad=(1, 1, 1, 1), weight=None):
        weight, bias = self.w[name + ".weight"] if weight is None else weight, self.w[name + ".bias"]
        out, size = len(weight), weight.shape[-1]
        x = np.pad(x, ((0, 0), pad[:2], pad[2:])) if size == 3 else x
        H, W = (x.shape[1] - size) // stride + 1, (x.shape[2] - size) // stride + 1
        columns = np.stack([x[:, i : i + stride * (H - 1) + 1 : stride, j : j + stride * (W - 1) + 1 : stride] for i in range(size) for j in range(size)], 1)
        return (weight.reshape(out, -1) @ columns.reshape(-1, H * W) + bias[:, None]).reshape(out, H, W)

    def norm(self, x, name):
        g = x.reshape(self.groups, -1)
        g = g - g.mean(1, keepdims=True)
        y = (g / np.sqrt(np.mean(g * g, 1, keepdims=True) + 1e-6)).reshape(x.shape) * self.w[name + ".weight"][:, None, None] + self.w[name + ".bias"][:, None, None]
        if self.guide is None or name + ".conv_y.weight" not in self.w:
            return y
        rows, columns = np.arange(x.shape[1]) * self.guide.shape[1] // x.shape[1], np.arange(x.shape[2]) * self.guide.shape[2] // x.shape[2]
        spread = lambda part: self.conv(self.guide, f"{name}.{part}")[:, rows][:, :, columns]
        return y * spread("conv_y") + spread("conv_b")

    def resnet(self, x, name):
        h = self.conv(silu(self.norm(x, name + ".norm1")), name + ".conv1")
        h = self.conv(silu(self.norm(h, name + ".norm2")), name + ".conv2")
        return (self.conv(x, name + ".nin_shortcut") if name + ".nin_shortcut.weight" in self.w else x) + h

    def attention(self, x, name):
        n = self.norm(x, name + ".norm")
        q, k, v = (self.conv(n, f"{name}.{part}").reshape(len(x), -1) for part in "qkv")
        p = softmax(q.T @ k * float(len(x)) ** -0.5)
        return x + self.conv((v @ p.T).reshape(x.shape), name + ".proj_out")

    def middle(self, x, part):
        for i, layer in enumerate((self.resnet, self.attention, self.resnet)):
            x = self.put(f"vq.{part}.mid.{i}", layer(x, f"vq.{part}.mid.{i}"))
        return x

    def level(self, x, name, blocks, lowest):
        for b in range(blocks):
            x = self.resnet(x, f"{name}.res.{b}")
            if lowest and not self.attn_mid:
                x = self.attention(x, f"{name}.attn.{b}")
        return x

    def out(self, x, part):
        return self.put(f"vq.{part}.conv_out", self.conv(silu(self.norm(x, f"vq.{part}.norm_out")), f"vq.{part}.conv_out"))

    # ---- Emu3: time

    def batch_norm(self, x, name):
        g, b, mean, var = (self.w[f"{name}.{part}"][:, None, None] for part in ("weight", "bias", "running_mean", "running_var"))
        return (x - mean) / np.sqrt(var + 1e-5) * g + b

    def last_tap(self, x, name):  # of three taps in time the last alone meets a picture's one frame
        return self.conv(x, name, weight=self.w[name + ".weight"][:, :, -1])

    def time_res(self, x, name):
        h = self.last_tap(silu(self.batch_norm(x, name + ".norm1")), name + ".conv1")
        return x + self.last_tap(silu(self.batch_norm(h, name + ".norm2")), name + ".conv2")

    def time_conv(self, frames, name):
        """Four taps, stride 2, two zero frames in front; silu."""
        padded = [np.zeros_like(frames[0])] * 2 + frames
        w, out = self.w[name + ".weight"], []
        weight = np.concatenate([w[:, :, tap] for tap in range(w.shape[2])], 1)
        for at in range(0, len(padded) - w.shape[2] + 1, 2):
            out.append(silu(self.conv(np.concatenate(padded[at : at + w.shape[2]]), name, weight=weight)))
        return out

    # ---- the whole

    def encode(self, image):
        x = self.put("vq.encoder.conv_in", self.conv(np.moveaxis(image, 2, 0).astype(self.run.dtype) / 127.5 - 1, "vq.encoder.conv_in"))
        for i in range(self.levels):
            name = f"vq.encoder.conv_blocks.{i}"
            x = self.level(x, name, self.res, i == self.levels - 1)
            if i < self.levels - 1:  # one zero right and below
                x = self.conv(x, name + ".downsample.conv", 2, (0, 1, 0, 1))
            x = self.put(f"vq.encoder.block.{i}", x)
        x = self.out(self.middle(x, "encoder"), "encoder")
        if self.temporal:
            frames = [x] * self.temporal
            for i in range(self.temporal.bit_length() - 1):
                frames = self.time_conv(frames, f"vq.encoder.time_conv.{i}")
                frames = list(np.moveaxis(self.put(f"vq.encoder.time_conv.{i}", np.stack(frames, 1)), 1, 0))
            x = frames[0]
            for j in range(self.res):
                x = self.put(f"vq.encoder.time_res.{j}", self.time_res(x, f"vq.encoder.time_res_stack.{j}"))
            latent = self.put("vq.latent", self.last_tap(x, "vq.quant_conv"))
        else:
            latent = self.put("vq.latent", self.conv(x, "vq.quant_conv"))
        codes = self.quantize(latent)
        self.out_codes(codes)

    def out_codes(self, codes):
        self.run.out["vq.codes"] = codes

    def codewords(self):
        e = self.w["vq.quantize.embedding.weight"]
        return e / np.maximum(np.sqrt(np.sum(e * e, 1, keepdims=True)), 1e-12) if self.l2 else e

    def quantize(self, latent):
        z, e = latent.reshape(len(latent), -1).T, self.codewords()  # |z|^2 + |e|^2 - 2 z.e, the first of equals
        if self.l2:
            z = z / np.maximum(np.sqrt(np.sum(z * z, 1, keepdims=True)), 1e-12)
        distance = np.sum(z * z, 1)[:, None] + np.sum(e * e, 1)[None] - 2 * (z @ e.T)
        return np.argmin(distance, 1).reshape(latent.shape[1:])

    def decode(self, codes):
        quantized = self.put("vq.quantized", np.moveaxis(self.codewords()[codes], 2, 0))
        x = self.put("vq.decoder.post_quant", (self.last_tap if self.temporal else self.conv)(quantized, "vq.post_quant_conv"))
        if self.temporal:  # the codewords go the same way, and guide every norm
            self.guide, name = quantized, "vq.decoder"
            for j in range(self.res):
                x = self.put(f"{name}.time_res.{j}", self.time_res(x, f"{name}.time_res_stack.{j}"))
                self.guide = self.put(f"{name}.guide_res.{j}", self.time_res(self.guide, f"{name}.time_res_stack.{j}"))
            for i in range(self.temporal.bit_length() - 1):
                x = self.put(f"{name}.time_conv.{i}", silu(self.last_tap(x, f"{name}.time_conv.{i}")))
                self.guide = self.put(f"{name}.guide_conv.{i}", silu(self.last_tap(self.guide, f"{name}.time_conv.{i}")))
        x = self.middle(self.put("vq.decoder.conv_in", self.conv(x, "vq.decoder.conv_in")), "decoder")
        for i in range(self.levels):
            name = f"vq.decoder.conv_blocks.{i}"
            x = self.level(x, name, self.res + 1, i == 0)
            if i < self.levels - 1:  # nearest, then the convolution
                x = self.conv(x.repeat(2, 1).repeat(2, 2), name + ".upsample.conv")
            x = self.put(f"vq.decoder.block.{i}", x)
        x = self.out(x, "decoder")
        self.run.out["pixels"] = to_bytes(np.moveaxis(x, 0, 2).astype(np.float64), self.run.c.get("vq_pixels") == "down")


# ------------------------------------------------------------------------------------------------------------------ choosing a token


def scale_of(t, n, a, schedule="constant", interval=-1):
    """Guidance at fused token t of n; 0: none."""
    if a <= 1 or (interval >= 0 and t > interval + 1):
        return 0.0
    part = t / (n - 1) if n > 1 else 1.0
    if schedule == "linear":
        return 1 + (a - 1) * part
    if schedule == "half-linear":
        return 1 + (a - 1) * min(1.0, 2 * t / n)
    if schedule == "cosine":
        return 1 + (a - 1) * (1 - float(np.cos(np.pi * part))) / 2
    return a


def guide(cond, uncond, scale):
    return uncond + (cond - uncond) * scale


def probabilities(logits, temperature, top_k, top_p):
    x = logits / max(temperature, 1e-5)
    if 0 < top_k < len(x):
        x = np.where(x < np.sort(x)[-top_k], -np.inf, x)  # equals of the k-th stay
    if top_p < 1:
        order = np.argsort(-x, kind="stable")
        mass = softmax(x[order])
        before = np.cumsum(mass) - mass
        x[order[1:][before[1:] > top_p]] = -np.inf  # the first always stays
    return softmax(x)


def greedy(logits):
    return int(np.argmax(logits))  # the lowest index of the maximum


def draw(p, u):
    """The first index whose running sum exceeds u * total."""
    sums = np.cumsum(p)
    return int(np.argmax(sums > u * sums[-1]))


def adapt(code, p, q, accept, replace):
    """A code drawn from p, held against q: distributed as q, whichever it is."""
    return code if accept * p[code] < q[code] else draw(np.maximum(q - p, 0), replace)


def uniform(*at):
    """u of seed, image, row, column, slot, purpose, attempt: the splitmix64 finaliser over a counter."""
    mask, h = (1 << 64) - 1, int(at[0])
    for v in at[1:]:
        z = (h + 0x9E3779B97F4A7C15 * (int(v) + 1)) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        h = z ^ (z >> 31)
    return (h >> 11) * 2.0**-53


# ----------------------------------------------------------------------------------------------------------------------- decode orders


class Order:
    """raster, zipar:W[,first-row|,authors], zipar-adaptive:W on a grid of R x C fused tokens: row i begins when the row above has `window` tokens, and keeps that distance."""

    def __init__(self, text, R, C):
        kind, _, rest = text.partition(":")
        self.R, self.C, self.adaptive, self.authors = R, C, kind == "zipar-adaptive", rest.endswith(",authors")
        self.first_row = rest.endswith(",first-row") or self.authors
        self.W = min(int(rest.partition(",")[0]), C) if rest else C
        self.lag = [None] * R

    def window(self, i):
        if self.first_row and i == 1:
            return self.C
        return self.W if self.lag[i] is None else self.lag[i]

    def next(self, step_of):
        """Raster indices of the tokens that the next pass decodes."""
        tokens, above = [], self.C
        for i in range(self.R):
            j = int(np.sum(step_of[i] >= 0))
            if j < self.C and above >= min(j + self.window(i), self.C):
                tokens.append(i * self.C + j)
            above = j
        return tokens


class Generation:
    """One picture, code by code. A code that is chosen goes into the file; the case's own code is what the run goes on with, so that decisions stay comparable."""

    def __init__(self, run):
        self.run, s = run, run.settings
        self.model = m = Model(run)
        self.cfg, self.schedule, self.interval = float(s["cfg"]), s["cfg_schedule"], int(s["cfg_interval"])
        self.cut = (float(s["temperature"]), int(s["top_k"]), float(s["top_p"]))
        self.greedy, self.order = s["greedy"] == "1", Order(s["decode"], m.R, m.C)
        self.name = "coarse" if "n_coarse" in run.c else "codes"
        self.given = m.windows(run.case[self.name])  # [n, s*s]
        self.u = m.windows(run.case["uniform/" + self.name]) if not self.greedy else None
        self.codes = np.full((m.n, m.s**2), -1)
        self.chosen = self.codes.copy()
        self.step_of, self.fed = np.full((m.R, m.C), -1), np.zeros(m.n, bool)
        self.logits = np.zeros((m.n, m.s**2, m.V), run.dtype)
        self.branches = []
        for uncond in (False, True) if self.cfg > 1 else (False,):
            x, padding = m.prefix(uncond)
            stack = m.stack(len(x) + m.n + m.R)
            stack.padding[: len(x)] = padding
            self.branches.append((stack, len(x), x))

    def prefill(self):
        out, m = [], self.model
        for stack, P, x in self.branches:
            h = stack.step(x, np.arange(P), m.coordinates(P, np.arange(P)), np.arange(P) if m.arch.startswith("llamagen") else None)
            if self.order.authors:  # places not yet fed count, with zero keys and values
                stack.seen[P : P + m.n] = True
            out.append(m.logits(h[-1:])[0])
        return {0: out}

    def stand_in(self, t):
        """For the last token of a row that is not decoded yet: the last decoded one of that row; in the authors' code of the row above it."""
        row = t // self.model.C - (1 if self.order.authors else 0)
        return self.codes[row * self.model.C + int(np.sum(self.step_of[row] >= 0)) - 1]

    def forward(self, tokens):
        """One pass: what was decoded and not fed yet, stand-ins (not kept) and ends of rows (kept); logits of each wanted token, by branch."""
        m, rows = self.model, []  # (token or None for eol, row, codes, keep, what it predicts)
        for t in range(m.n - 1):
            wanted, ends = t + 1 in tokens, m.eol is not None and (t + 1) % m.C == 0
            fresh = self.step_of.flat[t] >= 0 and not self.fed[t]
            if fresh or (wanted and not ends):
                known = self.step_of.flat[t] >= 0
                rows.append((t, None, self.codes[t] if known else self.stand_in(t), known or self.order.authors, t + 1 if wanted and not ends else None))
                self.fed[t] = known
            if wanted and ends:
                rows.append((None, t // m.C, None, True, t + 1))
        x = np.zeros((len(rows), self.run.number("dim")), self.run.dtype)
        at = [i for i, r in enumerate(rows) if r[0] is not None]
        if at:
            x[at] = m.embed_codes(np.stack([rows[i][2] for i in at]))
        for i, r in enumerate(rows):
            if r[0] is None:
                x[i] = self.run.w["gpt.tok_embeddings.weight"][m.eol]
        out = {t: [] for t in tokens}
        for stack, P, _ in self.branches:
            places = np.array([m.place(P, r[0]) if r[0] is not None else m.eol_place(P, r[1]) for r in rows])
            sort = np.argsort(places)
            h = stack.step(x[sort], places[sort], m.coordinates(P, places[sort]), None, [rows[i][3] for i in sort])
            predicts = [rows[i][4] for i in sort]
            which = [i for i, t in enumerate(predicts) if t is not None]
            for i, y in zip(which, m.logits(h[which])):
                out[predicts[i]].append(y)
        return out

    def guided(self, t, both):
        if len(both) == 1:
            return both[0]
        interval = self.interval
        if self.order.authors and interval >= 0 and t >= self.model.C:  # the counter restarts at row 1, for a whole pass
            scale = self.cfg if np.sum(self.step_of[1:] >= 0) <= interval else 0.0
        else:
            scale = scale_of(t, self.model.n, self.cfg, self.schedule, interval)
        return guide(both[0], both[1], scale) if scale else both[0]

    def choose(self, logits, u):
        return greedy(logits) if self.greedy else draw(probabilities(logits.astype(np.float64), *self.cut), u)

    def candidate(self, t, logits):
        """The adaptive order: one evaluation of the first token of a row; whether it is final."""
        row, seed, above = t // self.model.C, self.run.settings["seed"], int(np.sum(self.step_of[t // self.model.C - 1] >= 0))
        p = [probabilities(y.astype(np.float64), *self.cut) for y in logits]
        old = None if self.test is None else self.codes[t].copy()
        for slot, q in enumerate(p):
            at = (seed, 0, row, 0, slot)
            if self.test is None:
                self.codes[t, slot] = draw(q, uniform(*at, 0, 0))
            else:
                before, attempt = self.test
                self.codes[t, slot] = adapt(old[slot], before[slot], q, uniform(*at, 1, attempt), uniform(*at, 2, attempt))
        final = above == self.model.C or (old is not None and bool((old == self.codes[t]).all()))
        self.test = None if final else (p, 0 if self.test is None else self.test[1] + 1)
        if final:
            self.order.lag[row], self.chosen[t] = above, self.codes[t]
        return final

    def picture(self):
        m, step = self.model, 0
        self.test = None
        while True:
            tokens = self.order.next(self.step_of)
            if not tokens:
                break
            logits = self.prefill() if step == 0 else self.forward(tokens)
            decided = []
            for t in tokens:
                y = self.guided(t, logits[t])
                self.logits[t] = y
                if self.order.adaptive and t >= m.C and t % m.C == 0:
                    if not self.candidate(t, y):
                        continue
                else:
                    self.chosen[t] = [self.choose(y[slot], None if self.greedy else self.u[t, slot]) for slot in range(m.s**2)]
                    self.codes[t] = self.chosen[t] if self.order.adaptive else self.given[t]
                decided.append(t)
            for t in decided:
                self.step_of.flat[t] = step
            step += 1
        unfold = lambda x: np.moveaxis(x.reshape(m.R, m.C, m.s, m.s), 1, 2).reshape(m.gh, m.gw)
        self.run.out.update({self.name: unfold(self.chosen), "step_of": self.step_of, "logits": self.logits})
        if self.name == "coarse":
            self.refine(unfold(self.codes))

    def refine(self, labels):
        """CTF: each code from the fine logits of its label's cluster."""
        logits, cluster = fine(self.run, labels, lambda name, x: x), self.run.w["ctf.cluster_of"]
        out = np.zeros(labels.size, np.int64)
        for i, label in enumerate(labels.flat):
            members = np.flatnonzero(cluster == label)
            out[i] = members[self.choose(logits[i, members], None if self.greedy else self.run.case["uniform/codes"].flat[i])]
        self.run.out["codes"] = out.reshape(labels.shape)


# -------------------------------------------------------------------------------------------------------- texts: byte pairs

SPACES = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # \s of these tokenizers: not 1C ... 1F
ASCII_SIGNS = "!-/:-@\\[-`{-~"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@functools.lru_cache(None)
def category(first):
    """The characters of a general category as ranges of a regular expression."""
    points = [i for i in range(0x110000) if unicodedata.category(chr(i))[0] == first]
    starts = [p for i, p in enumerate(points) if i == 0 or points[i - 1] != p - 1]
    ends = [p for i, p in enumerate(points) if i + 1 == len(points) or points[i + 1] != p + 1]
    return "".join(f"\\U{a:08x}-\\U{b:08x}" for a, b in zip(starts, ends))


@functools.lru_cache(None)
def pattern(text):
    """An Oniguruma pattern in Python's dialect."""
    out, inside, i = "", False, 0
    while i < len(text):
        step = 5 if text[i : i + 3] == "\\p{" else 2 if text[i] == "\\" else 1
        token = text[i : i + step]
        ranges = category(token[3]) if step == 5 else SPACES if token in ("\\s", "\\S") else None
        out += token if ranges is None else ranges if inside else ("[^" if token == "\\S" else "[") + ranges + "]"
        inside = (inside or token == "[") and token != "]"
        i += step
    return re.compile(out)


def isolate(pieces, compiled):
    """Every match is a piece, every gap is one."""
    out = []
    for piece in pieces:
        at = 0
        for m in compiled.finditer(piece):
            out += [piece[at : m.start()], m.group()]
            at = m.end()
        out.append(piece[at:])
    return [p for p in out if p]


def cut_specials(parts, specials):
    """Added tokens out of the texts among `parts`: leftmost, then longest."""
    if not specials:
        return parts
    compiled, out = re.compile("|".join(re.escape(s) for s in sorted(specials, key=len, reverse=True))), []
    for part in parts:
        if isinstance(part, int):
            out.append(part)
        else:
            for piece in isolate([part], compiled):
                out.append(specials.get(piece, piece))
    return out


def merge(symbols, rank_of):
    """The pair of the lowest rank, the leftmost among equals, one at a time."""
    symbols = list(symbols)
    while len(symbols) > 1:
        ranks = [rank_of(a, b) for a, b in zip(symbols, symbols[1:])]
        best = min((r for r in ranks if r is not None), default=None)
        if best is None:
            break
        i = ranks.index(best)
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
    return symbols


BYTES = {b: chr(b) for b in (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))}
BYTES.update({b: chr(0x100 + i) for i, b in enumerate(b for b in range(256) if b not in BYTES)})


class TokenizerJson:
    def __init__(self, path):
        with open(path, encoding="utf-8") as f:
            j = json.load(f)
        self.vocab, self.steps = j["model"]["vocab"], j["pre_tokenizer"]["pretokenizers"]
        merges = [m.split(" ") if isinstance(m, str) else m for m in j["model"]["merges"] if not (isinstance(m, str) and m.startswith("#version"))]
        self.ranks = {(a, b): i for i, (a, b) in enumerate(merges)}  # of a pair that comes twice the later one
        self.raw, self.normal = ({t["content"]: t["id"] for t in j["added_tokens"] if t["normalized"] == n} for n in (False, True))

    def split(self, piece):
        pieces = [piece]
        for step in self.steps:
            if step["type"] == "Split":
                pieces = isolate(pieces, pattern(step["pattern"]["Regex"]))
            elif step["type"] == "Digits":
                pieces = isolate(pieces, pattern(r"\p{N}"))
            elif step["type"] == "Punctuation":
                pieces = isolate(pieces, pattern("[" + ASCII_SIGNS + r"\p{P}]"))
            elif step["use_regex"]:
                pieces = isolate(pieces, pattern(GPT2))
        return pieces

    def encode(self, text):
        ids = []
        for part in cut_specials(cut_specials([text.decode()], self.raw), self.normal):
            if isinstance(part, int):
                ids.append(part)
                continue
            for piece in self.split(part):
                symbols = merge((BYTES[b] for b in piece.encode()), lambda a, b: self.ranks.get((a, b)))
                ids += [self.vocab[s] for s in symbols]
        return ids


class Tiktoken:
    def __init__(self, path):
        with open(path, "rb") as f:
            self.ranks = {base64.b64decode(line.split()[0]): int(line.split()[1]) for line in f if line.strip()}
        with open(os.path.join(os.path.dirname(path), "emu3_vision_tokens.txt"), encoding="utf-8") as f:
            vision = [line.strip() for line in f if line.strip()]
        names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205)), *vision]
        self.specials = {name: len(self.ranks) + i for i, name in enumerate(names)}

    def encode(self, text):
        ids = []
        for part in cut_specials([unicodedata.normalize("NFC", text.decode())], self.specials):
            if isinstance(part, int):
                ids.append(part)
                continue
            for piece in isolate([part], pattern(QWEN)):
                piece = piece.encode()
                if piece in self.ranks:  # a whole piece first
                    ids.append(self.ranks[piece])
                else:
                    ids += [self.ranks[s] for s in merge((piece[i : i + 1] for i in range(len(piece))), lambda a, b: self.ranks.get(a + b))]
        return ids


# ------------------------------------------------------------------------------------------------------ texts: SentencePiece unigram


def protobuf(data):
    """(field, wire type, value) of a message."""
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        key = varint()
        field, wire = key >> 3, key & 7
        if wire == 0:
            yield field, wire, varint()
        else:
            size = varint() if wire == 2 else {1: 8, 5: 4}[wire]
            yield field, wire, data[at : at + size]
            at += size


class Unigram:
    NORMAL, UNKNOWN, USER, UNUSED = 1, 2, 4, 5

    def __init__(self, path):
        with open(path, "rb") as f:
            model = list(protobuf(f.read()))
        self.pieces, self.dummy, self.squeeze, self.escape, charsmap = {}, True, True, True, b""
        scores, kinds, texts = [], [], []
        for field, _, value in model:
            if field == 1:
                piece = {f: v for f, _, v in protobuf(value)}
                texts.append(piece.get(1, b""))
                scores.append(struct.unpack("<f", piece.get(2, b"\0\0\0\0"))[0])
                kinds.append(piece.get(3, self.NORMAL))
            elif field == 3:
                spec = {f: v for f, _, v in protobuf(value)}
                charsmap = spec.get(2, b"")
                self.dummy, self.squeeze, self.escape = (bool(spec.get(f, 1)) for f in (3, 4, 5))
        self.pieces = {t: (i, np.float32(scores[i])) for i, t in enumerate(texts) if kinds[i] in (self.NORMAL, self.USER)}
        self.unknown = kinds.index(self.UNKNOWN)
        self.least = np.float32(min(s for s, k in zip(scores, kinds) if k == self.NORMAL))
        self.longest = max(map(len, self.pieces))
        n = struct.unpack("<I", charsmap[:4])[0] if charsmap else 0
        self.units, self.strings = struct.unpack(f"<{n // 4}I", charsmap[4 : 4 + n]), charsmap[4 + n :]

    def replaced(self, text, at):
        """What stands at `at` becomes: the longest match of the trie, or one character; and its bytes."""
        best = None
        if self.units:
            offset = lambda u: (u >> 10) << ((u & 512) >> 6)
            pos = offset(self.units[0])
            for i in range(at, len(text)):
                pos ^= text[i]
                u = self.units[pos]
                if u & 0x800000FF != text[i]:
                    break
                pos ^= offset(u)
                if u >> 8 & 1:
                    start = self.units[pos] & 0x7FFFFFFF
                    best = self.strings[start : self.strings.index(b"\0", start)], i + 1 - at
        if best:
            return best
        size = next(k for k in (1, 2, 3, 4) if at + k == len(text) or text[at + k] & 0xC0 != 0x80)
        return text[at : at + size], size

    def normalize(self, text):
        units, at = [], 0
        while at < len(text):
            unit, size = self.replaced(text, at)
            units.append(unit)
            at += size
        if self.squeeze:
            while units and units[0] == b" ":
                units.pop(0)
        if not units:
            return b""
        meta = "\u2581".encode()
        out, blank = (meta if self.dummy else b""), self.squeeze
        for unit in units:
            if self.squeeze and blank:
                unit = unit.lstrip(b" ")
            if unit:
                out += unit.replace(b" ", meta)
                blank = unit.endswith(b" ")
        while self.squeeze and out.endswith(meta):
            out = out[: -len(meta)]
        return out

    def encode(self, text):
        """Viterbi in float32: a path is replaced by a strictly better one only; neighbouring unknowns are one."""
        text = self.normalize(text)
        n = len(text)
        best, score = [None] * (n + 1), np.zeros(n + 1, np.float32)
        starts = [i for i in range(n) if text[i] & 0xC0 != 0x80]
        for i in starts:
            size = next((j for j in starts if j > i), n) - i
            single = False
            for length in range(1, min(self.longest, n - i) + 1):
                found = self.pieces.get(text[i : i + length])
                if found:
                    candidate = float(found[1]) + float(score[i])  # a double sum against the stored float
                    if best[i + length] is None or candidate > float(score[i + length]):
                        best[i + length], score[i + length] = (i, found[0]), np.float32(candidate)
                    single |= length == size
            if not single:
                candidate = np.float32(self.least - np.float32(10)) + score[i]
                if best[i + size] is None or candidate > score[i + size]:
                    best[i + size], score[i + size] = (i, self.unknown), candidate
        ids, at = [], n
        while at > 0:
            at, piece = best[at]
            if not (ids and ids[-1] == piece == self.unknown):
                ids.append(piece)
        return ids[::-1]


def text_case(run):
    tokenizer = (TokenizerJson if run.model.endswith(".json") else Tiktoken if run.model.endswith(".tiktoken") else Unigram)(run.model)
    data, at = run.case["input.bytes"].astype(np.uint8).tobytes(), run.case["input.at"]
    rows = [tokenizer.encode(data[at[i] : at[i + 1]]) for i in range(len(at) - 1)]
    longest = max(map(len, rows))
    run.out["ids"] = np.array([r + [-1] * (longest - len(r)) for r in rows], np.int64)


# ---------------------------------------------------------------------------------------------------------------------------- cases


def trace_case(run):
    w = run.w
    if "t5.norm.weight" in w:
        t5(run)
    if "gpt.norm.weight" in w:
        model = Model(run)
        model.put = run.put
        model.whole_sequence(run.input("coarse") if "n_coarse" in run.c else run.input("codes"))
    if "fine.norm.weight" in w:
        fine(run, run.input("coarse"), run.put)
    if "vq.post_quant_conv.weight" in w:
        tokenizer = Tokenizer(run)
        if run.input("image") is not None:
            tokenizer.encode(run.input("image"))
        tokenizer.decode(run.input("codes") if run.input("codes") is not None else run.case["staged/vq.codes" if run.staged else "whole/vq.codes"])
        if run.staged:
            del run.out["pixels"]
        if run.input("image") is None:
            run.out["vq.codes"] = run.input("codes")


def rules_case(run):
    case, out = run.case, run.out
    for name, schedule, a, interval in (("constant", "constant", 7.5, -1), ("linear", "linear", 7.5, -1), ("half-linear", "half-linear", 7.5, -1),
                                        ("cosine", "cosine", 7.5, -1), ("interval", "constant", 4, 2), ("below", "constant", 0.5, -1)):
        out["scale." + name] = np.array([scale_of(t, 24, a, schedule, interval) for t in range(24)], run.dtype)
    out["guide.logits"] = guide(run.input("guide.cond"), run.input("guide.uncond"), run.input("guide.scale")[:, None])
    cuts = list(zip(*(case["input.sample." + k].tolist() for k in ("temperature", "top_k", "top_p"))))
    out["sample.probabilities"] = np.stack([probabilities(x, *cut) for x, cut in zip(run.input("sample.logits"), cuts)])
    out["sample.code"] = np.array([draw(p, u) for p, u in zip(out["sample.probabilities"], case["input.sample.u"].tolist())])
    out["sample.greedy"] = np.array([greedy(x) for x in case["input.sample.logits"]])
    adaptive = zip(*(case["input.adapt." + k] for k in ("code", "p", "q", "accept", "replace")))
    out["adapt.chosen"] = np.array([adapt(*row) for row in adaptive])
    out["uniform.u"] = np.array([uniform(*at) for at in case["input.uniform.at"]]).astype(run.dtype)
    for name in case:
        if name.startswith("whole/order."):
            text, _, grid = name[len("whole/order.") :].rpartition(".")
            R, C = map(int, grid.split("x"))
            order, step_of, step = Order(text, R, C), np.full((R, C), -1), 0
            while order.next(step_of):
                step_of.flat[order.next(step_of)] = step
                step += 1
            out[name[len("whole/") :]] = step_of
    out["bytes.nearest"], out["bytes.down"] = (to_bytes(run.input("bytes.x"), down) for down in (False, True))
    out["bytes.in"] = np.arange(256).astype(run.dtype) / 127.5 - 1


KINDS = {"trace": trace_case, "decode": lambda run: Generation(run).picture(), "rules": rules_case, "text": text_case}


def run_case(case, settings, weights, config, kind, dtype, mode, model=""):
    """The tensors of one case, from what `read` gives of its file and its model's; `model` is the path of the latter, or of a tokenizer."""
    if kind == "rules":  # never in half precision
        dtype = np.promote_types(dtype, np.float32)
    run = Run(case, weights, config, dtype, mode == "staged")
    run.settings, run.model = settings, model
    with np.errstate(all="ignore"):
        KINDS[kind](run)
    return run.out


# ---------------------------------------------------------------------------------------------------------------------------- files


def write(path, tensors):
    header, data = {}, b""
    for name, x in tensors.items():
        x = np.ascontiguousarray(x)
        kind = {"float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "uint8": "U8"}[x.dtype.name]
        header[name] = {"dtype": kind, "shape": list(x.shape), "data_offsets": [len(data), len(data) + x.nbytes]}
        data += x.tobytes()
    text = json.dumps(header).encode()
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + data)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite"), parser.add_argument("out")
    parser.add_argument("--only", default="*")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    os.makedirs(args.out, exist_ok=True)
    with open(os.path.join(args.suite, "manifest.json")) as f:
        manifest = json.load(f)
    for entry in manifest["cases"]:
        if fnmatch.fnmatch(entry["name"], args.only):
            files = [*read(os.path.join(args.suite, entry["file"])), *(read(os.path.join(args.suite, entry["model"])) if entry["model"].endswith(".safetensors") else ({}, {}))]
            for mode, ending in (("whole", ".safetensors"), ("staged", ".staged.safetensors")):
                if mode == "whole" or entry["kind"] == "trace":
                    write(os.path.join(args.out, entry["name"] + ending), run_case(*files, entry["kind"], np.dtype(args.dtype), mode, os.path.join(args.suite, entry["model"])))


if __name__ == "__main__":
    main()
