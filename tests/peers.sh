#!/bin/sh
# The same work in PyTorch and in tsar, in turns, on one thread: one token of LlamaGen's GPT-B (12 layers of 768, vocabulary 16384, 128 tokens before it),
# the same for a pair of sequences (classifier-free guidance), and the VQ-16 decoder from 16 x 16 codes to 256 x 256 pixels. PyTorch computes in
# float32 and in float64, tsar in double with float32 weights. Processor time, the best of the rounds; on a busy machine only ratios mean anything.
#
#     sh tests/peers.sh [ROUNDS]      default: 1, about three minutes
#
# Needs a python3 with torch (Debian: python3-torch, and libopenblas0, without which it takes a slow BLAS) and 0.7 GB in TMPDIR (.build).
set -eu
TSAR=${TSAR:-./tsar}
rounds=${1:-1}
python=
for candidate in ${PYTHON:-python3 /usr/bin/python3}; do
    if [ -z "$python" ] && "$candidate" -c 'import torch' 2>/dev/null; then python=$candidate; fi
done
[ -n "$python" ] || { echo 'peers.sh: no python3 with torch here (Debian: apt-get install python3-torch libopenblas0; PYTHON=... names another one)'; exit 1; }
dir=$(mktemp -d "${TMPDIR:-.build}/peers.XXXXXX")
trap 'rm -rf "$dir"' EXIT

cat >"$dir/peer.py" <<'END'
import sys, time, torch
import torch.nn.functional as F

torch.set_num_threads(1)
torch.set_grad_enabled(False)
kind = {"float32": torch.float32, "float64": torch.float64}[sys.argv[1]]
DIM, LAYERS, HEADS, HIDDEN, VOCAB, BEFORE = 768, 12, 12, 2048, 16384, 128
torch.manual_seed(1)


def best(work, least=3, seconds=3.0):
    work()
    times, start = [], time.process_time()
    while len(times) < least or time.process_time() - start < seconds:
        t = time.process_time()
        work()
        times.append(time.process_time() - t)
    return min(times)


def matrix(rows, columns):
    return torch.randn(rows, columns, dtype=kind) * columns ** -0.5


def norm(x, weight):
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-5) * weight


def rotate(x, turn):  # [B, HEADS, 1, head] by the angles of one position
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turn).flatten(-2)


