/* What may be done from several threads at the same time: two write pictures, two generate from one model, two write and read model files,
 * two read and write numbers. Each result must be that of a single thread. test_threads.sh runs this under ThreadSanitizer. */
#if defined(__unix__) || defined(__APPLE__)
#define _POSIX_C_SOURCE 200809L
#define HAVE_THREADS
#endif
#include "../tsar.h"
#include "test.h"

#include <stdlib.h>
#ifdef HAVE_THREADS
#include <pthread.h>
#endif

enum { THREADS = 2, REPEATS = 6, PICTURE_SIDE = 96, PICTURE_CODES = 8 * 8 };

static const char settings_text[] =
    "arch=token-shuffle dim=16 n_layer=2 n_head=2 n_kv_head=1 ffn_hidden=24 norm_eps=1e-5 rope=1d text_vocab=300 codebook_size=32 "
    "grid_h=8 grid_w=8 shuffle=2 shuffle_blocks=1 shuffle_hidden=8 vq_ch=8 vq_ch_mult=1,2 vq_res_blocks=1 vq_z_channels=8 "
    "vq_embed_dim=4 vq_l2_norm=1 vq_groups=4 seed=7";

typedef struct {
    int number;
    tsar_model *model;
    int64_t codes[PICTURE_CODES];
    uint64_t digest; /* of everything that the thread made */
    int wrong;
} work;

static uint64_t digest_of_file(const char *path)
{
    uint64_t digest = 1;
    FILE *stream = fopen(path, "rb");
    for (int c; stream && (c = fgetc(stream)) != EOF;) digest = tsar_mix(digest + (uint64_t)c);
    if (stream) (void)fclose(stream);
    return stream ? digest : 0;
}

/* The kind of work is the thread's number modulo 4; what comes out does not depend on the thread. */
static void write_pictures(work *w)
{
    static const char *const keys[] = { "Software", "Command" }, *const values[] = { "test", "caf\xc3\xa9" };
    char path[64];
    uint8_t *rgb = malloc(PICTURE_SIDE * PICTURE_SIDE * 3);
    for (int round = 0; rgb && round < REPEATS; round++) {
        tsar_error err = { "" };
        snprintf(path, sizeof path, "test_threads.%d.png", w->number);
        for (size_t i = 0; i < PICTURE_SIDE * PICTURE_SIDE * 3; i++) rgb[i] = (uint8_t)(tsar_mix(i + (uint64_t)round) >> (i % 5 ? 63 : 56));
        w->wrong += tsar_image_write(path, rgb, PICTURE_SIDE, PICTURE_SIDE, keys, values, 2, &err) != TSAR_OK ||
                    !tsar_image_has_text(path, "Command", "caf\xc3\xa9");
        w->digest = tsar_mix(w->digest + digest_of_file(path));
        (void)remove(path);
    }
    free(rgb);
}

static void generate(work *w)
{
    static const int64_t ids[] = { 0, 17, 40, 1 };
    tsar_error err = { "" };
    tsar_prompt prompt = { 0 };
    tsar_settings settings = tsar_settings_default(w->model);
    tsar_result result = { 0 };
    uint8_t rgb[16 * 16 * 3];
    prompt.text = ids, prompt.n_text = 4;
    result.codes = w->codes;
    w->wrong += tsar_generate(w->model, &prompt, &settings, 1, &result, NULL, NULL, &err) != TSAR_OK;
    w->wrong += tsar_vq_decode(w->model, w->codes, 8, 8, rgb, NULL, &err) != TSAR_OK;
    for (size_t i = 0; i < PICTURE_CODES; i++) w->digest = tsar_mix(w->digest + (uint64_t)w->codes[i]);
    for (size_t i = 0; i < sizeof rgb; i++) w->digest = tsar_mix(w->digest + rgb[i]);
}

static void write_models(work *w)
{
    char path[64];
    for (int round = 0; round < REPEATS; round++) {
        tsar_error err = { "" };
        test_settings s;
        tsar_model *model = NULL;
        snprintf(path, sizeof path, "test_threads.%d.safetensors", w->number);
        test_split(&s, settings_text);
        w->wrong += tsar_synth(path, s.keys, s.values, s.n, TSAR_BF16, &err) != TSAR_OK || tsar_model_open(&model, path, TSAR_PART_ALL, 1, &err) != TSAR_OK;
        w->digest = tsar_mix(w->digest + digest_of_file(path));
        tsar_model_close(model);
        (void)remove(path);
    }
}

static void read_numbers(work *w)
{
    for (uint64_t i = 0; i < 2000; i++) {
        char text[32];
        double back;
        const double value = (double)(tsar_mix(i) >> 11) * 1e-9;
        w->wrong += !tsar_real_read(&back, tsar_real_text(text, value), NULL) || back < value || back > value;
        for (const char *c = text; *c; c++) w->digest = tsar_mix(w->digest + (uint64_t)*c);
    }
}

static void *run(void *context)
{
    static void (*const kinds[])(work *) = { write_pictures, generate, write_models, read_numbers };
    work *w = context;
    kinds[w->number % 4](w);
    return NULL;
}

int main(void)
{
    enum { WORKS = 4 };
    static work works[WORKS * THREADS], alone[WORKS];
    tsar_error err = { "" };
    tsar_model *model = NULL;
    if (!CHECK(test_synthesise(&model, "test_threads.tmp.safetensors", settings_text, TSAR_F32, 1, &err) == TSAR_OK, "%s", err.text)) return test_end();
    for (int i = 0; i < WORKS; i++) {
        alone[i].number = i, alone[i].model = model;
        (void)run(&alone[i]);
        CHECK(alone[i].wrong == 0 && alone[i].digest != 0, "work %d, alone: %d failures", i, alone[i].wrong);
    }
#ifdef HAVE_THREADS
    pthread_t threads[WORKS * THREADS];
    int n = 0;
    for (; n < WORKS * THREADS; n++) {
        works[n].number = n, works[n].model = model;
        if (pthread_create(&threads[n], NULL, run, &works[n]) != 0) break;
    }
    for (int i = 0; i < n; i++) (void)pthread_join(threads[i], NULL);
    CHECK(n == WORKS * THREADS, "%d threads of %d", n, WORKS * THREADS);
#else
    printf("no threads on this system: one after the other\n");
    for (int n = 0; n < WORKS * THREADS; n++) works[n].number = n, works[n].model = model, (void)run(&works[n]);
#endif
    for (int i = 0; i < WORKS * THREADS; i++)
        CHECK(works[i].wrong == 0 && works[i].digest == alone[i % WORKS].digest, "thread %d: %d failures, %s", i, works[i].wrong,
              works[i].digest == alone[i % WORKS].digest ? "the same result" : "another result than alone");
    tsar_model_close(model);
    return test_end();
}
