#!/usr/bin/env python3
"""All families, methods and tokenizers of the conformance suite in numpy, from SPEC and QUIRKS: the second implementation that the suite is proven with, and the
example of what an adopting project writes.

    reference.py SUITE OUT [--only PATTERN] [--dtype float64|float32|float16]

Letters: T positions, d width, hd head_dim, n fused tokens, s side of a window; P positions of the prefix; R x C the grid of fused tokens. A Run computes one case:
`put` keeps a tensor and, stage by stage, goes on with the suite's own given/X instead of it."""
import argparse
import fnmatch
import json
import os
import struct
import sys

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


# ---------------------------------------------------------------------------------------------------------------------------- cases


def trace_case(run):
    w = run.w
    if "gpt.norm.weight" in w:
        model = Model(run)
        model.put = run.put
        model.whole_sequence(run.input("coarse") if "n_coarse" in run.c else run.input("codes"))
    if "fine.norm.weight" in w:
        fine(run, run.input("coarse"), run.put)


def run_case(case, settings, weights, config, kind, dtype, mode):
    """The tensors of one case, from what `read` gives of its file and its model's."""
    run = Run(case, weights, config, dtype, mode == "staged")
    run.settings = settings
    with np.errstate(all="ignore"):
        {"trace": trace_case}[kind](run)
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
            files = [*read(os.path.join(args.suite, entry["file"])), *(read(os.path.join(args.suite, entry["model"])) if entry["model"] else ({}, {}))]
            for mode, ending in (("whole", ".safetensors"), ("staged", ".staged.safetensors")):
                if mode == "whole" or entry["kind"] == "trace":
                    write(os.path.join(args.out, entry["name"] + ending), run_case(*files, entry["kind"], np.dtype(args.dtype), mode))


if __name__ == "__main__":
    main()