layers = [dict(qkv=matrix(3 * DIM, DIM), out=matrix(DIM, DIM), gate=matrix(HIDDEN, DIM), up=matrix(HIDDEN, DIM), down=matrix(DIM, HIDDEN)) for _ in range(LAYERS)]
head, ones = matrix(VOCAB, DIM), torch.ones(DIM, dtype=kind)
turn = torch.polar(torch.ones(DIM // HEADS // 2, dtype=kind), torch.arange(DIM // HEADS // 2, dtype=kind))


def token(batch):
    cache = [torch.randn(2, batch, HEADS, BEFORE + 1, DIM // HEADS, dtype=kind) for _ in range(LAYERS)]
    start = torch.randn(batch, DIM, dtype=kind)

    def work():
        x = start
        for layer, kv in zip(layers, cache):
            q, k, v = (F.linear(norm(x, ones), layer["qkv"])).view(batch, 3, HEADS, 1, -1).unbind(1)
            kv[0, :, :, -1:], kv[1, :, :, -1:] = rotate(k, turn), v
            p = torch.softmax(rotate(q, turn) @ kv[0].transpose(-1, -2) * (DIM // HEADS) ** -0.5, -1)
            x = x + F.linear((p @ kv[1]).reshape(batch, DIM), layer["out"])
            h = norm(x, ones)
            x = x + F.linear(F.silu(F.linear(h, layer["gate"])) * F.linear(h, layer["up"]), layer["down"])
        return F.linear(norm(x, ones), head)

    return best(work)


def conv(cin, cout, size=3):
    return torch.randn(cout, cin, size, size, dtype=kind) * (cin * size * size) ** -0.5


def residual(cin, cout):
    return dict(a=conv(cin, cout), b=conv(cout, cout), short=conv(cin, cout, 1) if cin != cout else None)


def activate(x):
    return F.silu(F.group_norm(x, 32, eps=1e-6))


def decoder():  # VQ-16: widths 512, 256, 256, 128, 128 from 16 x 16 up, two and one residual blocks a level, attention in the middle and at 16 x 16
    widths = [512, 256, 256, 128, 128]
    levels, inside = [], 512
    middle = [residual(512, 512), residual(512, 512)]
    attention = [[conv(512, 512, 1) for _ in range(4)] for _ in range(4)]
    for i, width in enumerate(widths):
        blocks = []
        for _ in range(3):
            blocks.append(residual(inside, width))
            inside = width
        levels.append((blocks, conv(width, width) if i < 4 else None))
    post, first, last = conv(8, 256, 1), conv(256, 512), conv(128, 3)
    codes = torch.randn(1, 8, 16, 16, dtype=kind)

    def block(x, w):
        h = F.conv2d(activate(x), w["a"], padding=1)
        h = F.conv2d(activate(h), w["b"], padding=1)
        return h + (x if w["short"] is None else F.conv2d(x, w["short"]))

    def attend(x, w):
        h = F.group_norm(x, 32, eps=1e-6)
        q, k, v = (F.conv2d(h, w[i]).flatten(2) for i in range(3))
        p = torch.softmax(q.transpose(1, 2) @ k * x.shape[1] ** -0.5, -1)
        return x + F.conv2d((v @ p.transpose(1, 2)).view_as(x), w[3])

    def work():
        x = F.conv2d(F.conv2d(codes, post), first, padding=1)
        x = block(attend(block(x, middle[0]), attention[0]), middle[1])
        for i, (blocks, up) in enumerate(levels):
            for j, w in enumerate(blocks):
                x = block(x, w)
                if i == 0:
                    x = attend(x, attention[1 + j])
            if up is not None:
                x = F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), up, padding=1)
        return F.conv2d(activate(x), last, padding=1)

    return best(work, least=1, seconds=0.0)


print("token", token(1))
print("pair", token(2))
print("decode", decoder())
END

"$TSAR" synth -q arch=llamagen-c2i dim=768 n_layer=12 n_head=12 n_kv_head=12 ffn_hidden=2048 norm_eps=1e-5 rope=2d codebook_size=16384 grid_h=16 grid_w=16 \
    num_classes=1000 cond_tokens=1 vq_ch=128 vq_ch_mult=1,1,2,2,4 vq_res_blocks=2 vq_z_channels=256 vq_embed_dim=8 vq_l2_norm=1 -o "$dir/model.safetensors"
round=0
while [ $round -lt "$rounds" ]; do
    "$TSAR" bench "$dir/model.safetensors" --threads 1 -q >"$dir/bench.txt"
    awk -F '|' '/one token, time/ { ms = $3; print "tsar token", ms / 1000 } /CFG pair/ { print "tsar pair", $3 * ms / 1000 }
        /time of a picture/ { print "tsar decode", $3 + 0 }' "$dir/bench.txt" >>"$dir/times"
    for kind in float32 float64; do "$python" "$dir/peer.py" $kind | sed "s/^/$kind /" >>"$dir/times"; done
    round=$((round + 1))
done
awk '{ key = $1 " " $2; if (!(key in best) || $3 < best[key]) best[key] = $3 }
    END {
        print "| seconds, one thread | tsar | PyTorch float32 | PyTorch float64 | float32 / tsar | float64 / tsar |\n| --- | --- | --- | --- | --- | --- |"
        n = split("token:GPT-B, one token;pair:GPT-B, CFG pair;decode:VQ-16, 256 x 256 pixels", rows, ";")
        for (i = 1; i <= n; i++) {
            split(rows[i], row, ":")
            t = best["tsar " row[1]]; a = best["float32 " row[1]]; b = best["float64 " row[1]]
            printf "| %s | %.4f | %.4f | %.4f | %.2f | %.2f |\n", row[2], t, a, b, a / t, b / t
        }
    }' "$dir/times"
"$python" -c 'import torch; print("PyTorch " + torch.__version__)'
