/* The writer of the conformance suite (README.md beside it): one case a call, from a model and inputs that follow from a formula.
 *
 *     write trace  MODEL OUT [input=...]     every intermediate, from the inputs on and stage by stage, and the noise of each precision
 *     write decode MODEL OUT [input=...] [setting=...]     a generation: codes, passes, logits, random numbers, how near each decision was
 *     write rules  OUT                       functions without a model: guidance, sampling, random numbers, decode orders, bytes
 *     write text   TOKENIZER OUT TEXTS       ids of texts; TEXTS holds one in hexadecimal on each line
 *
 * Everything is computed by the library in double, and once more for each precision with weights and results of every operation rounded to it
 * (SPEC 10's n), so that the checker needs no model and computes no stage. */
#include "../verify.h"

#include "suite.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------------------------------------------------ a list of tensors */

void *suite_put(tensor_list *list, tsar_dtype dtype, size_t rank, const size_t *shape, const void *data, const char *format, const char *name, tsar_error *err)
{
    size_t count = 1;
    for (size_t i = 0; i < rank; i++) count *= shape[i];
    if (list->n == SUITE_TENSORS) {
        (void)tsar_fail(err, TSAR_ROOM, "a case has more than %d tensors", (int)SUITE_TENSORS);
        return NULL;
    }
    const size_t bytes = count * tsar_dtype_size(dtype);
    char *text = tsar_alloc(1, SUITE_NAME, "a name", err);
    void *copy = text ? tsar_alloc(bytes, 1, name, err) : NULL;
    if (!copy) {
        tsar_free(text);
        return NULL;
    }
    (void)snprintf(text, SUITE_NAME, format, name);
    if (bytes && data) memcpy(copy, data, bytes);
    tsar_values *v = &list->values[list->n++];
    *v = (tsar_values){ .name = text, .dtype = dtype, .rank = rank, .data = copy };
    memcpy(v->shape, shape, rank * sizeof *shape);
    return copy;
}

tsar_status suite_put_f32(tensor_list *list, size_t rank, const size_t *shape, const double *x, const char *format, const char *name, tsar_error *err)
{
    float *out = suite_put(list, TSAR_F32, rank, shape, NULL, format, name, err);
    size_t count = 1;
    for (size_t i = 0; i < rank; i++) count *= shape[i];
    for (size_t i = 0; out && i < count; i++) out[i] = (float)x[i];
    return out ? TSAR_OK : TSAR_ROOM;
}

const tsar_values *suite_find(const tensor_list *list, const char *format, const char *name)
{
    char text[SUITE_NAME];
    (void)snprintf(text, sizeof text, format, name);
    for (size_t i = 0; i < list->n; i++)
        if (strcmp(list->values[i].name, text) == 0) return &list->values[i];
    return NULL;
}

void suite_free(tensor_list *list)
{
    for (size_t i = 0; i < list->n; i++) {
        tsar_free((void *)list->values[i].name);
        tsar_free((void *)list->values[i].data);
    }
    list->n = 0;
}

/* ------------------------------------------------------------------------------------------------------------------- arguments */

/* The value of key=value among the arguments, or NULL. */
static const char *value_of(const suite_job *job, const char *key)
{
    const size_t n = strlen(key);
    for (int i = 0; i < job->n_arguments; i++)
        if (strncmp(job->arguments[i], key, n) == 0 && job->arguments[i][n] == '=') return job->arguments[i] + n + 1;
    return NULL;
}

static size_t read_list(int64_t *out, size_t room, const char *text)
{
    size_t n = 0;
    while (text && *text && n < room) {
        char *end;
        out[n++] = strtol(text, &end, 10);
        text = *end == ',' ? end + 1 : end;
        if (end[0] && end[0] != ',') break;
    }
    return n;
}

/* "HxW" */
static int read_size(const char *text, size_t *h, size_t *w)
{
    unsigned long a, b;
    if (!text || sscanf(text, "%lux%lu", &a, &b) != 2) return 0;
    *h = (size_t)a, *w = (size_t)b;
    return 1;
}

static tsar_status read_ids(int64_t **ids, size_t *n, const char *text, tsar_error *err)
{
    enum { MOST_WRITTEN = 512 };
    if (!text) return TSAR_OK;
    *ids = tsar_alloc(MOST_WRITTEN, sizeof **ids, "ids", err);
    if (!*ids) return TSAR_ROOM;
    *n = read_list(*ids, MOST_WRITTEN, text);
    return TSAR_OK;
}

/* Numbers that BF16 and F16 both hold: stages begin from them in every precision. */
double suite_given(double x)
{
    const float half = (float)tsar_widen_f16(tsar_round_f16((float)x));
    return tsar_widen_bf16(tsar_round_bf16(half));
}

