#!/usr/bin/env python3
"""A second implementation of every stage that has a trace name (SPEC 3, 4, 8), in PyTorch, without a line of tsar's: what verify is tested with.

    second.py trace MODEL INPUTS OUT [gpt=bfloat16 fine=float32 ...] [wrong=MISTAKE] [vq_file=MODEL] [only=REGEX]

INPUTS: a safetensors file with input.*; every part of the model that they feed runs, in float32 unless a type is named for it, with one mistake of those
below if one is named. shuffle.py beside it is the example to read; here each mistake stands in the line that it spoils."""
import math
import re
import sys

import torch
from torch.nn import functional as F
from trace import read_file, write_trace


class Run:
    """One part of a model in one precision: weights by name, equations, the tensors that they leave in `out`."""

    def __init__(self, tensors, config, part, dtype, wrong, out):
        self.tensors, self.c, self.part, self.dtype, self.wrong, self.out = tensors, config, part, dtype, wrong, out
        self.eps = 1e-6 if wrong == "eps" else float(config.get("norm_eps", 0))

    def n(self, key, absent=0):
        return int(self.c.get(key, absent))

    def is_(self, *mistakes):
        return self.wrong in mistakes

    def w(self, name):
        return self.tensors[f"{self.part}.{name}"].to(self.dtype)

    def has(self, name):
        return f"{self.part}.{name}" in self.tensors

    def put(self, name, x):
        self.out[f"{self.part}.{name}"] = x
        return x

    def linear(self, x, name):
        return F.linear(x, self.w(name + ".weight"), self.w(name + ".bias") if self.has(name + ".bias") and not self.is_("no_bias") else None)

    def rmsnorm(self, x, name, eps=None):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        mean = wide - wide.mean(-1, keepdim=True) if self.is_("layernorm") else wide
        return (mean * torch.rsqrt(mean.pow(2).mean(-1, keepdim=True) + (self.eps if eps is None else eps))).to(x.dtype) * self.w(name + ".weight")

    # ------------------------------------------------------------------------------------------------------------- blocks

    def angles(self, places, base):
        """[T, hd/2] of places [T] or, in two dimensions, [T, 2]: the first half of a head by the row, the second by the column."""
        wide = torch.promote_types(self.dtype, torch.float32)
        places, width = places.to(wide), self.hd if places.dim() == 1 or self.is_("rope_full") else self.hd // 2
        if self.is_("rope_swap"):
            places = places.flip(-1)
        inverse = ((500000.0 if base == 10000 else 10000.0) if self.is_("rope_base") else base) ** (-torch.arange(0, width, 2, dtype=wide) / width)
        if places.dim() == 1:
            return places[:, None] * inverse
        return torch.cat((places[:, :1] * inverse[: self.hd // 4], places[:, 1:] * inverse[: self.hd // 4]), 1)

    def rope(self, x, angles):
        """neighbouring pairs (a, b) of each head turn: (a cos - b sin, b cos + a sin)"""
        cos, sin = angles.cos().to(self.dtype)[:, None], angles.sin().to(self.dtype)[:, None]
        if self.is_("rope_half"):
            a, b = x.chunk(2, -1)
            return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)

    def head_norm(self, x, name):
        """layernorm of each head, whose weight and bias are row h * qk_norm / heads"""
        heads, rows = x.shape[1], self.n("qk_norm")
        row = torch.arange(heads) % rows if self.is_("qk_rows") else torch.arange(heads) * rows // heads
        weight, bias = (self.w(f"{name}.{k}").view(rows, self.hd)[row] for k in ("weight", "bias"))
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        centred = wide if self.is_("qk_rms") else wide - wide.mean(-1, keepdim=True)
        normed = (centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + (1e-3 if self.is_("qk_eps") else 1e-5))).to(self.dtype)
        return normed * weight if self.is_("qk_bias") else normed * weight + bias

    def attention(self, n, i, angles, allowed, bias=None):
        T, heads, kv, hd = len(n), self.heads, self.kv, self.hd
        qkv = self.linear(n, f"layers.{i}.attention.wqkv").view(T, heads + 2 * kv, hd)
        for first, mistake in ((0, "head_q"), (heads, "head_k"), (heads + kv, "head_v")):  # the rows of one head in reverse
            if self.is_(mistake) and i == 1:
                qkv = torch.cat((qkv[:, : first + 1], qkv[:, first + 1 : first + 2].flip(-1), qkv[:, first + 2 :]), 1)
        q, k, v = qkv[:, :heads], qkv[:, heads : heads + kv], qkv[:, heads + kv :]
        if self.n("qk_norm") and self.part == "gpt" and not self.is_("qk_none", "qk_after"):
            q, k = (self.head_norm(t, f"layers.{i}.attention.{s}_norm") for t, s in ((q, "q"), (k, "k")))
        if angles is not None:
            q, k = self.rope(q, angles), self.rope(k, angles.roll(1, 0) if self.is_("krot") else angles)
        if self.is_("qk_after"):
            q, k = (self.head_norm(t, f"layers.{i}.attention.{s}_norm") for t, s in ((q, "q"), (k, "k")))
        if self.is_("v_head") and kv > 1:
            v = v.clone()
            v[:, 0], v[:, 1] = v[:, 1].clone(), v[:, 0].clone()
        if angles is not None:
            self.put(f"block.{i}.q", q), self.put(f"block.{i}.k", k), self.put(f"block.{i}.v", v)
        if self.is_("kv_slot") and T > self.prefix:
            k, v = k.clone(), v.clone()
            k[self.prefix - 1], v[self.prefix - 1] = k[self.prefix], v[self.prefix]
        share = heads // kv
        k, v = (t.repeat(1, share, 1) if self.is_("gqa") else t.repeat_interleave(share, 1) for t in (k, v))
        score = torch.einsum("ihd,jhd->hij", q, k)
        score = score + bias if bias is not None else score if self.is_("scale") else score * hd**-0.5
        if self.is_("t5_scale"):
            score = score * hd**-0.5
        mixed = torch.einsum("hij,jhd->ihd", score.masked_fill(~allowed, float("-inf")).softmax(-1), v).reshape(T, -1)
        return self.linear(self.put(f"block.{i}.attn", mixed) if angles is not None else mixed, f"layers.{i}.attention.wo")

    def block(self, x, i, angles, allowed, bias=None, eps=None):
        """h = x + wo . attention(rmsnorm(x)); y = h + w2 . (silu(w1 . n) * (w3 . n)), n = rmsnorm(h); norm_order=post: the branches are normed instead"""
        post = self.c.get("norm_order") == "post" and self.part == "gpt" and not self.is_("pre")
        norms = [f"layers.{i}.{name}" for name in ("attention_norm", "ffn_norm")]
        if post:
            h = x + self.rmsnorm(self.attention(x, i, angles, allowed, bias), norms[0], eps)
        else:
            h = x + self.attention(self.rmsnorm(x, norms[0], eps), i, angles, allowed, bias)
        self.put(f"attn.{i}" if self.part == "t5" else f"block.{i}.h", h)
        n = h if post else self.rmsnorm(h, norms[1], eps)
        first, second = ("w3", "w1") if self.is_("w1w3") else ("w1", "w3")
        gate = self.linear(n, f"layers.{i}.feed_forward.{first}")
        gate = self.gelu(gate) if self.part == "t5" or self.is_("silu_gelu") else F.silu(gate)
        gate = gate * self.linear(n, f"layers.{i}.feed_forward.{second}")
        if angles is not None:
            self.put(f"block.{i}.ffn", gate)
        y = self.linear(gate, f"layers.{i}.feed_forward.w2")
        return self.put(f"block.{i}", h + (self.rmsnorm(y, norms[1], eps) if post else y))

    def gelu(self, x, form="tanh"):
        if self.is_("gelu_silu"):
            return F.silu(x)
        return F.gelu(x, approximate={"tanh": "none", "none": "tanh"}[form] if self.is_("gelu_form") else form)

    # -------------------------------------------------------------------------------------------------------- transformer

    def gpt(self, given):
        """token-shuffle, lumina-mgpt, emu3, janus: a prefix of ids, then the codes (or coarse labels), an eol after each row where there is one"""
        self.heads, self.kv, self.s = self.n("n_head"), self.n("n_kv_head"), self.n("shuffle", 1)
        self.hd, s = self.n("dim") // self.heads, self.s
        codes = given["input.coarse" if self.n("n_coarse") else "input.codes"].long()
        text = given["input.text"].long()
        self.prefix = len(text)
        table, first = self.w("tok_embeddings.weight"), self.n("text_vocab") or self.n("image_base")
        V = self.n("n_coarse") or self.n("codebook_size")
        if self.n("image_embed"):
            e = self.w("image_embed.tok_embeddings.weight")[codes]
            e = self.linear(self.gelu(self.linear(e, "image_embed.fc1"), "none"), "image_embed.fc2")
        else:
            e = table[first + codes - (1 if self.is_("id_base") else 0)]
        if s > 1:
            e = self.put("shuffle.compress", self.linear(e, "shuffle.compress").flatten(0, 1)).view(*codes.shape, -1)
        gh, gw = codes.shape
        z = e.view(gh // s, s, gw // s, s, -1).permute(0, 2, 1, 3, 4)
        z = (z.transpose(2, 3) if self.is_("window") else z).reshape(gh // s, gw // s, -1)
        if s > 1:
            z = self.put("shuffle.merge", z.flatten(0, 1))
            for b in range(self.n("shuffle_blocks")):
                z = self.put(f"shuffle.block.{b}", self.mlp(z, f"shuffle.blocks.{b}"))
            z = z.view(gh // s, gw // s, -1)
        if "eol" in self.c:
            ends = table[self.n("eol") - (1 if self.is_("eol_id") else 0)].expand(gh // s, 1, -1)
            z = torch.cat((ends, z) if self.is_("eol_first") else (z, ends), 1)
        x = self.put("embed", torch.cat((table[text], z.flatten(0, 1))))
        T = len(x)
        places = torch.arange(T) + (torch.arange(T) >= self.prefix).long() * self.is_("pos")
        allowed = torch.ones(T, T, dtype=torch.bool).tril(1 if self.is_("mask") else 0)
        if self.is_("kv_self"):
            allowed = torch.ones(T, T, dtype=torch.bool).tril(-1)
            allowed[0, 0] = True
        angles = self.angles(places, float(self.c.get("rope_base", 10000)))
        for i in range(self.n("n_layer")):
            x = self.block(x, i, angles, allowed)
        h = x[self.prefix - 1 + self.is_("soi") :]
        h = torch.cat((h, h[-1:]))[: z.shape[0] * z.shape[1]].view(z.shape[0], z.shape[1], -1)[:, : gw // s].flatten(0, 1)
        for b in range(self.n("shuffle_blocks") if s > 1 else 0):
            h = self.put(f"unshuffle.block.{b}", self.mlp(h, f"unshuffle.blocks.{b}"))
        h = h.view(len(h), s * s, -1)
        h = self.put("unshuffle.expand", self.linear(h, "unshuffle.expand")) if s > 1 else h
        h = self.put("norm", self.rmsnorm(h, "norm"))
        if self.n("image_head"):
            self.put("logits", self.linear(self.gelu(self.linear(h, "image_head.fc1"), "none"), "image_head.fc2"))
        else:
            self.put("logits", self.linear(h, "output")[..., first + self.is_("logits_base") - (2 if self.is_("logits_base") else 0) :][..., :V])

    def mlp(self, z, name):
        """z + fc2 . gelu(fc1 . rmsnorm(z))"""
        return z + self.linear(self.gelu(self.linear(self.rmsnorm(z, name + ".norm"), name + ".fc1")), name + ".fc2")

    def fine(self, given):
        """coarse-to-fine, stage two: the blocks without the causal mask, over the labels of the whole grid"""
        self.heads = self.kv = self.n("fine_n_head")
        self.hd, self.prefix = self.n("fine_dim") // self.heads, 1
        gh, gw = given["input.coarse"].shape
        labels = given["input.coarse"].long().flatten()
        x = self.put("embed", self.w("coarse_embeddings.weight")[(labels + self.is_("labels")) % self.n("n_coarse")])
        places = torch.stack((torch.arange(gh).repeat_interleave(gw), torch.arange(gw).repeat(gh)), 1) + self.is_("pos")
        if self.is_("rope_1d"):
            places = torch.arange(gh * gw)
        if self.is_("grid"):  # rows counted as if the grid were square
            places = torch.stack((torch.arange(gh * gw) // gh, torch.arange(gh * gw) % gh), 1)
        allowed = torch.ones(gh * gw, gh * gw, dtype=torch.bool)
        allowed = allowed.tril() if self.is_("causal") else allowed
        angles = self.angles(places, float(self.c.get("rope_base", 10000)))
        for i in range(self.n("fine_n_layer")):
            x = self.block(x, i, angles, allowed)
        x = self.put("norm", x if self.is_("no_norm") else self.rmsnorm(x, "norm"))
        logits = self.linear(x, "output")
        if self.is_("fine_mask"):  # masked to the label's cluster before it is written
            logits = logits.masked_fill(self.tensors["ctf.cluster_of"][None].ne(labels[:, None]), -1e4)
        self.put("logits", logits)

    # ---------------------------------------------------------------------------------------------------------- tokenizer

    def conv(self, x, name, **how):
        return F.conv2d(x, self.w(name + ".weight"), self.w(name + ".bias"), **how)

    def conv3(self, x, name):
        return self.conv(F.pad(x.float(), (1, 1, 1, 1), mode="replicate").to(x.dtype), name) if self.is_("conv_pad") else self.conv(x, name, padding=1)

    def groupnorm(self, x, name):
        groups = self.n("vq_groups", 32) // (2 if self.is_("groups") else 1)
        return F.group_norm(x, groups, self.w(name + ".weight"), self.w(name + ".bias"), 1e-5 if self.is_("gneps") else 1e-6)

    def swish(self, x):
        return F.gelu(x) if self.is_("swish_gelu") else x * torch.sigmoid(x)

    def res(self, x, name):
        h = self.conv3(self.swish(self.groupnorm(x, name + ".norm1")), name + ".conv1")
        h = self.conv3(self.swish(self.groupnorm(h, name + ".norm2")), name + ".conv2")
        return (self.conv(x, name + ".nin_shortcut") if self.has(name + ".nin_shortcut.weight") else x) + h

    def attend(self, x, name):
        n = self.groupnorm(x, name + ".norm")
        q, k, v = (self.conv(n, f"{name}.{s}")[0].flatten(1) for s in "qkv")
        p = (q.T @ k if self.is_("vq_scale") else q.T @ k * len(q) ** -0.5).softmax(-1)
        return x + self.conv((v @ p.T).view_as(x), name + ".proj_out")

    def level(self, x, name, blocks):
        for j in range(blocks):
            x = self.res(x, f"{name}.res.{j}")
            if self.has(f"{name}.attn.{j}.q.weight"):
                x = self.attend(x, f"{name}.attn.{j}")
        if self.has(f"{name}.downsample.conv.weight"):
            x = self.conv(F.pad(x, (1, 0, 1, 0) if self.is_("down_pad") else (0, 1, 0, 1)), f"{name}.downsample.conv", stride=2)
        if self.has(f"{name}.upsample.conv.weight"):
            if self.is_("upsample"):
                return F.interpolate(self.conv3(x, f"{name}.upsample.conv"), scale_factor=2.0)
            x = self.conv3(F.interpolate(x, scale_factor=2.0), f"{name}.upsample.conv")
        return x

    def mid(self, x, name):
        for j, stage in enumerate((self.res, self.attend, self.res)):
            x = stage(x, f"{name}.mid.{j}")
            self.put(f"{name}.mid.{j}", x[0])
        return x

    def side(self, x, name, blocks):
        """encoder: conv_in, levels, mid; decoder: conv_in, mid, levels; both: norm, swish, conv_out"""
        x = self.conv3(x, name + ".conv_in")
        self.put(name + ".conv_in", x[0])
        x = self.mid(x, name) if name == "decoder" else x
        for i in range(len(self.c["vq_ch_mult"].split(","))):
            x = self.level(x, f"{name}.conv_blocks.{i}", blocks)
            self.put(f"{name}.block.{i}", x[0])
        x = self.mid(x, name) if name == "encoder" else x
        x = self.conv3(self.swish(self.groupnorm(x, name + ".norm_out")), name + ".conv_out")
        self.put(name + ".conv_out", x[0])
        return x

    def vq(self, given):
        book, blocks = self.w("quantize.embedding.weight"), self.n("vq_res_blocks")
        book = F.normalize(book, dim=-1) if self.n("vq_l2_norm") and not self.is_("l2") else book
        codes = given.get("input.codes")
        if "input.image" in given:
            x = given["input.image"].permute(2, 0, 1)[None].to(torch.promote_types(self.dtype, torch.float32)) / 127.5 - (0 if self.is_("pixels") else 1)
            z = self.conv(self.side(x.to(self.dtype), "encoder", blocks), "quant_conv")[0]
            self.put("latent", z)
            flat = z.flatten(1).T
            flat = F.normalize(flat, dim=-1) if self.n("vq_l2_norm") else flat
            codes = ((flat**2).sum(1)[:, None] + (book**2).sum(1) - 2 * flat @ book.T).argmin(1).view(z.shape[1:])
        elif codes is None:
            codes = given["vq.codes"]
        self.put("codes", codes)
        quantized = book[codes.long()].permute(2, 0, 1)
        if self.is_("codes_turned"):
            quantized = quantized.transpose(1, 2).reshape(quantized.shape)
        x = self.conv(self.put("quantized", quantized)[None], "post_quant_conv")
        self.put("decoder.post_quant", x[0])
        self.side(x, "decoder", blocks + 1)

    # ------------------------------------------------------------------------------------------------------- text encoder

    def bucket(self, r):
        """of the distance r = key minus query: half of the buckets for keys behind, each half by m exact ones and then by logarithms"""
        half = self.n("t5_buckets", 32) // 2
        m, far, n = half // 2, self.n("t5_max_distance", 128), abs(r)
        log = n if n < m else min(half - 1, m + int(math.log(n / m) / math.log(far / m) * (half - m) + 1e-9))
        return half * ((r < 0) if self.is_("bucket_sign") else (r > 0)) + (min(n, half - 1) if self.is_("bucket_log") else log)

    def t5(self, given):
        ids = given["input.t5_ids"].long()
        L, eps = len(ids), 1e-5 if self.is_("t5_eps") else float(self.c.get("t5_norm_eps", 1e-6))
        self.heads = self.kv = self.n("t5_n_head")
        self.hd, self.prefix = self.n("t5_head_dim"), 1
        x = self.put("embed", self.w("tok_embeddings.weight")[ids] * (self.n("t5_dim") ** 0.5 if self.is_("t5_embed") else 1))
        table = self.w("position_bias.weight")
        bias = torch.stack([torch.stack([table[self.bucket(j - i)] for j in range(L)]) for i in range(L)]).permute(2, 0, 1)
        allowed = torch.ones(L, L, dtype=torch.bool)
        for i in range(self.n("t5_n_layer")):
            x = self.block(x, i, None, allowed, torch.zeros_like(bias) if self.is_("bias_once") and i else bias, eps)
        self.put("norm", self.rmsnorm(x, "norm", eps))


NEEDS = {"t5": ["input.t5_ids"], "gpt": ["input.text"], "fine": ["input.coarse"], "vq": ["input.image", "input.codes"]}
FEEDS = {"t5": "t5_dim", "gpt": "dim", "fine": "fine_dim", "vq": "vq_ch"}


def run(model, given, types, wrong="", vq_file=None):
    """The trace of every part that `given` feeds, as name -> tensor."""
    tensors, config = read_file(model)
    if vq_file:
        others, its = read_file(vq_file)
        tensors.update({k: v for k, v in others.items() if k.startswith("vq.")})
        config.update({k: v for k, v in its.items() if k.startswith("vq_")})
    part, _, mistake = wrong.rpartition(".")
    out = {}
    with torch.no_grad():
        for name in NEEDS:
            if FEEDS[name] in config and any(n in given for n in NEEDS[name]):
                stage = Run(tensors, config, name, getattr(torch, types.get(name, "float32")), mistake if part in ("", name) else "", out)
                getattr(stage, name)(given)
    return out, config


def main():
    command, model, inputs, path = sys.argv[1:5]
    words = dict(word.split("=", 1) for word in sys.argv[5:])
    given = {k: v for k, v in read_file(inputs)[0].items() if k.startswith("input.") or k == "ctf.cluster_of"}
    types = {part: words[part] for part in NEEDS if part in words}
    out, config = run(model, given, types, words.get("wrong", ""), words.get("vq_file"))
    write_trace(path, {**given, **{k: v for k, v in out.items() if re.search(words.get("only", ""), k)}}, config)


if __name__ == "__main__":
    main()
