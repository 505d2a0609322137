#!/bin/sh
# The trainer's command line: the first steps of each stage against recorded digests; one thread and two, and an
# interrupted run, give the same bytes; a full disk leaves the checkpoint. Usage: test_train.sh [TRAIN] [--record]
#
#     TSAR_QUICK     set: one thread, and the tokenizer in one sitting: half of the time
TRAIN=${1:-${BUILD:-.build}/trainer}
HERE=$(dirname "$0")
WORK=$(mktemp -d) || exit 1
trap 'rm -rf "$WORK"' EXIT
export OMP_WAIT_POLICY=passive
failed=0

fail() {
    echo "FAILED test_train.sh: $*"
    failed=$((failed + 1))
}

run() { # run NAME ARGUMENTS...: trains; the result is $WORK/NAME
    name=$1
    shift
    "$TRAIN" "$@" -o "$WORK/$name" --threads "${THREADS:-1}" >/dev/null 2>"$WORK/log" || fail "$name: $(tail -n 1 "$WORK/log")"
}

digest() { sha256sum <"$WORK/$1" | cut -d ' ' -f 1; }

stages() { # the whole chain, a few steps each
    run vq vq --steps 4 --batch 2
    run codes codes --vq "$WORK/vq" -n 24
    for s in 1 2 4; do
        run "gpt$s" gpt --vq "$WORK/vq" --codes "$WORK/codes" --shuffle $s --steps 3 --batch 3 --layers 2 --vq-file vq
    done
    run gpt1-2d gpt --vq "$WORK/vq" --codes "$WORK/codes" --shuffle 1 --rope 2d --steps 3 --batch 3 --layers 2 --vq-file vq
    run gpt2-2d-eol gpt --vq "$WORK/vq" --codes "$WORK/codes" --shuffle 2 --rope 2d --eol --steps 3 --batch 3 --layers 2 --vq-file vq
    run coarse coarse --vq "$WORK/vq" --codes "$WORK/codes" --coarse 16 --steps 3 --batch 2 --layers 2
    run fine fine --vq "$WORK/vq" --codes "$WORK/codes" --coarse 16 --model "$WORK/coarse" --steps 3 --batch 2 --layers 2
    for name in vq codes gpt1 gpt2 gpt4 coarse fine gpt1-2d gpt2-2d-eol; do
        echo "$(digest $name)  $name"
    done
}

stages >"$WORK/first"
if [ "${2:-}" = --record ]; then
    cp "$WORK/first" "$HERE/train_digests.txt"
else
    diff "$HERE/train_digests.txt" "$WORK/first" >"$WORK/difference" || fail "other bytes than recorded: $(cat "$WORK/difference")"
fi

# A model without a tokenizer of its own draws with that of the file which it names.
TSAR=${TSAR:-${BUILD:-.build}/tsar}
"$TSAR" generate -q -m "$WORK/gpt2" -p 'a red circle' -o "$WORK/picture.ppm" 2>"$WORK/log" && [ -s "$WORK/picture.ppm" ] || fail "no picture from gpt2: $(cat "$WORK/log")"

# The loss of a model over the last pictures, to be given by the codes that it is of.
"$TRAIN" loss --model "$WORK/gpt2-2d-eol" --vq "$WORK/vq" --codes "$WORK/codes" -n 8 >"$WORK/log" 2>&1 && grep -Eq '^[3-7]\.[0-9]* \+- 0\.[0-9]* nats a code; its caption tells -*[0-9.]* ' "$WORK/log" ||
    fail "loss: $(cat "$WORK/log")"
for model in coarse vq nothing; do
    "$TRAIN" loss --model "$WORK/$model" --vq "$WORK/vq" --codes "$WORK/codes" -n 8 >"$WORK/log" 2>&1
    [ $? -eq 3 ] && grep -q "$WORK/$model" "$WORK/log" || fail "the loss of $model: $(cat "$WORK/log")"
done

