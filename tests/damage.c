/* Writes damaged copies of a model file for test_bad_input.sh: damage MODEL.safetensors DIR. Each copy is wrong in one
 * way, which its name tells; none of them may be accepted. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static unsigned char *bytes;  /* the sound file */
static size_t size, header;   /* bytes in all, of the JSON header */
static const char *directory;
static size_t copies;

static void die(const char *what)
{
    fprintf(stderr, "damage: %s\n", what);
    exit(1);
}

static void write_copy(const char *name, const void *first, size_t n_first, const void *second, size_t n_second)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%02zu-%s.safetensors", directory, copies++, name);
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(first, 1, n_first, file) != n_first || fwrite(second, 1, n_second, file) != n_second || fclose(file)) die("cannot write a copy");
}

static void truncated(const char *name, size_t length) { write_copy(name, bytes, length, "", 0); }

static void with_length(const char *name, uint64_t length)
{
    unsigned char *copy = malloc(size);
    if (!copy) die("out of memory");
    memcpy(copy, bytes, size);
    for (size_t i = 0; i < 8; i++) copy[i] = (unsigned char)(length >> 8 * i);
    write_copy(name, copy, size, "", 0);
    free(copy);
}

/* A copy whose header is `text`, length field included. */
static void with_header(const char *name, const char *text, size_t length)
{
    unsigned char *copy = malloc(8 + length);
    if (!copy) die("out of memory");
    for (size_t i = 0; i < 8; i++) copy[i] = (unsigned char)((uint64_t)length >> 8 * i);
    memcpy(copy + 8, text, length);
    write_copy(name, copy, 8 + length, bytes + 8 + header, size - 8 - header);
    free(copy);
}

/* A copy whose header has the first `from` replaced by `to`. */
static void replaced(const char *name, const char *from, const char *to)
{
    char *text = malloc(header + strlen(to) + 1), *old = malloc(header + 1);
    if (!text || !old) die("out of memory");
    memcpy(old, bytes + 8, header);
    old[header] = '\0';
    const char *at = strstr(old, from);
    if (!at) {
        fprintf(stderr, "damage: %s: the header has no %s\n", name, from);
        exit(1);
    }
    size_t before = (size_t)(at - old);
    memcpy(text, old, before);
    strcpy(text + before, to);
    strcat(text, at + strlen(from));
    with_header(name, text, strlen(text));
    free(text);
    free(old);
}

static void with_data(const char *name, size_t offset, const char *patch, size_t length)
{
    unsigned char *copy = malloc(size);
    if (!copy) die("out of memory");
    memcpy(copy, bytes, size);
    memcpy(copy + 8 + header + offset, patch, length);
    write_copy(name, copy, size, "", 0);
    free(copy);
}

static void deep(const char *name, char open, size_t depth)
{
    char *text = malloc(depth + 32);
    if (!text) die("out of memory");
    strcpy(text, "{\"__metadata__\":");
    size_t at = strlen(text);
    memset(text + at, open, depth);
    with_header(name, text, at + depth);
    free(text);
}

