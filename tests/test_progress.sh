#!/bin/sh
# A long computation shows how far it is: on a terminal, not with -q, not in a file; and changes no bit.
set -u
. tests/check.sh
t5like=$PWD/tests/vectors/t5/t5like.model
check_folder progress

if ! command -v python3 >/dev/null 2>&1 || ! python3 -c 'import os, pty; m, s = pty.openpty(); os.close(m)' 2>/dev/null; then
    echo 'no terminal can be had (python3): progress is not tested'
    echo '0 passed, 0 failed'
    exit 0
fi
# on_terminal COMMAND...: runs it with a terminal for standard error, whose text goes to `seen`, a line for each time that it was drawn.
cat >on_terminal.py <<'END'
import os, pty, subprocess, sys
master, slave = pty.openpty()
process = subprocess.Popen(sys.argv[1:], stderr=slave, stdout=subprocess.DEVNULL)
os.close(slave)
text = b""
while True:
    try:
        more = os.read(master, 65536)
    except OSError:
        break
    if not more:
        break
    text += more
open("seen", "wb").write(text.replace(b"\r", b"\n"))
sys.exit(process.wait())
END
on_terminal() { python3 on_terminal.py "$@"; }
drawn() { # WORDS COMMAND...: it draws these words, and nothing of it stays: the last that it draws of them is followed by a cleared line
    words=$1
    shift
    on_terminal "$@" || return 1
    cat seen
    grep -q "^\[=* *\] $words: [0-9]* %, [0-9]* s left" seen && ! tail -n 1 seen | grep -q "$words"
}
silent() { on_terminal "$@" && ! grep -q '\[=* *\]' seen; }

"$TSAR" synth arch=token-shuffle dim=512 n_layer=4 n_head=8 n_kv_head=2 ffn_hidden=1536 norm_eps=1e-5 rope=1d text_vocab=300 codebook_size=32 grid_h=6 grid_w=4 \
    shuffle=2 shuffle_blocks=1 shuffle_hidden=8 seed=7 -q -o model.safetensors || exit 1
ids=0$(awk 'BEGIN { for (i = 0; i < 900; i++) printf ",%d", 3 + i % 250 }'),1
check 'generate' drawn prompt "$TSAR" generate -m model.safetensors --prompt-ids "$ids" --cfg 1 --codes codes.safetensors
check 'it goes on with tokens' grep -q '^\[=* *\] [0-9]*/6 tokens' seen
check 'its first pass leaves no rate of the prompt' sh -c "! grep '^\[=* *\] 1/6 tokens, ' seen"
check 'with -q nothing' silent "$TSAR" generate -q -m model.safetensors --prompt-ids "$ids" --cfg 1 --codes quiet.safetensors
check 'the same bytes' cmp codes.safetensors quiet.safetensors
"$TSAR" generate -m model.safetensors --prompt-ids "$ids" --cfg 1 --codes quiet.safetensors 2>message
check 'not into a file' sh -c '! grep -q "\[" message'
check 'score' drawn prompt "$TSAR" score -m model.safetensors codes.safetensors
check 'trace' drawn transformer "$TSAR" trace -m model.safetensors --inputs codes.safetensors --only 'gpt.logits' -o trace.safetensors
check 'verify, a trace' drawn transformer "$TSAR" verify -m model.safetensors trace.safetensors
check 'verify, a decoding' drawn prompt "$TSAR" verify -m model.safetensors codes.safetensors

mkdir t5
"$TSAR" synth t5_vocab=1500 t5_dim=512 t5_n_layer=16 t5_n_head=8 t5_head_dim=64 t5_ffn_hidden=2048 t5_clean=llamagen seed=3 --dtype bf16 -q -o t5/model.safetensors &&
    cp "$t5like" t5/spiece.model && "$TSAR" import -q t5/model.safetensors -o t5.safetensors
rm -r t5
"$TSAR" synth arch=llamagen-t2i dim=16 n_layer=1 n_head=2 n_kv_head=2 ffn_hidden=8 norm_eps=1e-5 rope=2d codebook_size=16 grid_h=4 grid_w=4 cond_tokens=120 \
    caption_dim=512 seed=3 -q -o t2i.safetensors
caption=$(awk 'BEGIN { for (i = 0; i < 40; i++) printf "a cat on a red chair " }')
check 'a caption' drawn 'text encoder' "$TSAR" generate -m t2i.safetensors --text-model t5.safetensors -p "$caption" --codes caption.safetensors
rm -f ./*.safetensors
check_end