# What the trainer computes in float32, tsar computes with rows and columns as positions and an id behind every row, too.
for model in gpt1-2d gpt2-2d-eol; do
    "$TRAIN" trace --model "$WORK/$model" --part gpt -p 'a red circle' -o "$WORK/trace" 2>"$WORK/log" &&
        "$TSAR" verify -q -m "$WORK/$model" "$WORK/trace" >"$WORK/log" 2>&1 || fail "verify $model: $(tail -n 3 "$WORK/log")"
done

# Two threads, from nothing; then in two sittings.
mkdir "$WORK/two"
cp "$WORK/vq" "$WORK/codes" "$WORK/gpt2" "$WORK/two/"
if [ -z "${TSAR_QUICK:-}" ]; then
    rm -f "$WORK"/*.checkpoint "$WORK/vq" "$WORK/codes" "$WORK/gpt2"
    THREADS=2
    run vq vq --steps 4 --batch 2
    run codes codes --vq "$WORK/vq" -n 24
    run gpt2 gpt --vq "$WORK/vq" --codes "$WORK/codes" --shuffle 2 --steps 3 --batch 3 --layers 2 --vq-file vq
    for name in vq codes gpt2; do
        cmp -s "$WORK/$name" "$WORK/two/$name" || fail "$name differs between one thread and two"
    done
    THREADS=1
    rm -f "$WORK/vq.checkpoint" "$WORK/vq"
    run vq vq --steps 4 --batch 2 --stop-after 3
    run vq vq --steps 4 --batch 2
fi
rm -f "$WORK/gpt2.checkpoint" "$WORK/gpt2"
run gpt2 gpt --vq "$WORK/vq" --codes "$WORK/codes" --shuffle 2 --steps 3 --batch 3 --layers 2 --vq-file vq --stop-after 1
run gpt2 gpt --vq "$WORK/vq" --codes "$WORK/codes" --shuffle 2 --steps 3 --batch 3 --layers 2 --vq-file vq
for name in vq gpt2; do
    cmp -s "$WORK/$name" "$WORK/two/$name" || fail "$name differs when it is trained in two sittings"
done

# Codes in two sittings: no result before all are there. Codes of another tokenizer, and damaged ones, are refused.
rm -f "$WORK/codes.checkpoint" "$WORK/codes"
run codes codes --vq "$WORK/vq" -n 24 --stop-after 1
[ ! -f "$WORK/codes" ] && [ -f "$WORK/codes.checkpoint" ] || fail "an interrupted run of codes leaves a result"
run codes codes --vq "$WORK/vq" -n 24
cmp -s "$WORK/codes" "$WORK/two/codes" && [ ! -f "$WORK/codes.checkpoint" ] || fail "codes differ when they are made in two sittings"
run vq-other vq --steps 1 --batch 1
"$TRAIN" gpt --vq "$WORK/vq-other" --codes "$WORK/codes" --steps 1 -o "$WORK/none" 2>"$WORK/log"
[ $? -eq 3 ] && grep -q 'another tokenizer' "$WORK/log" || fail "codes of another tokenizer: $(cat "$WORK/log")"
head -c $(($(wc -c <"$WORK/codes") - 1)) "$WORK/codes" >"$WORK/damaged"
printf '\177' >>"$WORK/damaged"
"$TRAIN" gpt --vq "$WORK/vq" --codes "$WORK/damaged" --steps 1 -o "$WORK/none" 2>"$WORK/log"
[ $? -eq 3 ] && grep -q 'holds the code' "$WORK/log" || fail "a code that does not exist: $(cat "$WORK/log")"

# Stage two is joined with a stage one of the same labels, which is looked at before the training.
"$TSAR" cluster -q -m "$WORK/two/vq" -k 8 --seed 1 -o "$WORK/labels" || fail "no labels"
for model in nothing gpt1 coarse labels; do
    "$TRAIN" fine --vq "$WORK/two/vq" --codes "$WORK/two/codes" --coarse 8 --model "$WORK/$model" --steps 1 -o "$WORK/none" 2>"$WORK/log"
    [ $? -eq 3 ] && grep -q "$WORK/$model" "$WORK/log" && ! grep -q 'pictures/s' "$WORK/log" || fail "stage one $model: $(cat "$WORK/log")"
done
"$TRAIN" fine --vq "$WORK/two/vq" --codes "$WORK/two/codes" --coarse 16 --seed 2 --model "$WORK/coarse" --steps 1 -o "$WORK/none" 2>"$WORK/log"
[ $? -eq 3 ] && grep -q 'labels are not those' "$WORK/log" || fail "a stage one of other labels: $(cat "$WORK/log")"

# Sampling that tsar would refuse as a model's default is refused before the training.
for flags in '--temperature 0' '--cfg 0' '--top-p 2' '--top-k 2.5' '--cfg-schedule square'; do
    # shellcheck disable=SC2086 # two words
    "$TRAIN" gpt --vq "$WORK/vq" --codes "$WORK/codes" --steps 1 -o "$WORK/none" $flags 2>"$WORK/log"
    [ $? -eq 2 ] || fail "$flags: $(cat "$WORK/log")"
done

# SIGINT, SIGTERM and SIGHUP end a run with a checkpoint from which it continues to the same bytes. (Under nohup a hangup would be ignored.)
heard='import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])'
for signal in INT TERM HUP; do
    rm -f "$WORK/long.checkpoint" "$WORK/whole.checkpoint"
    python3 -c "$heard" "$TRAIN" gpt --vq "$WORK/two/vq" --codes "$WORK/codes" --shuffle 4 --steps 20000 --batch 1 --layers 1 -o "$WORK/long" \
        2>"$WORK/log" &
    process=$!
    sleep 1
    kill -$signal $process
    wait $process || fail "SIG$signal ends a run with status $?"
    [ -f "$WORK/long.checkpoint" ] && [ ! -f "$WORK/long" ] && grep -q 'stopped after step' "$WORK/log" || fail "SIG$signal: $(tail -n 1 "$WORK/log")"
    stopped=$(sed -n 's/.*stopped after step \([0-9]*\) of.*/\1/p' "$WORK/log")
    [ $signal = INT ] || continue
    run whole gpt --vq "$WORK/two/vq" --codes "$WORK/codes" --shuffle 4 --steps 20000 --batch 1 --layers 1 --stop-after "${stopped:-1}"
    cmp -s "$WORK/long.checkpoint" "$WORK/whole.checkpoint" || fail "the checkpoint of an interrupt is another than that of as many steps"
