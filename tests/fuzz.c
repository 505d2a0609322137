/* libFuzzer targets, one for each parser of files but the checkpoints' (fuzz_import.c): the bytes become a file, the parser opens it. Built by fuzz.sh with
 * -DTARGET=1 ... and run for a minute each, with the corpus as the last argument: there some put seeds that fit their model. */
#include "../tsar.h"
#include "fuzz.h"

#include <stdio.h>

enum { CONTAINER = 1, MODEL, TRACE, PICTURE, FEATURES, PROMPT, TOKENIZER, SPIECE, CAPTION, VERIFY };

#define INPUT "fuzz.tmp"

static tsar_model *model; /* what TRACE, FEATURES, PROMPT and VERIFY need */

#ifdef HEADERS
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned seed);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned seed) { return fuzz_mutate_header(data, size, room, seed); }
#endif

/* A trace of the model and the record of a generation: what is behind their headers fits it. */
static void write_traces(const char *corpus)
{
    int64_t ids[] = { 0, 100, 1 }, codes[16], step_of[16];
    double logits[16 * 16];
    char path[512];
    tsar_error err;
    tsar_inputs inputs = { .text = ids, .n_text = 3, .codes = codes, .h = 4, .w = 4 };
    const tsar_prompt prompt = { .text = ids, .n_text = 3 };
    tsar_settings settings = tsar_settings_default(model);
    tsar_result result = { .codes = codes, .step_of = step_of, .logits = logits };
    tsar_status status = tsar_generate(model, &prompt, &settings, 1, &result, NULL, NULL, &err);
    (void)snprintf(path, sizeof path, "%s/trace", corpus);
    if (status == TSAR_OK) status = tsar_trace_write(model, &inputs, NULL, TARGET == VERIFY, path, &err);
    (void)snprintf(path, sizeof path, "%s/record", corpus);
    if (status == TSAR_OK) status = tsar_record_write(path, model, &prompt, &settings, &result, 0, "tsar generate", &err);
    if (status != TSAR_OK) abort();
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    static const char *const t2i[] = { "arch=llamagen-t2i", "dim=16", "n_layer=1", "n_head=2", "n_kv_head=2", "ffn_hidden=8", "norm_eps=1e-5", "rope=2d",
                                       "codebook_size=16", "grid_h=4", "grid_w=4", "cond_tokens=3", "caption_dim=4", "seed=2" };
    static const char *const text[] = { "arch=token-shuffle", "dim=16", "n_layer=1", "n_head=2", "n_kv_head=2", "ffn_hidden=8", "norm_eps=1e-5", "rope=1d",
                                        "codebook_size=16", "grid_h=4", "grid_w=4", "shuffle=1", "text_vocab=260", "seed=2" };
    const char *const *settings = TARGET == FEATURES ? t2i : text;
    const char *keys[14], *values[14];
    static char copy[14][32];
    char path[512];
    tsar_error err;
    for (size_t i = 0; i < 14; i++) {
        strcpy(copy[i], settings[i]);
        keys[i] = copy[i];
        char *equals = strchr(copy[i], '=');
        *equals = '\0';
        values[i] = equals + 1;
    }
    (void)snprintf(path, sizeof path, "%s/model", (*argv)[*argc - 1]);
    const char *const file = TARGET == MODEL ? path : INPUT;
    if (tsar_synth(file, keys, values, 14, TSAR_BF16, &err) != TSAR_OK || tsar_model_open(&model, file, TSAR_PART_ALL, 1, &err) != TSAR_OK) abort();
    if (TARGET == TRACE || TARGET == VERIFY) write_traces((*argv)[*argc - 1]);
    return 0;
}

static void open_container(void)
{
    tsar_error err;
    tsar_file *file;
    double number;
    if (tsar_file_open(&file, INPUT, &err) != TSAR_OK) return;
    for (size_t i = 0; i < tsar_file_count(file); i++) {
        const tsar_tensor *tensor = tsar_file_at(file, i);
        if (tsar_file_find(file, tensor->name) != tensor) abort();
        if (tensor->count > 0) (void)tsar_file_read_f64(file, tensor, tensor->count - 1, 1, &number, &err);
    }
    tsar_file_close(file);
}

static void open_trace(void)
{
    tsar_error err;
    tsar_file *file;
    tsar_inputs inputs;
    if (tsar_file_open(&file, INPUT, &err) != TSAR_OK) return;
    if (tsar_inputs_read(&inputs, model, file, &err) == TSAR_OK) tsar_inputs_close(&inputs);
    tsar_file_close(file);
}