int main(int argc, char **argv)
{
    if (argc != 3) die("usage: damage MODEL.safetensors DIR");
    FILE *file = fopen(argv[1], "rb");
    if (!file) die("cannot open the model");
    bytes = malloc(1 << 20);
    if (!bytes) die("out of memory");
    size = fread(bytes, 1, 1 << 20, file);
    fclose(file);
    directory = argv[2];
    for (size_t i = 0; i < 8; i++) header |= (size_t)bytes[i] << 8 * i;

    truncated("empty", 0);
    truncated("half-a-length", 4);
    truncated("only-a-length", 8);
    truncated("one-byte-of-header", 9);
    truncated("half-the-header", 8 + header / 2);
    truncated("header-less-one", 8 + header - 1);
    truncated("no-data", 8 + header);
    truncated("one-byte-of-data", 8 + header + 1);
    truncated("half-the-data", 8 + header + (size - 8 - header) / 2);
    truncated("data-less-one", size - 1);
    write_copy("trailing-byte", bytes, size, "x", 1);
    write_copy("doubled", bytes, size, bytes, size);
    with_length("length-0", 0);
    with_length("length-1", 1);
    with_length("length-short", header - 1);
    with_length("length-long", header + 1);
    with_length("length-2p31", UINT64_C(1) << 31);
    with_length("length-2p32", UINT64_C(1) << 32);
    with_length("length-2p63", UINT64_C(1) << 63);
    with_length("length-2p64", UINT64_MAX);
    with_length("length-wraps", UINT64_MAX - 7);
    with_header("header-empty", "", 0);
    with_header("header-array", "[]", 2);
    with_header("header-number", "1", 1);
    with_header("header-string", "\"x\"", 3);
    with_header("header-open", "{", 1);
    with_header("header-nothing-in-it", "{}", 2);
    with_header("header-zeros", "\0\0\0\0\0\0\0\0", 8);
    deep("deep-objects", '{', 100000);
    deep("deep-arrays", '[', 100000);
    replaced("not-utf8", "\"seed\"", "\"se\xFF\xFE\"");
    replaced("bad-escape", "\"seed\"", "\"se\\x\"");
    replaced("lone-surrogate", "\"seed\"", "\"se\\ud800\"");
    replaced("name-with-nul", "\"seed\"", "\"se\\u0000\"");
    replaced("metadata-number", "\"seed\":\"", "\"other\":5,\"seed\":\"");
    replaced("metadata-array", "\"seed\":\"", "\"other\":[],\"seed\":\"");
    replaced("duplicate-key", "\"seed\":\"", "\"dim\":\"16\",\"seed\":\"");
    replaced("duplicate-tensor", "\"gpt.layers.0.ffn_norm.weight\"", "\"gpt.layers.0.attention_norm.weight\"");
    replaced("duplicate-field", "\"dtype\":\"F32\"", "\"dtype\":\"F32\",\"dtype\":\"F32\"");
    replaced("missing-dtype", "\"dtype\":\"F32\",", "");
    replaced("unknown-dtype", "\"dtype\":\"F32\"", "\"dtype\":\"F99\"");
    replaced("other-dtype", "\"dtype\":\"F32\"", "\"dtype\":\"I32\"");
    replaced("wider-dtype", "\"dtype\":\"F32\"", "\"dtype\":\"F64\"");
    replaced("dtype-number", "\"dtype\":\"F32\"", "\"dtype\":32");
    replaced("shape-negative", "\"shape\":[16]", "\"shape\":[-16]");
    replaced("shape-fraction", "\"shape\":[16]", "\"shape\":[16.5]");
    replaced("shape-exponent", "\"shape\":[16]", "\"shape\":[16e0]");
    replaced("shape-string", "\"shape\":[16]", "\"shape\":[\"16\"]");
    replaced("shape-nested", "\"shape\":[16]", "\"shape\":[[16]]");
    replaced("shape-2p31", "\"shape\":[16]", "\"shape\":[2147483648]");
    replaced("shape-2p32", "\"shape\":[16]", "\"shape\":[4294967296]");
    replaced("shape-2p63", "\"shape\":[16]", "\"shape\":[9223372036854775808]");
    replaced("shape-2p64", "\"shape\":[16]", "\"shape\":[18446744073709551616]");
    replaced("shape-overflows", "\"shape\":[16]", "\"shape\":[4294967296,4294967296,16]");
    replaced("shape-rank-9", "\"shape\":[16]", "\"shape\":[1,1,1,1,1,1,1,1,16]");
    replaced("shape-scalar", "\"shape\":[16]", "\"shape\":[]");
    replaced("shape-4x4", "\"shape\":[16]", "\"shape\":[4,4]");
    replaced("offsets-reversed", "\"data_offsets\":[0,", "\"data_offsets\":[99,");
    replaced("offsets-2p63", "\"data_offsets\":[0,", "\"data_offsets\":[9223372036854775808,");
    replaced("offsets-gap", "\"data_offsets\":[0,", "\"data_offsets\":[4,");
    replaced("offsets-one", "\"data_offsets\":[0,", "\"data_offsets\":[");
    replaced("offsets-three", "\"data_offsets\":[0,", "\"data_offsets\":[0,0,");
    replaced("unknown-gpt-tensor", "\"gpt.norm.weight\"", "\"gpt.morn.weight\"");
    replaced("unknown-vq-tensor", "\"vq.encoder.norm_out.bias\"", "\"vq.encoder.norm_in.bias\"");
    replaced("arch-unknown", "\"arch\":\"token-shuffle\"", "\"arch\":\"diffusion\"");
    replaced("dim-missing", "\"dim\":\"16\",", "");
    replaced("dim-0", "\"dim\":\"16\"", "\"dim\":\"0\"");
    replaced("dim-negative", "\"dim\":\"16\"", "\"dim\":\"-16\"");
    replaced("dim-text", "\"dim\":\"16\"", "\"dim\":\"sixteen\"");
    replaced("dim-huge", "\"dim\":\"16\"", "\"dim\":\"99999999999999999999\"");
    replaced("dim-other", "\"dim\":\"16\"", "\"dim\":\"32\"");
    replaced("heads-do-not-divide", "\"n_head\":\"2\"", "\"n_head\":\"3\"");
    replaced("eps-zero", "\"norm_eps\":\"1e-5\"", "\"norm_eps\":\"0\"");
    replaced("eps-nan", "\"norm_eps\":\"1e-5\"", "\"norm_eps\":\"nan\"");
    replaced("rope-3d", "\"rope\":\"1d\"", "\"rope\":\"3d\"");
    replaced("shuffle-does-not-divide", "\"shuffle\":\"2\"", "\"shuffle\":\"3\"");
    replaced("mult-empty", "\"vq_ch_mult\":\"1,1\"", "\"vq_ch_mult\":\"\"");
    replaced("mult-junk", "\"vq_ch_mult\":\"1,1\"", "\"vq_ch_mult\":\"1,,1\"");
    replaced("mult-other", "\"vq_ch_mult\":\"1,1\"", "\"vq_ch_mult\":\"1,2\"");
    replaced("groups-do-not-divide", "\"vq_groups\":\"2\"", "\"vq_groups\":\"3\"");
    with_data("weight-nan", 0, "\x00\x00\xC0\x7F", 4);
    with_data("weight-infinite", 0, "\x00\x00\x80\x7F", 4);
    with_data("weight-minus-infinite", 8, "\x00\x00\x80\xFF", 4);
    printf("%zu\n", copies);
    free(bytes);
    return 0;
}