/* SPEC 7: integers of a name are (z >> 33) mod limit. */
static tsar_status make_codes(int64_t **codes, size_t count, const char *name, uint64_t seed, size_t limit, tsar_error *err)
{
    const uint64_t key = tsar_synth_key(name, seed);
    *codes = tsar_alloc(count, sizeof **codes, name, err);
    for (size_t i = 0; *codes && i < count; i++) (*codes)[i] = (int64_t)((tsar_synth_word(key, i) >> 33) % limit);
    return *codes ? TSAR_OK : TSAR_ROOM;
}

static tsar_status make_caption(tsar_inputs *in, const tsar_config *c, const char *mask, uint64_t seed, tsar_error *err)
{
    const size_t T = c->cond_tokens, C = c->caption_dim;
    const uint64_t key = tsar_synth_key("input.caption", seed);
    int64_t real[256] = { 0 };
    (void)read_list(real, 256, mask);
    in->caption = tsar_alloc(T, C * sizeof *in->caption, "input.caption", err);
    in->caption_mask = tsar_alloc(T, sizeof *in->caption_mask, "input.caption_mask", err);
    if (!in->caption || !in->caption_mask) return TSAR_ROOM;
    for (size_t i = 0; i < T * C; i++) in->caption[i] = suite_given((double)(tsar_synth_word(key, i) >> 40) * ldexp(1, -23) - 1);
    for (size_t i = 0; i < T; i++) in->caption_mask[i] = i < 256 && real[i] ? 1 : 0;
    return TSAR_OK;
}

static tsar_status make_image(tsar_inputs *in, uint64_t seed, tsar_error *err)
{
    const uint64_t key = tsar_synth_key("input.image", seed);
    in->image = tsar_alloc(in->H, tsar_product(in->W, 3), "input.image", err);
    for (size_t i = 0; in->image && i < 3 * in->H * in->W; i++) in->image[i] = (uint8_t)(tsar_synth_word(key, i) >> 56);
    return in->image ? TSAR_OK : TSAR_ROOM;
}

/* input.* of the arguments: text=0,7,1 text_uncond= t5= class= mask= (of a caption) image=HxW codes=HxW coarse=HxW content=SEED */
static tsar_status make_inputs(suite_job *job, tsar_error *err)
{
    tsar_inputs *in = &job->inputs;
    const tsar_config *c = &job->model->config;
    const char *class_id = value_of(job, "class"), *content = value_of(job, "content"), *mask = value_of(job, "mask");
    const uint64_t seed = content ? strtoul(content, NULL, 10) : 1;
    size_t h = 0, w = 0;
    tsar_status status = read_ids(&in->text, &in->n_text, value_of(job, "text"), err);
    if (status == TSAR_OK) status = read_ids(&in->text_uncond, &in->n_text_uncond, value_of(job, "text_uncond"), err);
    if (status == TSAR_OK) status = read_ids(&in->t5_ids, &in->n_t5_ids, value_of(job, "t5"), err);
    if (class_id) in->has_class = 1, in->class_id = strtoul(class_id, NULL, 10);
    if (status == TSAR_OK && mask) status = make_caption(in, c, mask, seed, err);
    if (status == TSAR_OK && read_size(value_of(job, "image"), &in->H, &in->W)) status = make_image(in, seed, err);
    if (status == TSAR_OK && read_size(value_of(job, "codes"), &in->h, &in->w))
        status = make_codes(&in->codes, in->h * in->w, "input.codes", seed, c->codebook_size, err);
    if (status == TSAR_OK && read_size(value_of(job, "coarse"), &h, &w)) status = make_codes(&in->coarse, h * w, "input.coarse", seed, c->n_coarse, err);
    return status;
}

static tsar_status find_longest(void *context, const tsar_weight *weight, tsar_error *err)
{
    suite_job *job = context;
    size_t terms = 1;
    (void)err;
    for (size_t i = 1; i < weight->rank; i++) terms *= weight->shape[i];
    if (weight->use == TSAR_AS_MATRIX && tsar_has_prefix(weight->name, job->prefix) && terms > job->K) job->K = terms;
    return TSAR_OK;
}

/* job->K: the longest dot product with a weight of the part. */
tsar_status suite_longest(suite_job *job, const char *prefix, tsar_error *err)
{
    job->prefix = prefix, job->K = 1;
    return tsar_weights(&job->model->config, NULL, find_longest, job, err);
}

