/* fuzz.h - what the libFuzzer targets share: mutations that keep a safetensors file consistent, so that they reach what stands behind its reading. */
#ifndef TSAR_FUZZ_H
#define TSAR_FUZZ_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t room);

enum { FUZZ_ROOM = 1 << 17, FUZZ_LENGTH = 8 }; /* of a file; bytes in front of its header, which tell the header's */

/* Three times of four the header of the safetensors file at data is changed alone, and its length told as it is then. */
static size_t fuzz_mutate_header(uint8_t *data, size_t size, size_t room, unsigned seed)
{
    static uint8_t header[FUZZ_ROOM];
    uint64_t length = UINT64_MAX;
    if (size >= FUZZ_LENGTH)
        for (int i = 0; i < FUZZ_LENGTH; i++) length = length << 8 | data[FUZZ_LENGTH - 1 - i];
    if (seed % 4 == 0 || size < FUZZ_LENGTH || length > size - FUZZ_LENGTH || size > room || room > FUZZ_ROOM) return LLVMFuzzerMutate(data, size, room);
    const size_t behind = size - FUZZ_LENGTH - (size_t)length;
    memcpy(header, data + FUZZ_LENGTH, (size_t)length);
    const size_t n = LLVMFuzzerMutate(header, (size_t)length, room - FUZZ_LENGTH - behind);
    memmove(data + FUZZ_LENGTH + n, data + FUZZ_LENGTH + length, behind);
    memcpy(data + FUZZ_LENGTH, header, n);
    for (int i = 0; i < FUZZ_LENGTH; i++) data[i] = (uint8_t)((uint64_t)n >> 8 * i);
    return FUZZ_LENGTH + n + behind;
}

#endif
