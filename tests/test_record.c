/* The file that generate --codes writes: everything in it comes back as it was, and what is wrong in it is refused by name. */
#include "test.h"

#include <math.h>
#include <stdlib.h>

#define SYNTHETIC "test_record_model.safetensors"
#define RECORD "test_record.safetensors"

static int same_settings(const tsar_settings *a, const tsar_settings *b)
{
    char text[2][64];
    return a->seed == b->seed && !(a->cfg < b->cfg || a->cfg > b->cfg) && a->schedule == b->schedule && a->cfg_interval == b->cfg_interval &&
           !(a->temperature < b->temperature || a->temperature > b->temperature) && a->top_k == b->top_k && !(a->top_p < b->top_p || a->top_p > b->top_p) &&
           a->greedy == b->greedy && strcmp(tsar_order_text(text[0], a), tsar_order_text(text[1], b)) == 0;
}

static int holds(tsar_file *file, const char *name, size_t count, const void *expected)
{
    const tsar_tensor *t = tsar_file_find(file, name);
    if (t == NULL || t->count != count) return 0;
    void *data = malloc(count * 8);
    const int same = data != NULL && tsar_file_read(file, t, 0, count, data, NULL) == TSAR_OK && memcmp(data, expected, count * 8) == 0;
    free(data);
    return same;
}

static tsar_settings unusual(const tsar_model *m)
{
    tsar_settings s = tsar_settings_default(m);
    s.seed = UINT64_MAX;
    s.cfg = 1.1;
    s.schedule = TSAR_COSINE;
    s.cfg_interval = 7;
    s.temperature = 1.0 / 3;
    s.top_k = 5;
    s.top_p = 0.9;
    s.greedy = 1;
    tsar_order_parse(&s, "zipar:3,first-row", NULL);
    return s;
}

static void test_round_trip(const char *description, const tsar_prompt *prompt)
{
    tsar_model *m = NULL;
    tsar_file *file = NULL;
    tsar_error err = { "" };
    if (!CHECK(test_synthesise(&m, SYNTHETIC, description, TSAR_F32, 1, &err) == TSAR_OK, "%s", err.text)) return;
    const tsar_config *c = &m->config;
    const size_t N = c->grid_h * c->grid_w;
    const tsar_settings s = unusual(m);
    int64_t *codes = calloc(2 * N, 8), *steps = calloc(2 * N, 8);
    double *logits = calloc(2 * N * c->vocab, 8);
    tsar_result result = { codes, NULL, steps, logits, NULL };
    uint64_t image = 9;
    CHECK(tsar_generate(m, prompt, &s, 2, &result, NULL, NULL, &err) == TSAR_OK, "%s", err.text);
    CHECK(tsar_record_write(RECORD, m, prompt, &s, &result, 1, "tsar generate", &err) == TSAR_OK, "%s", err.text);
    if (CHECK(tsar_file_open(&file, RECORD, &err) == TSAR_OK, "%s", err.text)) {
        tsar_settings read = tsar_settings_default(m);
        const int64_t class_id = (int64_t)prompt->class_id;
        CHECK(tsar_record_settings(&read, &image, file, &err) == TSAR_OK && same_settings(&read, &s) && image == 1, "settings: %s", err.text);
        CHECK(strcmp(tsar_file_meta(file, "command"), "tsar generate") == 0, "command");
        CHECK(holds(file, "codes", N, codes + N) && holds(file, "step_of", c->tokens, steps + c->tokens) &&
                  holds(file, "logits", N * c->vocab, logits + N * c->vocab),
              "image 1");
        CHECK(!tsar_file_find(file, "coarse") && !prompt->text == !tsar_file_find(file, "input.text"), "what there is not");
        CHECK(!prompt->text || holds(file, "input.text", prompt->n_text, prompt->text), "input.text");
        CHECK(c->num_classes == 0 || holds(file, "input.class", 1, &class_id), "input.class");
        CHECK(!prompt->caption || (holds(file, "input.caption", c->cond_tokens * c->caption_dim, prompt->caption) &&
                                   holds(file, "input.caption_mask", c->cond_tokens, prompt->caption_mask)),
              "input.caption");
    }
    tsar_file_close(file);
    free(codes);
    free(steps);
    free(logits);
    tsar_model_close(m);
    remove(RECORD);
}