done

# A checkpoint whose step is damaged is refused, by name.
for step in 9 x -1 01 '' 1.5 99999999999999999999; do
    python3 - "$WORK/long.checkpoint" "$WORK/hurt.checkpoint" "$step" <<'END'
import json, struct, sys
data = open(sys.argv[1], "rb").read()
size = struct.unpack("<Q", data[:8])[0]
header = json.loads(data[8:8 + size])
header["__metadata__"]["train.step"] = "20001" if sys.argv[3] == "9" else sys.argv[3]
text = json.dumps(header).encode()
text += b" " * (-len(text) % 8)
open(sys.argv[2], "wb").write(struct.pack("<Q", len(text)) + text + data[8 + size:])
END
    "$TRAIN" gpt --vq "$WORK/two/vq" --codes "$WORK/codes" --shuffle 4 --steps 20000 --batch 1 --layers 1 -o "$WORK/hurt" 2>"$WORK/log"
    [ $? -eq 3 ] && grep -q 'train.step' "$WORK/log" || fail "a checkpoint with step '$step': $(tail -n 1 "$WORK/log")"
done

# Damaged checkpoints, and a damaged set of codes: an error or a run, never a crash.
python3 - "$WORK" <<'END'
import random, struct, sys
random.seed(1)
for name in "long.checkpoint", "codes":
    data = open(sys.argv[1] + "/" + name, "rb").read()
    header = struct.unpack("<Q", data[:8])[0]
    for i in range(20):
        hurt = bytearray(data)
        for _ in range(random.randint(1, 3)):
            hurt[random.randrange(8 + header) if i % 4 else random.randrange(len(hurt))] = random.choice(b'0123456789abz",:]}\x00\xff' if i % 4 else bytes(range(256)))
        open("%s/hurt.%s.%d" % (sys.argv[1], name, i), "wb").write(hurt[:random.randrange(len(hurt))] if i == 3 else hurt)
