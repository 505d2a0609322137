/* fuzz_import.c - libFuzzer target for checkpoints and what lies beside them. The first byte of the input says what the rest becomes, so that the
 * fuzzer need not keep an archive consistent to reach the pickle:
 *
 *     0 mod 5   the whole file
 *     1 mod 5   data.pkl of an archive with eleven storages
 *     2 mod 5   what follows a legacy file's magic number
 *     3 mod 5   an index of shards (.json), which may name the files that are there
 *     4 mod 5   config.json beside a checkpoint in Hugging Face's layout
 *
 * Whatever happens, tsar_import must return OK, or an error with one line. Run in a folder of its own, best in memory. */
#include "../tsar.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SHARD "model.safetensors"

enum { STORAGES = 11, INPUT_ROOM = 1 << 20 };

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint8_t file[INPUT_ROOM];
static size_t length;

static void put(const void *bytes, size_t n)
{
    memcpy(file + length, bytes, n);
    length += n;
}

static void put_number(size_t number, size_t width)
{
    for (size_t i = 0; i < width; i++) file[length++] = (uint8_t)(number >> 8 * i);
}

/* A local header (central 0) or an entry of the directory (central 1), sizes included. */
static void put_header(int central, const char *name, size_t size, size_t place)
{
    static const uint8_t zeros[16];
    put(central ? "PK\1\2\0\0" : "PK\3\4", central ? 6 : 4);
    put(zeros, 14);
    put_number(size, 4);
    put_number(size, 4);
    put_number(strlen(name), 2);
    put_number(0, 2);
    if (central) {
        put(zeros, 10);
        put_number(place, 4);
    }
    put(name, strlen(name));
}

/* folder/data.pkl is the input; storage k has (k + 1) * 64 bytes. */
static void put_archive(const uint8_t *data, size_t size)
{
    static const uint8_t zeros[64];
    char name[32];
    size_t places[STORAGES + 1];
    for (size_t i = 0; i <= STORAGES; i++) {
        size_t bytes = i == STORAGES ? size : (i + 1) * 64;
        snprintf(name, sizeof name, i == STORAGES ? "a/data.pkl" : "a/data/%d", (int)i);
        places[i] = length;
        put_header(0, name, bytes, 0);
        if (i == STORAGES) put(data, size);
        for (size_t j = 0; i < STORAGES && j <= i; j++) put(zeros, 64);
    }
    size_t start = length;
    for (size_t i = 0; i <= STORAGES; i++) {
        snprintf(name, sizeof name, i == STORAGES ? "a/data.pkl" : "a/data/%d", (int)i);
        put_header(1, name, i == STORAGES ? size : (i + 1) * 64, places[i]);
    }
    size_t end = length;
    put("PK\5\6\0\0\0\0", 8);
    put_number(STORAGES + 1, 2);
    put_number(STORAGES + 1, 2);
    put_number(end - start, 4);
    put_number(start, 4);
    put_number(0, 2);
}

/* A Llama of one layer, all zeros, under Hugging Face's names. */
int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    static const struct {
        const char *name;
        size_t rank, shape[2];
    } tensors[] = {
        { "model.embed_tokens.weight", 2, { 32, 16 } },
        { "model.layers.0.input_layernorm.weight", 1, { 16, 0 } },
        { "model.layers.0.self_attn.q_proj.weight", 2, { 16, 16 } },
        { "model.layers.0.self_attn.k_proj.weight", 2, { 8, 16 } },
        { "model.layers.0.self_attn.v_proj.weight", 2, { 8, 16 } },
        { "model.layers.0.self_attn.o_proj.weight", 2, { 16, 16 } },
        { "model.layers.0.post_attention_layernorm.weight", 1, { 16, 0 } },
        { "model.layers.0.mlp.gate_proj.weight", 2, { 8, 16 } },
        { "model.layers.0.mlp.up_proj.weight", 2, { 8, 16 } },
        { "model.layers.0.mlp.down_proj.weight", 2, { 16, 8 } },
        { "model.norm.weight", 1, { 16, 0 } },
        { "lm_head.weight", 2, { 32, 16 } },
    };
    static const float zeros[32 * 16];
    tsar_error err;
    tsar_writer *writer;
    const tsar_tensor *next;
    (void)argc, (void)argv;
    tsar_status status = tsar_writer_open(&writer, SHARD, &err);
    for (size_t i = 0; status == TSAR_OK && i < sizeof tensors / sizeof *tensors; i++)
        status = tsar_writer_declare(writer, tensors[i].name, TSAR_F32, tensors[i].rank, tensors[i].shape, &err);
    while (status == TSAR_OK && (next = tsar_writer_next(writer)) != NULL) status = tsar_writer_put(writer, zeros, next->count, &err);
    if (status != TSAR_OK || tsar_writer_commit(writer, &err) != TSAR_OK) abort();
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const keys[] = { "n_head", "grid_h", "grid_w" }, *const values[] = { "4", "4", "4" };
    static const char *const paths[] = { "fuzz_import.tmp", "fuzz_import.tmp", "fuzz_import.tmp", "fuzz_import.json", "config.json" };
    const char *path = paths[size ? data[0] % 5 : 0], *operand = path;
    static const uint8_t magic[] = { 0x80, 2, 0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, '.' };
    tsar_error err = { "" };
    if (size == 0 || size > INPUT_ROOM / 2) return 0;
    length = 0;
    if (data[0] % 5 == 1)
        put_archive(data + 1, size - 1);
    else {
        if (data[0] % 5 == 2) put(magic, sizeof magic);
        put(data + 1, size - 1);
    }
    FILE *out = fopen(path, "wb");
    if (!out || fwrite(file, 1, length, out) != length || fclose(out) != 0) abort();
    if (data[0] % 5 == 4) operand = SHARD;
    tsar_status status = tsar_import(&operand, 1, "fuzz_import.tmp.out", keys, values, data[0] % 5 == 4 ? 0 : 3, TSAR_DTYPES, NULL, NULL, &err);
    if (data[0] % 5 == 4) remove(path);
    if (status != TSAR_OK && (status > TSAR_INPUT || err.text[0] == '\0' || strchr(err.text, '\n'))) abort();
    return 0;
}