static tsar_status read_settings(suite_job *job, tsar_error *err)
{
    tsar_settings *s = &job->settings;
    const char *text;
    tsar_status status = TSAR_OK;
    *s = tsar_settings_default(job->model);
    if ((text = value_of(job, "seed"))) s->seed = strtoul(text, NULL, 10);
    if ((text = value_of(job, "cfg"))) (void)tsar_real_read(&s->cfg, text, NULL);
    if ((text = value_of(job, "temperature"))) (void)tsar_real_read(&s->temperature, text, NULL);
    if ((text = value_of(job, "top_p"))) (void)tsar_real_read(&s->top_p, text, NULL);
    if ((text = value_of(job, "top_k"))) s->top_k = strtoul(text, NULL, 10);
    if ((text = value_of(job, "cfg_interval"))) s->cfg_interval = strtol(text, NULL, 10);
    if ((text = value_of(job, "greedy"))) s->greedy = *text == '1';
    if ((text = value_of(job, "cfg_schedule"))) status = tsar_schedule_parse(&s->schedule, text, err);
    if (status == TSAR_OK && (text = value_of(job, "decode"))) status = tsar_order_parse(s, text, err);
    return status == TSAR_OK ? tsar_settings_check(s, err) : status;
}

/* ------------------------------------------------------------------------------------------------------------------------ files */

static tsar_status put_settings(tsar_writer *writer, const tsar_settings *s, tsar_error *err)
{
    char number[4][32], real[3][32], order[64];
    const char *const keys[] = { "seed", "cfg", "cfg_schedule", "cfg_interval", "temperature", "top_k", "top_p", "greedy", "decode" };
    (void)snprintf(number[0], sizeof number[0], "%lu", (unsigned long)s->seed);
    (void)snprintf(number[1], sizeof number[1], "%ld", (long)s->cfg_interval);
    (void)snprintf(number[2], sizeof number[2], "%lu", (unsigned long)s->top_k);
    const char *const values[] = { number[0],
                                   tsar_real_text(real[0], s->cfg),
                                   tsar_schedule_names[s->schedule],
                                   number[1],
                                   tsar_real_text(real[1], s->temperature),
                                   number[2],
                                   tsar_real_text(real[2], s->top_p),
                                   s->greedy ? "1" : "0",
                                   tsar_order_text(order, s) };
    tsar_status status = TSAR_OK;
    for (size_t i = 0; status == TSAR_OK && i < sizeof keys / sizeof *keys; i++) status = tsar_writer_meta(writer, keys[i], values[i], err);
    return status;
}

static tsar_status write_case(const suite_job *job, const char *kind, const tensor_list *list, const char *path, tsar_error *err)
{
    tsar_writer *writer = NULL;
    tsar_status status = tsar_writer_open(&writer, path, err);
    if (status == TSAR_OK) {
        status = tsar_writer_meta(writer, "kind", kind, err);
        if (status == TSAR_OK && strcmp(kind, "decode") == 0) status = put_settings(writer, &job->settings, err);
        if (status == TSAR_OK) return tsar_values_write(writer, list->values, list->n, err);
        tsar_writer_abandon(writer);
    }
    return status;
}

static tsar_status one_case(suite_job *job, const char *kind, const char *path, tensor_list *list, tsar_error *err)
{
    if (strcmp(kind, "rules") == 0) {
        const tsar_status status = suite_rules(list, err);
        return status == TSAR_OK ? write_case(job, kind, list, path, err) : status;
    }
    tsar_status status = tsar_model_open(&job->model, job->model_path, TSAR_PART_ALL, 1, err);
    if (status == TSAR_OK) status = make_inputs(job, err);
    if (status == TSAR_OK) status = read_settings(job, err);
    if (status == TSAR_OK) status = strcmp(kind, "trace") == 0 ? suite_trace(job, list, err) : suite_decode(job, list, err);
    return status == TSAR_OK ? write_case(job, kind, list, path, err) : status;
}

int main(int argc, char **argv)
{
    static tensor_list list;
    suite_job job = { .p = TSAR_F64 };
    tsar_error err = { "" };
    const char *const kind = argc > 1 ? argv[1] : "";
    const int first = strcmp(kind, "rules") == 0 ? 3 : 4;
    tsar_status status = TSAR_USAGE;
    if (argc >= first && strcmp(kind, "text") == 0 && argc == 5) status = suite_text(&list, argv[2], argv[4], &err), job.model_path = argv[2];
    if (status == TSAR_OK) status = write_case(&job, "text", &list, argv[3], &err);
    if (argc >= first && (strcmp(kind, "trace") == 0 || strcmp(kind, "decode") == 0 || strcmp(kind, "rules") == 0)) {
        job.model_path = argv[2], job.n_arguments = argc - first, job.arguments = argv + first;
        status = tsar_self_check(&err);
        if (status == TSAR_OK) status = one_case(&job, kind, argv[first - 1], &list, &err);
    }
    if (status != TSAR_OK) fprintf(stderr, "write: %s\n", err.text[0] ? err.text : "usage: write trace|decode|rules|text ... (see the top of write.c)");
    suite_free(&list);
    tsar_inputs_close(&job.inputs);
    tsar_model_close(job.model);
    return (int)status;
}
