#!/bin/sh
# The same bits with other compilers and on other CPUs (SPEC 1): builds tests/bits.c and the command line for each target, runs both under
# emulation, two targets at a time. The digests must be those of tests/digests.txt, and the files that the command line writes those of
# the first target, which is this machine's own compiler, byte for byte.
#
#     sh tests/cpus.sh [TARGET ...]               all targets by default; what is not installed is skipped
#     sh tests/cpus.sh --packages [TARGET ...]    Debian's packages for them: apt-get install --no-install-recommends $(sh tests/cpus.sh --packages)
#     sh tests/cpus.sh --table                    the table of targets
#
# Never gcc-multilib, which removes every cross compiler. BUILD, JOBS (2) and CC are respected.
set -u
BUILD=${BUILD:-.build}
JOBS=${JOBS:-2}
CC=${CC:-cc}
export BUILD CC
work=$BUILD/cpus
strict='-std=c99 -ffp-contract=off -D_FILE_OFFSET_BITS=64 -DTSAR_NO_PNG -DTSAR_DATADIR="."'
warnings='-pedantic -Wall -Wextra -Wshadow -Wconversion -Werror'

# name | compiler and its flags | what runs the programs | what runs: digests (d), the command line too (c) | Debian packages
table() {
    cat <<'END'
own|$CC -O2||c|gcc
plain-c|$CC -O2 -U__unix__||c|gcc
gcc-12-O0|gcc-12 -O0||d|gcc-12
gcc-12-O1|gcc-12 -O1||d|gcc-12
gcc-12-O3|gcc-12 -O3||d|gcc-12
gcc-12-Os|gcc-12 -Os||d|gcc-12
gcc-12-lto|gcc-12 -O2 -flto=1||c|gcc-12
gcc-12-native|gcc-12 -O3 -march=native -mprefer-vector-width=512||c|gcc-12
gcc-11|gcc-11 -O2||c|gcc-11 libc6-dev
clang-14-O0|clang-14 -O0||d|clang-14
clang-14-O1|clang-14 -O1||d|clang-14
clang-14-O2|clang-14 -O2||c|clang-14
clang-14-O3|clang-14 -O3||d|clang-14
clang-14-Os|clang-14 -Os||d|clang-14
clang-14-lto|clang-14 -O2 -flto||d|clang-14 lld
clang-14-native|clang-14 -O3 -march=native -mprefer-vector-width=512||d|clang-14
clang-15|clang-15 -O2||d|clang-15
clang-16|clang-16 -O3||d|clang-16
clang-19|clang-19 -O3 -march=native||c|clang-19
tcc|tcc||c|tcc
musl|musl-gcc -O2 -static||c|musl-tools
i686|i686-linux-gnu-gcc -O2 -static -msse2 -mfpmath=sse|qemu-i386|c|gcc-i686-linux-gnu libc6-dev-i386-cross
i686-x87|i686-linux-gnu-gcc -O2 -static -mfpmath=387 -mno-sse|qemu-i386|c|gcc-i686-linux-gnu libc6-dev-i386-cross
aarch64|aarch64-linux-gnu-gcc -O2 -static|qemu-aarch64|c|gcc-aarch64-linux-gnu libc6-dev-arm64-cross
armhf|arm-linux-gnueabihf-gcc -O2 -static|qemu-arm|c|gcc-arm-linux-gnueabihf libc6-dev-armhf-cross
armel|arm-linux-gnueabi-gcc -O2 -static|qemu-arm|c|gcc-arm-linux-gnueabi libc6-dev-armel-cross
riscv64|riscv64-linux-gnu-gcc -O2 -static|qemu-riscv64|c|gcc-riscv64-linux-gnu libc6-dev-riscv64-cross
s390x|s390x-linux-gnu-gcc -O2 -static|qemu-s390x|c|gcc-s390x-linux-gnu libc6-dev-s390x-cross
powerpc|powerpc-linux-gnu-gcc -O2 -static|qemu-ppc|c|gcc-powerpc-linux-gnu libc6-dev-powerpc-cross
ppc64|powerpc64-linux-gnu-gcc -O2 -static|qemu-ppc64|c|gcc-powerpc64-linux-gnu libc6-dev-ppc64-cross
ppc64le|powerpc64le-linux-gnu-gcc -O2 -static|qemu-ppc64le|c|gcc-powerpc64le-linux-gnu libc6-dev-ppc64el-cross
mips|mips-linux-gnu-gcc -O2 -static|qemu-mips|c|gcc-mips-linux-gnu libc6-dev-mips-cross
mipsel|mipsel-linux-gnu-gcc -O2 -static|qemu-mipsel|c|gcc-mipsel-linux-gnu libc6-dev-mipsel-cross
mips64|mips64-linux-gnuabi64-gcc -O2 -static|qemu-mips64|c|gcc-mips64-linux-gnuabi64 libc6-dev-mips64-cross
mips64el|mips64el-linux-gnuabi64-gcc -O2 -static|qemu-mips64el|c|gcc-mips64el-linux-gnuabi64 libc6-dev-mips64el-cross
mipsn32|mips64-linux-gnuabi64-gcc -O2 -static -mabi=n32|qemu-mipsn32|c|gcc-mips64-linux-gnuabi64 libc6-dev-mips64-cross libc6-dev-mipsn32-mips64-cross libn32gcc-12-dev-mips64-cross
mipsr6el|mipsisa32r6el-linux-gnu-gcc -O2 -static|qemu-mipsel -cpu mips32r6-generic|c|gcc-mipsisa32r6el-linux-gnu libc6-dev-mipsr6el-cross
mips64r6|mipsisa64r6-linux-gnuabi64-gcc -O2 -static|qemu-mips64 -cpu I6400|c|gcc-mipsisa64r6-linux-gnuabi64 libc6-dev-mips64r6-cross
sparc32|sparc64-linux-gnu-gcc -O2 -static -m32|qemu-sparc32plus|c|gcc-sparc64-linux-gnu libc6-dev-sparc64-cross libc6-dev-sparc-sparc64-cross lib32gcc-12-dev-sparc64-cross
sparc64|sparc64-linux-gnu-gcc -O2 -static|qemu-sparc64|c|gcc-sparc64-linux-gnu libc6-dev-sparc64-cross
hppa|hppa-linux-gnu-gcc -O2 -static|qemu-hppa|c|gcc-hppa-linux-gnu libc6-dev-hppa-cross
alpha|alpha-linux-gnu-gcc -O2 -mieee|qemu-alpha -L /usr/alpha-linux-gnu|c|gcc-alpha-linux-gnu libc6.1-dev-alpha-cross
m68k|m68k-linux-gnu-gcc -O2 -static|qemu-m68k|c|gcc-m68k-linux-gnu libc6-dev-m68k-cross
cortex-m3|arm-none-eabi-gcc -O2 -mcpu=cortex-m3 -mthumb --specs=picolibc.specs|board|d|gcc-arm-none-eabi picolibc-arm-none-eabi qemu-system-arm
wasm32|clang-14 --target=wasm32-wasi -O2|browser|c|clang-14 wasi-libc libclang-rt-14-dev-wasm32 lld nodejs
windows|x86_64-w64-mingw32-gcc-win32 -O2 -static|windows|c|gcc-mingw-w64-x86-64-win32 wine64
END
}