static void encode_text(const uint8_t *data, size_t size)
{
    tsar_error err;
    int64_t *ids;
    size_t n;
    char *back, *prompt = malloc(size + 1);
    memcpy(prompt, data, size);
    prompt[size] = '\0';
    if (tsar_text_encode(model, prompt, &ids, &n, &err) == TSAR_OK) {
        if (tsar_text_decode(model, ids, n, &back, &err) != TSAR_OK || strcmp(back, prompt) != 0) abort();
        tsar_free(back);
        tsar_free(ids);
    }
    free(prompt);
}

/* A published byte-pair tokenizer: tokenizer.json, or tiktoken's ranks beside Emu3's special tokens. What it makes of a text, it can say again. */
static void open_tokenizer(void)
{
    static const char text[] = "A cat on 12 red chairs, isn't it?\n  \xC3\xA9\xE7\x8C\xAB e\xCC\x81 <s><sentinel:1><0x0A>IMGIMGABCZ 345\xCD\xBE!?";
    tsar_error err;
    tsar_bpe bpe;
    int64_t *ids;
    size_t n, bytes;
    char *back;
    if (tsar_bpe_read(&bpe, INPUT, &err) != TSAR_OK) return;
    if (tsar_bpe_encode(&bpe, text, sizeof text - 1, &ids, &n, &err) == TSAR_OK) {
        if (tsar_bpe_decode(&bpe, ids, n, &back, &bytes, &err) == TSAR_OK) tsar_free(back);
        tsar_free(ids);
    }
    tsar_bpe_close(&bpe);
}

/* A spiece.model, and what it makes of a text that its normaliser and its pieces have a say in. */
static void open_spiece(const uint8_t *data, size_t size)
{
    static const char text[] = "A cat \xC3\xA9\xE7\x8C\xAB \xEF\xBC\xA1 \xFF ab  ";
    tsar_error err;
    tsar_spiece *spiece;
    int64_t *ids;
    size_t n, bytes;
    char *back;
    if (tsar_spiece_open(&spiece, data, size, "fuzz", &err) != TSAR_OK) return;
    if (tsar_spiece_encode(spiece, text, sizeof text - 1, &ids, &n, &err) == TSAR_OK) {
        if (tsar_spiece_decode(spiece, ids, n, &back, &bytes, &err) == TSAR_OK) tsar_free(back);
        tsar_free(ids);
    }
    tsar_spiece_close(spiece);
}

static void clean_caption(const uint8_t *data, size_t size)
{
    tsar_error err;
    char *clean;
    size_t n;
    if (tsar_caption_clean((const char *)data, size < 300 ? size : 300, &clean, &n, &err) == TSAR_OK) tsar_free(clean);
}

static tsar_status look_away(void *context, const tsar_comparison *comparison, tsar_error *err)
{
    (void)context, (void)comparison, (void)err;
    return TSAR_OK;
}

static void verify_trace(void)
{
    tsar_error err;
    tsar_verify_counts counts;
    tsar_settings settings = tsar_settings_default(model);
    const tsar_verify_options options = { .rtol = -1, .precision = TSAR_DTYPES, .settings = &settings };
    tsar_file *file;
    if (tsar_file_open(&file, INPUT, &err) != TSAR_OK) return;
    const tsar_status status = tsar_record_settings(&settings, &settings.first_image, file, &err);
    tsar_file_close(file);
    if (status != TSAR_OK) return;
    (void)tsar_verify(model, INPUT, &options, look_away, NULL, &counts, &err);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    tsar_error err;
    FILE *file = fopen(INPUT, "wb");
    if (!file || fwrite(data, 1, size, file) != size) abort();
    fclose(file);
    switch (TARGET) {
    case CONTAINER: open_container(); break;
    case TRACE: open_trace(); break;
    case PROMPT: encode_text(data, size); break;
    case TOKENIZER: open_tokenizer(); break;
    case SPIECE: open_spiece(data, size); break;
    case CAPTION: clean_caption(data, size); break;
    case VERIFY: verify_trace(); break;
    case MODEL: {
        tsar_model *opened;
        if (tsar_model_open(&opened, INPUT, TSAR_PART_ALL, 1, &err) == TSAR_OK) tsar_model_close(opened);
        break;
    }
    case PICTURE: {
        uint8_t *rgb;
        size_t H, W;
        if (tsar_image_read(INPUT, &rgb, &H, &W, &err) == TSAR_OK) tsar_free(rgb);
        break;
    }
    case FEATURES: {
        double *caption, *mask;
        if (tsar_caption_read(model, INPUT, &caption, &mask, &err) == TSAR_OK) tsar_free(caption), tsar_free(mask);
        break;
    }
    default: abort();
    }
    return 0;
}
