#!/bin/sh
# The same bits on other CPUs: builds tests/bits.c for each target and runs it under qemu-user against tests/digests.txt.
# Needs Debian's cross compilers and qemu-user; installs them when run by root with apt-get, else skips what is missing.
#
#     sh tests/cpus.sh [TARGET ...]      default: aarch64 armhf riscv64 s390x i686 i686-x87
set -u
BUILD=${BUILD:-.build}
NUMBERS='-std=c99 -ffp-contract=off'
targets=${*:-aarch64 armhf riscv64 s390x i686 i686-x87}
passed=0
failed=0
skipped=0

describe() { # target -> triplet, emulator, flags, Debian packages
    case $1 in
    aarch64) triplet=aarch64-linux-gnu qemu=qemu-aarch64 flags= packages='gcc-aarch64-linux-gnu libc6-dev-arm64-cross' ;;
    armhf) triplet=arm-linux-gnueabihf qemu=qemu-arm flags= packages='gcc-arm-linux-gnueabihf libc6-dev-armhf-cross' ;;
    riscv64) triplet=riscv64-linux-gnu qemu=qemu-riscv64 flags= packages='gcc-riscv64-linux-gnu libc6-dev-riscv64-cross' ;;
    s390x) triplet=s390x-linux-gnu qemu=qemu-s390x flags= packages='gcc-s390x-linux-gnu libc6-dev-s390x-cross' ;;
    ppc64) triplet=powerpc64-linux-gnu qemu=qemu-ppc64 flags= packages='gcc-powerpc64-linux-gnu libc6-dev-ppc64-cross' ;;
    mips) triplet=mips-linux-gnu qemu=qemu-mips flags= packages='gcc-mips-linux-gnu libc6-dev-mips-cross' ;;
    i686) triplet=i686-linux-gnu qemu=qemu-i386 flags='-msse2 -mfpmath=sse' packages='gcc-i686-linux-gnu libc6-dev-i386-cross' ;;
    i686-x87) triplet=i686-linux-gnu qemu=qemu-i386 flags='-mfpmath=387 -mno-sse' packages='gcc-i686-linux-gnu libc6-dev-i386-cross' ;;
    *) echo "cpus.sh: unknown target $1"; exit 2 ;;
    esac
}

for target in $targets; do
    describe "$target"
    if ! command -v "$triplet-gcc" >/dev/null 2>&1 || ! command -v "$qemu" >/dev/null 2>&1; then
        if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
            apt-get install -y -q $packages qemu-user >/dev/null 2>&1
        fi
    fi
    if ! command -v "$triplet-gcc" >/dev/null 2>&1 || ! command -v "$qemu" >/dev/null 2>&1; then
        echo "$target: skipped (needs $packages qemu-user)"
        skipped=$((skipped + 1))
        continue
    fi
    mkdir -p "$BUILD/cpus"
    if ! "$triplet-gcc" -O2 $NUMBERS $flags -static -DTSAR_NO_PNG -o "$BUILD/cpus/bits-$target" tests/bits.c tsar.c vq.c sampler.c \
        weights/*.c weights/files/*.c tests/selfcheck.c -lm; then
        echo "$target: FAILED to build"
        failed=$((failed + 1))
        continue
    fi
    if "$qemu" "$BUILD/cpus/bits-$target" tests/digests.txt >"$BUILD/cpus/$target.log" 2>&1; then
        echo "$target: the same bits ($(tail -n 1 "$BUILD/cpus/$target.log"))"
        passed=$((passed + 1))
    else
        echo "$target: FAILED"
        cat "$BUILD/cpus/$target.log"
        failed=$((failed + 1))
    fi
done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
