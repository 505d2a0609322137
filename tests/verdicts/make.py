#!/usr/bin/env python3
"""The files of this folder whose `run` is second.py (tests/hooks/second.py, PyTorch): make.py TSAR FOLDER writes them, and their lines of expected.txt to
standard output. A file without a mistake holds the whole trace, one with a mistake the tensors around the first that it spoils, found in float64.

A mistake is `open` where its effect is below four times what the precision's own run, without the mistake, is off float64 at that tensor."""
import os
import re
import subprocess
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "hooks"))
import torch  # noqa: E402
from second import NEEDS, read_file, run, write_trace  # noqa: E402

GPT = "dim=32 n_layer=2 n_head=4 n_kv_head=2 ffn_hidden=48 norm_eps=1e-5 rope=1d codebook_size=40"
EIGHT = GPT.replace("dim=32", "dim=64").replace("n_head=4 n_kv_head=2", "n_head=8 n_kv_head=8")
FINE = "n_coarse=8 fine_dim=32 fine_n_layer=2 fine_n_head=2 fine_ffn_hidden=48"
VQ = "vq_ch=8 vq_ch_mult=1,2 vq_res_blocks=1 vq_z_channels=8 vq_embed_dim=4 vq_l2_norm=1 vq_groups=4"
IDS = "norm_eps=1e-5 rope=1d dim=48 n_layer=2 n_head=8 ffn_hidden=64 codebook_size=40 grid_h=4 grid_w=4 vocab_size=100"
TEXT = [0, 7, 9, 21, 4, 1]
MODELS = {  # name: synth's keys, ids of the prefix
    "s1": (f"arch=token-shuffle {GPT} text_vocab=30 shuffle=1 grid_h=4 grid_w=6 seed=21", TEXT),
    "ctf": (f"arch=token-shuffle {GPT} text_vocab=30 shuffle=1 {FINE} grid_h=4 grid_w=6 seed=22", TEXT),
    "parts": (f"arch=token-shuffle {GPT} text_vocab=30 shuffle=2 shuffle_blocks=1 shuffle_hidden=32 {VQ} grid_h=4 grid_w=6 seed=23", TEXT),
    "lumina": (f"arch=lumina-mgpt {IDS} n_kv_head=4 qk_norm=2 image_base=4 eol=80 seed=24", TEXT),
    "lumina34": (f"arch=lumina-mgpt {IDS} n_kv_head=4 qk_norm=8 norm_order=post image_base=4 eol=80 seed=25", TEXT),
    "emu3": (f"arch=emu3 {IDS} n_kv_head=2 rope_base=1000000 image_base=40 eol=20 seed=26", TEXT),
    "janus": (f"arch=janus {IDS} n_kv_head=8 image_embed=8 image_head=48 seed=27", TEXT),
    "heads": (f"arch=token-shuffle {EIGHT} text_vocab=30 shuffle=1 grid_h=4 grid_w=6 seed=28", TEXT),
    "t5": ("t5_vocab=160 t5_dim=32 t5_n_layer=3 t5_n_head=4 t5_head_dim=8 t5_ffn_hidden=80 seed=29", None),
}
F32, BF16 = "float32", "bfloat16"
MIXED = "gpt=bfloat16,vq=float32"
FILES = {  # name: {precision: mistakes}; "" is none
    "s1": {F32: ["", "eps", "kv_slot"], BF16: ["", "eps", "rope_half", "soi", "pos", "id_base", "logits_base", "krot", "mask", "scale", "gqa", "kv_self"]},
    "ctf": {
        F32: ["", "fine.eps", "fine.rope_full", "fine.rope_swap"],
        BF16: ["", "fine.eps"] + [f"fine.{m}" for m in "causal rope_1d rope_half rope_base rope_full grid scale no_norm labels silu_gelu fine_mask".split()],
        "gpt=bfloat16,fine=float32": ["", "fine.eps", "gpt.scale"],
        "gpt=float32,fine=bfloat16": ["", "gpt.eps", "fine.rope_swap"],
    },
    "parts": {MIXED: ["", "vq.gneps", "vq.down_pad", "gpt.eps", "gpt.rope_half", "gpt.window"], "gpt=float32,vq=bfloat16": ["", "gpt.eps", "vq.upsample"]},
    "lumina": {F32: ["", "qk_eps"], BF16: ["", "qk_after", "qk_rows", "qk_rms", "qk_bias", "eol_id", "rope_half"]},
    "lumina34": {F32: [""], BF16: ["", "pre"]},
    "emu3": {F32: ["", "eps"], BF16: ["", "rope_base", "eol_first"]},
    "janus": {F32: ["", "gelu_form"], BF16: ["", "no_bias", "gelu_silu"]},
    "heads": {F32: ["", "head_q", "head_v"], BF16: ["", "head_q", "head_k", "head_v", "v_head"]},
    "t5": {F32: ["", "t5_eps", "gelu_form"], BF16: ["", "t5_scale", "bucket_sign", "bucket_log", "bias_once", "t5_eps"]},
}


