#!/bin/sh
# Disks and names: what cannot be written is refused before the work, a full disk leaves the old file, modes and links stay, devices are written
# to, inputs are not overwritten, closed descriptors are no files. A tiny disk of its own where this user may mount one.
set -u
. tests/check.sh
tiny=${BUILD:-.build}/disk/tiny
[ -d "$tiny" ] && umount "$tiny" 2>/dev/null
check_folder disk
mkdir frames folder

"$TSAR" synth arch=token-shuffle dim=16 n_layer=1 n_head=2 n_kv_head=1 ffn_hidden=24 norm_eps=1e-5 rope=1d text_vocab=300 codebook_size=32 grid_h=6 grid_w=4 \
    shuffle=2 shuffle_blocks=1 shuffle_hidden=8 vq_ch=8 vq_ch_mult=1,2 vq_res_blocks=1 vq_z_channels=8 vq_embed_dim=4 vq_l2_norm=1 vq_groups=4 seed=7 \
    -o model.safetensors || exit 1
generate() { "$TSAR" generate -m model.safetensors -p hello -q "$@"; }
refused() { # STATUS WORDS COMMAND...: ends with the status and one line that has the words, and leaves nothing behind
    expected=$1
    words=$2
    shift 2
    before=$(find . ! -name '*.log' ! -name message | sort)
    "$@" >/dev/null 2>message
    ended=$?
    cat message
    [ $ended -eq "$expected" ] && grep -q -- "$words" message && [ "$(wc -l <message)" -eq 1 ] && [ "$(find . ! -name '*.log' ! -name message | sort)" = "$before" ]
}
generate -n 2 --codes c.safetensors -o p.png && "$TSAR" decode -q -m model.safetensors c-0.safetensors -o picture.ppm || exit 1

# Names and folders, before the work.
check 'a folder that does not exist' refused 3 'No such file' generate -o none/p.png
check 'a folder of frames that does not exist' refused 3 'No such file' generate --frames none -o q.png
check 'a folder of codes that does not exist' refused 3 'No such file' generate --codes none/c.safetensors
check 'trace into no folder' refused 3 'No such file' "$TSAR" trace -q -m model.safetensors -p hello -o none/t.safetensors
check 'a folder for a name' refused 3 'it is a folder' generate --codes folder
check 'a file for a folder' refused 3 'Not a directory' generate -o model.safetensors/p.png
check 'a name of 300 bytes' refused 3 '255 bytes' generate -o "$(printf '%0300d' 0).png"
long=$(printf '/%0200d' 1 2 3 4 5 6 7 8 9 10)
check 'a long path keeps the reason' refused 3 'No such file or directory (check the folder' generate -o "none$long/p.png"
check 'a long path that is read, too' refused 3 'No such file or directory (check the path)' "$TSAR" info "none$long/model.safetensors"
ln -s loop loop
check 'links in a circle' refused 3 'symbolic links' generate --codes loop
rm loop

# Inputs stay.
check 'the model is no output' refused 2 'would be overwritten' generate --codes ./model.safetensors
ln -s model.safetensors alias.safetensors
ln model.safetensors hard.safetensors
check 'nor is a link to it' refused 2 'would be overwritten' generate --codes alias.safetensors
check 'nor another name of it' refused 2 'would be overwritten' generate --codes hard.safetensors
rm alias.safetensors hard.safetensors
check 'encode over its picture' refused 2 'would be overwritten' "$TSAR" encode -q -m model.safetensors picture.ppm -o picture.ppm
check 'decode over its codes' refused 2 'ending\|must end\|would be overwritten' "$TSAR" decode -q -m model.safetensors c-0.safetensors -o c-0.safetensors
check 'trace over its inputs' refused 2 'would be overwritten' "$TSAR" trace -q -m model.safetensors --inputs c-0.safetensors -o c-0.safetensors
check 'synth over its likeness' refused 2 'would be overwritten' "$TSAR" synth -q --like model.safetensors -o model.safetensors
cp model.safetensors m-1.safetensors
check 'image 1 over an input' refused 2 'would be overwritten' "$TSAR" generate -q -m m-1.safetensors -p hello -n 2 --codes m.safetensors
cp model.safetensors own.safetensors
check 'cluster over its model' refused 2 '--force' "$TSAR" cluster -q -m own.safetensors -k 4 -o own.safetensors
check 'unless it is asked to' "$TSAR" cluster -q -m own.safetensors -k 4 -o own.safetensors --force
cp model.safetensors own.safetensors
check 'import over its checkpoint' refused 2 '--force' "$TSAR" import -q own.safetensors -o own.safetensors
check 'unless it is asked to, too' "$TSAR" import -q own.safetensors -o own.safetensors --force
"$TSAR" synth -q arch=token-shuffle dim=16 n_layer=1 n_head=2 n_kv_head=1 ffn_hidden=24 norm_eps=1e-5 rope=1d text_vocab=300 codebook_size=32 grid_h=6 grid_w=4 \
    shuffle=2 shuffle_blocks=1 shuffle_hidden=8 seed=7 vq_file=model.safetensors -o borrows.safetensors
check 'the file that holds the tokenizer is read, too' refused 2 'would be overwritten' "$TSAR" cluster -q -m borrows.safetensors -k 4 -o model.safetensors
check 'two outputs of one name' refused 2 'written twice' generate -o p.png --order-map ./p.png
check 'two outputs that do not exist yet' refused 2 'written twice' generate -o new.png --order-map folder/../new.png

