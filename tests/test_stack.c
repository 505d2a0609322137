/* test_stack.c - a generation, a trace, a pass of many rows and pictures in a thread with a stack of 64 kB, as musl, wasm and small
 * OpenMP stacks have it. The stack is painted before, so that what the thread really used can be told. */
#if defined(__unix__) || defined(__APPLE__)
#define _POSIX_C_SOURCE 200112L
#include <unistd.h>
#if defined(_POSIX_THREADS) && _POSIX_THREADS > 0 && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define HAS_THREADS 1
#include <limits.h>
#include <pthread.h>
#endif
#endif

#include "test.h"

#include <stdlib.h>

enum { STACK = 64 * 1024, PAINT = 0xA5 };

/* Both kinds of prediction, both kinds of code: windows of codes and their labels; and a tokenizer. */
static const char *const description =
    "arch=token-shuffle dim=96 n_layer=2 n_head=6 n_kv_head=3 ffn_hidden=128 norm_eps=1e-5 rope=1d text_vocab=64 codebook_size=80 n_coarse=16 grid_h=12 "
    "grid_w=12 shuffle=2 shuffle_blocks=1 shuffle_hidden=64 fine_dim=64 fine_n_layer=2 fine_n_head=4 fine_ffn_hidden=96 vq_ch=32 vq_ch_mult=1,2 "
    "vq_res_blocks=1 vq_z_channels=32 vq_embed_dim=8 vq_l2_norm=1 seed=5";

static tsar_status ignore(void *context, const char *name, tsar_dtype dtype, size_t rank, const size_t *shape, void *data, tsar_error *err)
{
    (void)context, (void)name, (void)dtype, (void)rank, (void)shape, (void)data, (void)err;
    return TSAR_OK;
}

/* Everything that computes, from a file to pictures and back. */
static void *work(void *path)
{
    static const int64_t text[70] = { 0, 7, 9, 1 };
    static int64_t codes[2 * 144], again[144];
    static uint8_t rgb[24 * 24 * 3];
    static tsar_error err;
    const tsar_sink sink = { .put = ignore, .inside = 1 };
    const tsar_prompt prompt = { .text = text, .n_text = 70 };
    tsar_result result = { .codes = codes };
    tsar_model *model = NULL;
    tsar_status status = tsar_self_check(&err);
    if (status == TSAR_OK) status = tsar_model_open(&model, path, TSAR_PART_ALL, 1, &err);
    if (status == TSAR_OK) {
        tsar_settings settings = tsar_settings_default(model);
        status = tsar_order_parse(&settings, "zipar-adaptive:2", &err);
        if (status == TSAR_OK) status = tsar_generate(model, &prompt, &settings, 2, &result, NULL, NULL, &err);
    }
    for (size_t i = 0; i < 144; i++) again[i] = codes[i] % 16;
    if (status == TSAR_OK) status = tsar_gpt_trace(model, &prompt, again, &sink, &err);
    if (status == TSAR_OK) status = tsar_vq_decode(model, codes, 12, 12, rgb, &sink, &err);
    if (status == TSAR_OK) status = tsar_vq_encode(model, rgb, 24, 24, again, &sink, &err);
    tsar_model_close(model);
    CHECK(status == TSAR_OK, "the work: %s", err.text);
    return NULL;
}

int main(void)
{
    static const char path[] = "test_stack.safetensors";
    test_settings s;
    tsar_error err = { "" };
    test_split(&s, description);
    if (!CHECK(tsar_synth(path, s.keys, s.values, s.n, TSAR_BF16, &err) == TSAR_OK, "%s", err.text)) return test_end();
#ifdef HAS_THREADS
    static unsigned char room[STACK + 65536];
    unsigned char *stack = room + (65536 - (uintptr_t)room % 65536) % 65536;
    pthread_attr_t attributes;
    pthread_t thread;
    memset(stack, PAINT, STACK);
    if (pthread_attr_init(&attributes) != 0 || pthread_attr_setstack(&attributes, stack, STACK) != 0 ||
        pthread_create(&thread, &attributes, work, (void *)(uintptr_t)path) != 0)
        printf("skipped: this system gives no thread a stack of %d kB\n", STACK / 1024);
    else {
        size_t unused = 0;
        CHECK(pthread_join(thread, NULL) == 0, "the thread ends");
        while (unused < STACK && stack[unused] == PAINT) unused++;
        printf("%zu of %d bytes of stack used\n", STACK - unused, STACK);
        CHECK(unused >= STACK / 8, "%zu of %d bytes of stack used", STACK - unused, STACK);
    }
#else
    printf("skipped: no threads here\n");
    work((void *)(uintptr_t)path);
#endif
    remove(path);
    return test_end();
}