def picture(h, w):
    torch.manual_seed(1)
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    wave = lambda k: 127 + 90 * torch.sin(y / 5 + k) * torch.cos(x / (3 + k)) + 20 * torch.randn(h, w)
    return torch.stack([wave(k).clamp(0, 255) for k in range(3)], -1).to(torch.uint8)


def inputs(config, text):
    torch.manual_seed(2)
    grid = [int(config.get(k, 0)) for k in ("grid_h", "grid_w")]
    given = {"input.text": torch.tensor(text)} if text else {"input.t5_ids": torch.tensor(list(range(3, 90, 3)) + [1])}
    if "n_coarse" in config:
        given["input.coarse"] = torch.randint(int(config["n_coarse"]), grid)
    elif text:
        given["input.codes"] = torch.randint(int(config["codebook_size"]), grid)
    if "vq_ch" in config:
        given["input.image"] = picture(grid[0] * 2, grid[1] * 2)
    return given


def rms(x):
    return x.double().pow(2).mean().sqrt().item()


def first_wrong(good, bad):
    """The first tensor that the mistake changes, and by how much of its RMS."""
    for name, x in good.items():
        if not torch.equal(x, bad[name]):
            return name, rms(x.double() - bad[name].double()) / rms(x)
    return None, 0


def make(tsar, folder, name, keys, text, precision, mistake):
    types = dict(p.split("=") for p in precision.split(",")) if "=" in precision else {part: precision for part in NEEDS}
    model = os.path.join(folder, "model")
    weights = "bf16" if precision == BF16 else "f32"
    subprocess.run([tsar, "synth", "-q", *keys.split(), "--dtype", weights, "-o", model], check=True)
    given = inputs(dict(k.split("=") for k in keys.split()), text)
    wide = dict.fromkeys(NEEDS, "float64")
    outside = lambda out: {k: v for k, v in out.items() if not re.search(r"\.(q|k|v|attn|h|ffn)$", k)}
    good, bad = (outside(run(model, given, wide, m)[0]) for m in ("", mistake))
    out, config = run(model, given, types, mistake)
    out, kind, wrong = outside(out), "same", "-"
    if mistake:
        wrong, effect = first_wrong(good, bad)
        right = outside(run(model, given, types)[0])
        noise = rms(right[wrong].double() - good[wrong].double()) / rms(good[wrong]) if out[wrong].is_floating_point() else 0
        kind = "differs" if effect > 4 * noise else "open"
        names = list(out)
        at, part = names.index(wrong), wrong.split(".")[0] + "."
        other = [n for n in names if not n.startswith(part)][-1:]  # the other part's precision is to be told, too
        out = {n: x for n, x in out.items() if n in names[max(at - 1, 0) : at + 2] or n in other}
    file = ".".join([name, precision.replace("=", "-").replace(",", "_"), mistake or "none", "second"])
    meta = {**config, "run": f"second.py, {precision}", "bug": mistake or "none", "expect": kind if wrong == "-" else f"{kind} {wrong}"}
    write_trace(os.path.join(folder, file + ".safetensors"), {**given, **out}, meta)
    os.remove(model)
    print(file, weights, kind, wrong, flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, precisions in FILES.items():
        for precision, mistakes in precisions.items():
            for mistake in mistakes:
                make(sys.argv[1], sys.argv[2], name, *MODELS[name], precision, mistake)