/* The settings of a file with this one key. */
static tsar_status read_key(const char *key, const char *value, tsar_settings *s, uint64_t *image, tsar_error *err)
{
    static const int64_t codes[1] = { 0 };
    const tsar_values tensor = { "codes", TSAR_I64, 2, { 1, 1 }, codes };
    tsar_writer *writer = NULL;
    tsar_file *file = NULL;
    tsar_status status = tsar_writer_open(&writer, RECORD, err);
    if (status == TSAR_OK) status = tsar_writer_meta(writer, key, value, err);
    if (status == TSAR_OK) status = tsar_values_write(writer, &tensor, 1, err);
    if (status == TSAR_OK) status = tsar_file_open(&file, RECORD, err);
    if (status == TSAR_OK) status = tsar_record_settings(s, image, file, err);
    tsar_file_close(file);
    remove(RECORD);
    return status;
}

static void test_keys(void)
{
    static const char *const wrong[][2] = { { "generate.seed", "-1" },     { "generate.seed", "18446744073709551616" }, { "generate.seed", "" },
                                            { "generate.image", "x" },     { "generate.cfg", "1e999" },                 { "generate.cfg", "" },
                                            { "generate.cfg", "-1" },      { "generate.cfg", "1 " },                    { "generate.cfg-schedule", "best" },
                                            { "generate.cfg-interval", "-2" }, { "generate.temperature", "nan" },       { "generate.top-k", "4294967296" },
                                            { "generate.top-p", "1.5" },   { "generate.greedy", "2" },                  { "generate.decode", "zipar:0" } };
    tsar_settings s, before;
    memset(&before, 0, sizeof before);
    before.cfg = before.temperature = before.top_p = 1;
    before.cfg_interval = 4;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        uint64_t image = 3;
        tsar_error err = { "" };
        s = before;
        const tsar_status status = read_key(wrong[i][0], wrong[i][1], &s, &image, &err);
        CHECK(status == TSAR_INPUT && *err.text && same_settings(&s, &before) && image == 3, "%s=%s: %s", wrong[i][0], wrong[i][1], err.text);
    }
    uint64_t image = 3;
    tsar_error err = { "" };
    s = before;
    CHECK(read_key("seed", "77", &s, &image, &err) == TSAR_OK && same_settings(&s, &before) && image == 3, "the seed of synthetic weights: %s", err.text);
    CHECK(read_key("generate.seed", "18446744073709551615", &s, &image, &err) == TSAR_OK && s.seed == UINT64_MAX && image == 3, "%s", err.text);
    CHECK(read_key("generate.cfg-interval", "-1", &s, &image, &err) == TSAR_OK && s.cfg_interval == -1, "%s", err.text);
    CHECK(read_key("generate.image", "12", &s, &image, &err) == TSAR_OK && image == 12, "%s", err.text);
}

int main(void)
{
    static const int64_t text[] = { 0, 5, 1 };
    static const double caption[] = { 1, -2, 3, 0.1, 0, 1e-300 }, mask[] = { 0, 1 };
    const tsar_prompt sentence = { .text = text, .n_text = 3 }, class_two = { .class_id = 2 }, features = { .caption = caption, .caption_mask = mask };
    test_round_trip(
        "arch=token-shuffle dim=16 n_layer=1 n_head=2 n_kv_head=1 ffn_hidden=24 norm_eps=1e-5 rope=1d text_vocab=6 codebook_size=12 grid_h=4 grid_w=6 "
        "shuffle=2 shuffle_blocks=1 shuffle_hidden=8 seed=3",
        &sentence);
    test_round_trip(
        "arch=llamagen-c2i dim=16 n_layer=1 n_head=2 n_kv_head=2 ffn_hidden=24 norm_eps=1e-5 rope=2d codebook_size=12 grid_h=3 grid_w=5 cond_tokens=1 "
        "num_classes=3 seed=3",
        &class_two);
    test_round_trip(
        "arch=llamagen-t2i dim=16 n_layer=1 n_head=2 n_kv_head=2 ffn_hidden=24 norm_eps=1e-5 rope=2d codebook_size=12 grid_h=3 grid_w=5 cond_tokens=2 "
        "caption_dim=3 seed=3",
        &features);
    test_keys();
    return test_end();
}
