#!/bin/sh
# Signals at any moment: the process ends by the signal, no temporary file stays, the old file is whole; a batch that is interrupted keeps
# what is finished and --resume makes the rest, byte for byte. The trainer's signals: test_train.sh.
set -u
. tests/check.sh
check_folder signals
mkdir out

shape='arch=token-shuffle dim=32 n_layer=2 n_head=2 n_kv_head=1 ffn_hidden=64 norm_eps=1e-5 rope=1d text_vocab=300 codebook_size=512 shuffle=2 shuffle_blocks=1
       shuffle_hidden=8 vq_ch=8 vq_ch_mult=1,2 vq_res_blocks=1 vq_z_channels=8 vq_embed_dim=4 vq_l2_norm=1 vq_groups=4 seed=7'
# shellcheck disable=SC2086 # many arguments
"$TSAR" synth $shape grid_h=16 grid_w=16 -o model.safetensors || exit 1
generate() { "$TSAR" generate -m model.safetensors -p hello -q "$@"; }

if ! command -v python3 >/dev/null 2>&1; then
    echo 'no python3: signals cannot be timed'
    echo '0 passed, 0 failed'
    exit 0
fi

# kill_at SIGNAL DELAY COMMAND...: sends the signal when DELAY seconds are over, or as soon as a temporary file is there (DELAY "tmp"); prints
# how the command ended: its signal or "status N".
cat >kill_at.py <<'END'
import glob, signal, subprocess, sys, time
number, delay = getattr(signal, "SIG" + sys.argv[1]), sys.argv[2]
if delay == "tmp": # the tests themselves may run under nohup
    signal.signal(number, signal.SIG_DFL)
process = subprocess.Popen(sys.argv[3:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
end = time.monotonic() + (20 if delay == "tmp" else float(delay))
while process.poll() is None and time.monotonic() < end and not (delay == "tmp" and glob.glob("out/*.tmp")):
    time.sleep(0.0002)
process.send_signal(number)
process.wait(30)
print(signal.Signals(-process.returncode).name if process.returncode < 0 else "status %d" % process.returncode)
END

no_temporary() { [ -z "$(find . -name '*.tmp')" ]; }

# A file that takes long to write, killed while it is written.
big="n_layer=24 dim=768 ffn_hidden=3072 n_head=12 grid_h=16 grid_w=16"
echo old >old
for signal in INT TERM HUP PIPE XCPU; do
    cp old out/big.safetensors
    # shellcheck disable=SC2086
    ended=$(python3 kill_at.py $signal tmp "$TSAR" synth $shape $big -o out/big.safetensors)
    check "SIG$signal ends synth by itself ($ended)" [ "$ended" = "SIG$signal" ]
    check "SIG$signal leaves no temporary file" no_temporary
    check "SIG$signal leaves the old file" cmp old out/big.safetensors
done

# nohup stays what it is.
ended=$( (trap '' HUP && python3 kill_at.py HUP 0.05 "$TSAR" generate -m model.safetensors -p hello -q -n 4 -o out/hup.png))
check "a hangup that is ignored is ignored ($ended)" [ "$ended" = "status 0" ]

# At moments of every kind: whatever is there afterwards is whole, and resuming gives the bytes of a run without interruption.
mkdir whole
generate -n 12 --codes whole/c.safetensors -o whole/p.png
first=0
for delay in 0.01 0.03 0.06 0.09 0.12 0.16 0.2 0.25; do
    rm -f p-*.png c-*.safetensors
    for signal in TERM KILL; do
        python3 kill_at.py $signal $delay "$TSAR" generate -m model.safetensors -p hello -q -n 12 --codes c.safetensors -o p.png >/dev/null
        [ $signal = KILL ] || check "no temporary file after $delay s" no_temporary
        find . -name '*.tmp' -exec rm -f {} +
    done
    for i in 0 1 2 3 4 5 6 7 8 9 10 11; do
        [ ! -f p-$i.png ] || cmp -s p-$i.png whole/p-$i.png || first=1
    done
done
check 'a picture that is there after a signal is whole' [ $first -eq 0 ]
cp whole/p-0.png p-0.png && cp whole/c-0.safetensors c-0.safetensors
stamp=$(ls -i p-0.png)
generate -n 12 --codes c.safetensors -o p.png --resume
same=0
for i in 0 1 2 3 4 5 6 7 8 9 10 11; do cmp -s p-$i.png whole/p-$i.png && cmp -s c-$i.safetensors whole/c-$i.safetensors && same=$((same + 1)); done
check "--resume gives the bytes of one run ($same of 12)" [ $same -eq 12 ]
check '--resume leaves what is there' [ "$(ls -i p-0.png)" = "$stamp" ]
rm p-7.png && head -c 200 whole/p-3.png >p-3.png && cp whole/p-5.png p-4.png
generate -n 12 -o p.png --codes c.safetensors --resume
same=0
for i in 3 4 7; do cmp -s p-$i.png whole/p-$i.png && same=$((same + 1)); done
check '--resume makes what is missing or cut short, or is of another image' [ $same -eq 3 ]
generate -n 12 -o p.png --codes c.safetensors --seed 1 --resume
check '--resume makes what another command made' [ "$(cmp p-0.png whole/p-0.png >/dev/null 2>&1; echo $?)" = 1 ]

# Two writers of one name, many times: always one or the other, whole.
bad=0
for round in 1 2 3 4 5 6; do
    generate --seed 1 -o both.png &
    first=$!
    generate --seed 2 -o both.png &
    wait $first || bad=1
    wait $! || bad=1
    generate --seed 1 -o one.png && generate --seed 2 -o two.png
    cmp -s both.png one.png || cmp -s both.png two.png || bad=1
done
check 'two writers: the result is one of both' [ $bad -eq 0 ]
check 'two writers leave no temporary file' no_temporary
check_end