# Modes, links, what is no file.
chmod 640 p-0.png
generate -n 2 -o p.png
check 'the mode stays' [ "$(ls -l p-0.png | cut -c 1-10)" = -rw-r----- ]
(umask 027 && generate -o masked.png)
check 'a new file has the mode of every new file' [ "$(ls -l masked.png | cut -c 1-10)" = -rw-r----- ]
ln -s ../target.png folder/link.png
generate -o folder/link.png
check 'a link stays a link' [ -L folder/link.png ]
check 'and its target is made' [ -f target.png ]
mkfifo fifo.ppm
cat fifo.ppm >from_fifo &
generate -o fifo.ppm
wait $!
generate -o file.ppm
check 'a FIFO is written to' cmp from_fifo file.ppm
check 'and stays one' [ -p fifo.ppm ]
generate -o /dev/stdout >redirected
check 'standard output into a file' cmp redirected file.ppm
printf 'before ' >appended
generate -o /dev/stdout >>appended
check 'or behind one' [ "$(head -c 9 appended)" = 'before P6' ]
generate -o /dev/stdout | cat >piped
check 'or into a pipe' cmp piped file.ppm
if command -v python3 >/dev/null 2>&1; then
    check 'a socket is written to' python3 - "$TSAR" <<'END'
import os, socket, subprocess, sys, stat
s = socket.socket(socket.AF_UNIX)
s.bind("socket.ppm")
s.listen(1)
p = subprocess.Popen([sys.argv[1], "generate", "-m", "model.safetensors", "-p", "hello", "-q", "-o", "socket.ppm"])
s.settimeout(10)
c, _ = s.accept()
data = b""
while True:
    more = c.recv(65536)
    if not more: break
    data += more
sys.exit(p.wait() or data != open("file.ppm", "rb").read() or not stat.S_ISSOCK(os.stat("socket.ppm").st_mode))
END
fi
rm -f fifo.ppm socket.ppm

# Closed descriptors.
check 'no standard output' refused 4 'standard output' sh -c "exec '$TSAR' info model.safetensors >&-"
generate -o closed.png >&- 2>&- <&-
check 'a picture without any descriptor' cmp closed.png target.png
check 'no standard input' refused 3 'standard input' sh -c "exec '$TSAR' encode -q -m model.safetensors - -o x.safetensors <&-"

# No room.
echo old >out.safetensors
check 'a device without room' refused 4 'No space left' generate -o /dev/full
limited() { (trap '' XFSZ && ulimit -f "$1" && shift && "$@"); }
check 'a file limit' refused 4 'room for\|too large' limited 8 "$TSAR" synth -q --like model.safetensors -o out.safetensors
check 'the old file is there' [ "$(cat out.safetensors)" = old ]
start=$(date +%s)
check 'more than any disk has' refused 4 'there is room for' "$TSAR" synth -q arch=token-shuffle dim=16384 n_layer=4000 n_head=128 n_kv_head=128 ffn_hidden=16777216 norm_eps=1e-5 \
    rope=1d text_vocab=300 codebook_size=16384 grid_h=6 grid_w=4 shuffle=1 seed=1 -o out.safetensors
check 'is refused at once' [ $(($(date +%s) - start)) -lt 5 ]

# A disk of 256 kB with few inodes, where it can be had.
mkdir tiny
if mount -t tmpfs -o size=256k,nr_inodes=6 none tiny 2>/dev/null; then
    echo old >tiny/out.safetensors
    check 'a tiny disk' refused 4 'room' "$TSAR" synth -q --like model.safetensors dim=64 ffn_hidden=1024 -o tiny/out.safetensors
    check 'keeps its old file' [ "$(cat tiny/out.safetensors)" = old ]
    (cd tiny && : >1 && : >2 && : >3 && : >4) 2>/dev/null
    check 'no inodes left' refused 4 'No space left' generate -o tiny/new.png
    rm -f tiny/? && head -c 250k /dev/zero >tiny/filler 2>/dev/null
    check 'no blocks left' refused 4 'No space left\|room' generate -o tiny/out.ppm
    mount -o remount,ro tiny 2>/dev/null && check 'a disk that is read only' refused 3 'Read-only' generate -o tiny/new.png
    umount tiny
else
    echo 'no disk can be mounted: the tiny one is skipped'
fi
# A folder that is read only, for whoever is not root.
mkdir locked && chmod 555 locked
if [ "$(id -u)" != 0 ]; then
    check 'a folder that is read only' refused 3 'Permission denied' generate -o locked/p.png
elif command -v setpriv >/dev/null 2>&1 && setpriv --reuid 65534 test -x "$TSAR" 2>/dev/null && setpriv --reuid 65534 test -r model.safetensors; then
    check 'a folder that is read only' refused 3 'Permission denied' setpriv --reuid 65534 --clear-groups "$TSAR" generate -q -m model.safetensors -p hello -o locked/p.png
fi
chmod 755 locked

# What comes from files and arguments moves no cursor.
evil=$(printf 'a\033[2Jb\302\233c\342\200\256d\177')
generate -o "$evil/p.png" 2>message
check 'an error without control characters' [ "$(LC_ALL=C tr -d '\040-\176\n\200-\377' <message | wc -c)" -eq 0 ]
check 'nor C1 or an override' sh -c "! LC_ALL=C grep -q \"\$(printf '\\302\\233')\" message && ! LC_ALL=C grep -q \"\$(printf '\\342\\200\\256')\" message"
"$TSAR" generate -m model.safetensors -p hello -o "$(printf 'x\033[2J\342\200\256').png" 2>message
check 'nor progress' [ "$(LC_ALL=C tr -d '\040-\176\n\200-\377' <message | wc -c)" -eq 0 ]
check_end