# ---- how programs run on targets that are no Linux ---------------------------------------------------------------------

# PROGRAM ARGUMENT...: on an mps2-an385 board (Cortex-M3, no floating-point unit, 4 MB for code, 16 MB of memory); files by semihosting.
board() {
    program=$1 arguments=
    shift # the board's libc names the program itself
    for argument in "$@"; do arguments=$arguments,arg=$argument; done
    qemu-system-arm -M mps2-an385 -display none -monitor none -serial none -semihosting-config "enable=on,target=native$arguments" -kernel "$program"
}

# What that board's libc lacks: rename, a call of the semihosting interface (SYS_RENAME, 0x0F).
board_support() {
    cat <<'END'
#include <stdio.h>
#include <string.h>
int rename(const char *from, const char *to)
{
    const void *arguments[4] = { from, (const void *)strlen(from), to, (const void *)strlen(to) };
    register int r0 __asm__("r0") = 0x0F;
    register const void *r1 __asm__("r1") = arguments;
    __asm__ __volatile__("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}
END
}
board_memory='--oslib=semihost --crt0=semihost -Wl,--defsym=__flash=0 -Wl,--defsym=__flash_size=0x400000 -Wl,--defsym=__ram=0x21000000 -Wl,--defsym=__ram_size=0x1000000 -Wl,--defsym=__stack_size=0x40000'

browser() {
    node --no-warnings -e '
        const { WASI } = require("node:wasi"), fs = require("node:fs");
        const wasi = new WASI({ version: "preview1", args: process.argv.slice(1), preopens: { ".": "." }, returnOnExit: true });
        WebAssembly.instantiate(fs.readFileSync(process.argv[1]), { wasi_snapshot_preview1: wasi.wasiImport })
            .then(({ instance }) => { process.exitCode = wasi.start(instance); });' "$@"
}

windows() { LC_ALL=C.UTF-8 WINEPREFIX=$PWD/wine WINEDEBUG=-all "$wine" "$@"; }
wine=$(command -v wine64 || echo /usr/lib/wine/wine64)

# ---- one target --------------------------------------------------------------------------------------------------------

find_target() { # NAME -> compiler, runner, runs, packages
    row=$(table | grep "^$1|") || { echo "cpus.sh: unknown target $1" >&2; exit 2; }
    row=${row#*|}
    compiler=$(echo "${row%%|*}" | sed "s/\$CC/$CC/") row=${row#*|}
    runner=${row%%|*} row=${row#*|}
    runs=${row%%|*} packages=${row#*|}
}

installed() {
    case $runner in
    board) command -v "${compiler%% *}" && command -v qemu-system-arm && [ -f /usr/lib/picolibc/arm-none-eabi/picolibc.specs ] ;;
    browser) command -v "${compiler%% *}" && command -v node && command -v wasm-ld-14 && [ -f /usr/include/wasm32-wasi/stdio.h ] ;;
    windows) command -v "${compiler%% *}" && [ -x "$wine" ] ;;
    *) command -v "${compiler%% *}" && { [ -z "$runner" ] || command -v "${runner%% *}"; } ;;
    esac >/dev/null 2>&1
}

# Every source once, both programs from them, in the target's folder. Where only the digests run, sources that they do not need are looked at
# for warnings: half of the time.
build() {
    sources=$SOURCES objects= n=0 libraries=-lm
    if [ "$runs" = c ]; then sources="main.c $sources"; else sources=$(cat "$work/own.needed"); fi
    case $runner in
    board) board_support >"$scratch/board.c" && sources="$sources $scratch/board.c" libraries="$board_memory -lm" ;;
    browser) libraries='-lm -Wl,-z,stack-size=1048576' ;;
    esac
    case $compiler in
    tcc) warnings=-Wall ;;
    clang*-flto) libraries="$libraries -fuse-ld=lld" ;;
    esac
    for source in $sources tests/bits.c; do
        n=$((n + 1)) object=$scratch/$n.o
        # shellcheck disable=SC2086 # lists of flags
        $compiler $strict $warnings -c "$source" -o "$object" || return 1
        case $source in main.c) main=$object ;; tests/bits.c) bits=$object ;; *) objects="$objects $object" ;; esac
    done
    if [ "$runs" = d ]; then
        # shellcheck disable=SC2086
        $compiler $strict $warnings -fsyntax-only $SOURCES || return 1
    fi
    # shellcheck disable=SC2086
    $compiler -o "$scratch/bits" "$bits" $objects $libraries || return 1
    if [ "$runs" = c ]; then
        # shellcheck disable=SC2086
        $compiler -o "$scratch/tsar" "$main" $objects $libraries || return 1
    fi
    for program in bits tsar; do # some linkers add an ending
        if [ -f "$scratch/$program.exe" ]; then mv "$scratch/$program.exe" "$scratch/$program"; fi
    done
    if [ "$scratch" = "$work/own" ]; then needed >"$work/own.needed"; fi
    rm -f "$scratch"/*.o
}

# The sources of which bits is linked, as the linker's map says it; all where it says nothing. Objects are numbered as build() makes them.
needed() {
    n=1 map=$scratch/map list=
    # shellcheck disable=SC2086
    ar rcs "$scratch/own.a" $objects && $compiler -o "$scratch/needed" "$bits" "$scratch/own.a" -lm -Wl,-Map="$map" >/dev/null 2>&1
    for source in $SOURCES; do
        n=$((n + 1))
        if grep -q "own\.a($n\.o)" "$map" 2>/dev/null; then list="$list $source"; fi
    done
    echo "${list:-$SOURCES}"
}

# Models made, generated from, traced and verified; a picture encoded and decoded, under a name that is not ASCII; checkpoints imported.
command_line() {
    tsar() { $runner ./tsar "$@"; }
    folder=./
    [ "$runner" = windows ] && folder='.\'
    shape='dim=16 n_layer=1 n_head=2 n_kv_head=1 ffn_hidden=24 norm_eps=1e-5 rope=1d text_vocab=300 codebook_size=32 grid_h=6 grid_w=4 shuffle=2 shuffle_blocks=1 shuffle_hidden=10'
    tokenizer='vq_ch=8 vq_ch_mult=1,2 vq_res_blocks=1 vq_z_channels=8 vq_embed_dim=4 vq_l2_norm=1 vq_groups=4'
    # shellcheck disable=SC2086
    tsar synth -q --dtype bf16 arch=token-shuffle $shape $tokenizer seed=5 -o model.safetensors &&
        tsar generate -q -m model.safetensors -p 'a red ring' --seed 3 --decode zipar:1 -o picture.ppm --codes codes.safetensors &&
        tsar encode -q -m model.safetensors picture.ppm -o encoded.safetensors &&
        tsar decode -q -m model.safetensors codes.safetensors -o "${folder}größe.ppm" &&
        tsar trace -q -m model.safetensors --prompt-ids 0,7,1 -o trace.safetensors &&
        tsar verify -m model.safetensors trace.safetensors >verdict.txt &&
        tsar synth -q --dtype f16 --like model.safetensors seed=6 -o half.safetensors &&
        tsar import -q gpt_c2i.bf16.pt n_head=4 grid_h=8 grid_w=8 -o imported.safetensors &&
        tsar import -q vq_mini.bf16.pt -o tokenizer.safetensors &&
        tsar info imported.safetensors >information.txt
}

one() {
    find_target "$1"
    scratch=$work/$1
    rm -rf "$scratch"
    mkdir -p "$scratch"
    if ! installed; then echo "$1: skipped (needs $packages)"; return; fi
    if ! build >"$scratch/log" 2>&1; then echo "$1: FAILED to build without a warning"; cat "$scratch/log"; return; fi
    reference=$(cd "$work/own" && pwd)
    cp tests/digests.txt tests/checkpoints/gpt_c2i.bf16.pt tests/checkpoints/vq_mini.bf16.pt "$scratch"
    cd "$scratch" || return
    # shellcheck disable=SC2086 # an emulator and its flags
    if ! $runner ./bits digests.txt >>log 2>&1; then echo "$1: FAILED"; cat log; return; fi
    count=$(tr -d '\r' <log | sed -n 's/^\([1-9][0-9]*\) passed, 0 failed$/\1/p')
    if [ -z "$count" ]; then echo "$1: FAILED, no result"; cat log; return; fi
    if [ "$runs" = d ]; then echo "$1: the same bits ($count digests)"; return; fi
    if ! command_line >>log 2>&1; then echo "$1: FAILED the command line"; cat log; return; fi
    for file in model.safetensors picture.ppm codes.safetensors encoded.safetensors größe.ppm trace.safetensors verdict.txt half.safetensors \
        imported.safetensors tokenizer.safetensors information.txt; do
        if ! cmp "$file" "$reference/$file" >>log 2>&1; then echo "$1: FAILED, $file differs"; cat log; return; fi
        count=$((count + 1))
    done
    echo "$1: the same bits ($count digests and files)"
    [ "$1" = own ] || rm -rf ./*.safetensors ./*.pt wine 2>/dev/null
}

# ---- all ---------------------------------------------------------------------------------------------------------------

case ${1:-} in
--one) one "$2"; exit ;;
--table) table; exit ;;
--packages)
    shift
    for target in ${*:-$(table | sed 's/|.*//')}; do
        find_target "$target"
        echo "$packages qemu-user"
    done | tr ' ' '\n' | sort -u | tr '\n' ' '
    exit ;;
esac
targets=${*:-$(table | sed 's/|.*//')}
for target in $targets; do find_target "$target"; done
SOURCES=$(make -s sources NO_PNG=1) || exit 1
export SOURCES
mkdir -p "$work"
{
    sh "$0" --one own
    # the board first: without a floating-point unit it needs the longest
    for target in $targets; do echo "$target"; done | awk '$1 == "cortex-m3"; $1 != "cortex-m3" && $1 != "own" { later = later $1 "\n" } END { printf "%s", later }' |
        xargs -n 1 -P "$JOBS" sh "$0" --one
} | tee "$work/results"
passed=$(grep -c 'the same bits (' "$work/results")
failed=$(grep -c ': FAILED' "$work/results")
skipped=$(grep -c ': skipped (' "$work/results")
expected=$(for target in own $targets; do echo "$target"; done | sort -u | wc -l)
if [ $((passed + failed + skipped)) -ne "$expected" ]; then failed=$((failed + 1)); fi
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