END
for i in 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19; do
    "$TRAIN" gpt --vq "$WORK/two/vq" --codes "$WORK/codes" --shuffle 4 --steps 20000 --batch 1 --layers 1 --stop-after 1 -o "$WORK/hurt" --checkpoint "$WORK/hurt.long.checkpoint.$i" 2>"$WORK/log"
    status=$?
    [ $status -eq 0 ] || [ $status -eq 3 ] || fail "damaged checkpoint $i: status $status, $(tail -n 1 "$WORK/log")"
    "$TRAIN" gpt --vq "$WORK/two/vq" --codes "$WORK/hurt.codes.$i" --shuffle 4 --steps 20000 --batch 1 --layers 1 --stop-after 1 -o "$WORK/hurt" 2>"$WORK/log"
    status=$?
    [ $status -eq 0 ] || [ $status -eq 3 ] || fail "damaged codes $i: status $status, $(tail -n 1 "$WORK/log")"
    rm -f "$WORK/hurt.checkpoint"
done

# A full disk: status 4, and the checkpoint of before.
rm -f "$WORK/gpt2" "$WORK/gpt2.checkpoint"
run gpt2 gpt --vq "$WORK/vq" --codes "$WORK/codes" --shuffle 2 --steps 3 --batch 3 --layers 2 --vq-file vq --stop-after 1
before=$(digest gpt2.checkpoint)
(trap '' XFSZ; ulimit -f 1000; "$TRAIN" gpt --vq "$WORK/vq" --codes "$WORK/codes" --shuffle 2 --steps 3 --batch 3 --layers 2 --vq-file vq -o "$WORK/gpt2" 2>"$WORK/log")
status=$?
[ $status -eq 4 ] || fail "a full disk ends with status $status: $(tail -n 1 "$WORK/log")"
[ "$before" = "$(digest gpt2.checkpoint)" ] || fail "a full disk has damaged the checkpoint"
run gpt2 gpt --vq "$WORK/vq" --codes "$WORK/codes" --shuffle 2 --steps 3 --batch 3 --layers 2 --vq-file vq
cmp -s "$WORK/gpt2" "$WORK/two/gpt2" || fail "gpt2 differs after a full disk"

# Before its rate falls a run may get another length, afterwards not.
rm -f "$WORK/gpt2" "$WORK/gpt2.checkpoint"
run gpt2 gpt --vq "$WORK/vq" --codes "$WORK/codes" --shuffle 2 --steps 8 --batch 3 --layers 2 --vq-file vq --stop-after 1
run gpt2 gpt --vq "$WORK/vq" --codes "$WORK/codes" --shuffle 2 --steps 3 --batch 3 --layers 2 --vq-file vq
cmp -s "$WORK/gpt2" "$WORK/two/gpt2" || fail "gpt2 differs after a change of its length"
"$TRAIN" gpt --vq "$WORK/vq" --codes "$WORK/codes" --shuffle 2 --steps 8 --batch 3 --layers 2 -o "$WORK/gpt2" 2>/dev/null
[ $? -eq 3 ] || fail "another length is not refused after the rate began to fall"
rm -f "$WORK/gpt2" "$WORK/gpt2.checkpoint"
run gpt2 gpt --vq "$WORK/vq" --codes "$WORK/codes" --shuffle 2 --steps 100 --batch 3 --layers 2 --vq-file vq --stop-after 1
"$TRAIN" gpt --vq "$WORK/vq" --codes "$WORK/codes" --shuffle 2 --steps 8 --batch 3 --layers 2 -o "$WORK/gpt2" 2>/dev/null
[ $? -eq 3 ] || fail "a length with another warm-up is not refused"

# A checkpoint of another run is refused.
"$TRAIN" gpt --vq "$WORK/vq" --codes "$WORK/codes" --shuffle 4 --steps 3 --batch 3 --layers 2 -o "$WORK/other" --checkpoint "$WORK/gpt2.checkpoint" 2>/dev/null
[ $? -eq 3 ] || fail "the checkpoint of another run is not refused"

if [ $failed -eq 0 ]; then echo '1 passed, 0 failed'; else echo "0 passed, $failed failed"; fi
[ $failed -eq 0 ]
