/* From a sentence to the caption of a text-conditional model (SPEC 11): cleaning, pieces, the encoder, the right end of the zero rows, against the
 * official chain (tests/vectors/t5/t5_prompts.safetensors). */
#include "test.h"

#include <math.h>
#include <stdlib.h>

#define VECTOR "tests/vectors/t5/t5_prompts.safetensors"
#define MODEL "test_condition.safetensors"

/* spiece.model into the synthetic encoder, as a model file has it. */
static int give_tokenizer(tsar_model *t5, const char *path)
{
    tsar_error err = { "" };
    char *bytes = NULL;
    size_t n = 0;
    if (!CHECK(tsar_read_whole(path, "a tokenizer", &bytes, &n, &err) == TSAR_OK, "%s", err.text)) return 0;
    t5->t5_spiece = (uint8_t *)bytes;
    t5->n_t5_spiece = n;
    return CHECK(tsar_spiece_open(&t5->spiece, bytes, n, path, &err) == TSAR_OK, "%s", err.text);
}

/* The golden tensor `name`.`part` as doubles; n its elements. */
static double *golden(tsar_file *file, size_t i, const char *part, size_t *n)
{
    tsar_error err = { "" };
    char name[64];
    snprintf(name, sizeof name, "prompt.%u.%s", (unsigned)i, part);
    const tsar_tensor *tensor = tsar_file_find(file, name);
    *n = tensor ? (size_t)tensor->count : 0;
    double *values = tensor ? malloc(*n * sizeof *values + 1) : NULL;
    CHECK(values && tsar_file_read_f64(file, tensor, 0, *n, values, &err) == TSAR_OK, "%s %s", name, err.text);
    return values;
}

static void check_prompt(const tsar_model *model, const tsar_model *t5, tsar_file *file, size_t i, const char *text, int raw)
{
    tsar_error err = { "" };
    tsar_condition c;
    const tsar_sentence s = { .text = text, .bytes = strlen(text), .raw = raw };
    const tsar_status status = tsar_condition_open(&c, model, t5, &s, NULL, &err);
    if (!raw && status == TSAR_INPUT) { /* not ASCII, or with < or & */
        CHECK(strstr(err.text, "U+") != NULL, "refused: %s", err.text);
        return;
    }
    if (!CHECK(status == TSAR_OK, "%.40s: %s", text, err.text)) return;
    size_t n_ids, n_mask, n;
    double *ids = golden(file, i, "ids", &n_ids), *mask = golden(file, i, "caption_mask", &n_mask), *caption = golden(file, i, "caption", &n);
    int same = n_ids == c.n_ids && n_mask == model->config.cond_tokens;
    for (size_t k = 0; same && k < n_ids; k++) same = ids[k] == (double)c.ids[k];
    for (size_t k = 0; same && k < n_mask; k++) same = mask[k] == c.mask[k];
    CHECK(same, "ids and mask of prompt %d", (int)i);
    double square = 0, worst = 0;
    for (size_t k = 0; k < n; k++) {
        square += caption[k] * caption[k];
        worst = fabs(caption[k] - c.caption[k]) > worst ? fabs(caption[k] - c.caption[k]) : worst;
    }
    CHECK(worst <= 1e-11 * sqrt(square / (double)n), "caption of prompt %d: off by %g", (int)i, worst);
    free(ids);
    free(mask);
    free(caption);
    tsar_condition_close(&c);
}

int main(void)
{
    tsar_error err = { "" };
    tsar_model *t5 = NULL, model = { .config = { .arch = TSAR_LLAMAGEN_T2I, .cond_tokens = 120, .caption_dim = 24 } };
    tsar_file *file = NULL;
    tsar_condition c;
    int ready = CHECK(test_synth_like(MODEL, VECTOR, TSAR_F32, &err) == TSAR_OK, "%s", err.text);
    ready = ready && CHECK(tsar_model_open(&t5, MODEL, TSAR_PART_ALL, 1, &err) == TSAR_OK, "%s", err.text);
    const tsar_sentence cat = { .text = "a cat", .bytes = 5 };
    if (ready) CHECK(tsar_condition_open(&c, &model, t5, &cat, NULL, &err) == TSAR_INPUT && strstr(err.text, "t5.spiece"), "no tokenizer: %s", err.text);
    ready = ready && give_tokenizer(t5, "tests/vectors/t5/t5like.model");
    ready = ready && CHECK(tsar_file_open(&file, VECTOR, &err) == TSAR_OK, "%s", err.text);
    for (size_t i = 0; ready && i < 14; i++) {
        char key[40];
        snprintf(key, sizeof key, "prompt.%u", (unsigned)i);
        const char *text = tsar_file_meta(file, key);
        t5->config.t5_clean = 1;
        if (CHECK(text != NULL, "%s", key)) check_prompt(&model, t5, file, i, text, 0);
        snprintf(key, sizeof key, "prompt.%u.clean", (unsigned)i);
        text = tsar_file_meta(file, key);
        if (CHECK(text != NULL, "%s", key)) check_prompt(&model, t5, file, i, text, 1);
    }
    if (ready) {
        CHECK(tsar_condition_open(&c, &model, &model, &cat, NULL, &err) == TSAR_INPUT && strstr(err.text, "--text-model"), "no encoder: %s", err.text);
        CHECK(tsar_condition_open(&c, &model, t5, &cat, "bad", &err) == TSAR_USAGE, "a negative prompt: %s", err.text);
        model.config.caption_dim = 25;
        CHECK(tsar_condition_open(&c, &model, t5, &cat, NULL, &err) == TSAR_INPUT && strstr(err.text, "t5_dim=24"), "another width: %s", err.text);
    }
    tsar_file_close(file);
    tsar_model_close(t5);
    remove(MODEL);
    return test_end();
}
