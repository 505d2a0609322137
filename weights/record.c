/* record.c - what a generation leaves behind: the file of generate --codes, from which it can be checked decision by decision (SPEC 10, Decoding). */
#include "../tsar.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define KEY_PREFIX "generate." /* in front of a flag's name; a bare `seed` is that of synthetic weights (SPEC 2) */

/* Everything that decides a code, by the names of the flags. */
static tsar_status put_settings(tsar_writer *writer, const tsar_settings *settings, size_t image, tsar_error *err)
{
    char number[7][32], order[64];
    const char *const keys[] = { "image", "seed", "cfg", "cfg-schedule", "cfg-interval", "temperature", "top-k", "top-p", "greedy", "decode" };
    const char *const values[] = { number[0],
                                   number[1],
                                   tsar_real_text(number[2], settings->cfg),
                                   tsar_schedule_names[settings->schedule],
                                   number[3],
                                   tsar_real_text(number[4], settings->temperature),
                                   number[5],
                                   tsar_real_text(number[6], settings->top_p),
                                   settings->greedy ? "1" : "0",
                                   tsar_order_text(order, settings) };
    tsar_status status = TSAR_OK;
    (void)snprintf(number[0], sizeof number[0], "%lu", (unsigned long)image);
    (void)snprintf(number[1], sizeof number[1], "%llu", (unsigned long long)settings->seed);
    (void)snprintf(number[3], sizeof number[3], "%lld", (long long)settings->cfg_interval);
    (void)snprintf(number[5], sizeof number[5], "%lu", (unsigned long)settings->top_k);
    for (size_t i = 0; status == TSAR_OK && i < sizeof keys / sizeof *keys; i++) {
        char key[32];
        (void)snprintf(key, sizeof key, KEY_PREFIX "%s", keys[i]);
        status = tsar_writer_meta(writer, key, values[i], err);
    }
    return status;
}

tsar_status tsar_record_write(const char *path, const tsar_model *model, const tsar_prompt *prompt, const tsar_settings *settings, const tsar_result *result,
                              size_t image, const char *command, tsar_error *err)
{
    const tsar_config *c = &model->config;
    const size_t N = c->grid_h * c->grid_w, n = c->tokens, slots = c->shuffle * c->shuffle, token = slots * c->vocab;
    const int64_t class_id = (int64_t)prompt->class_id;
    const tsar_values tensors[] = {
        { "input.text", TSAR_I64, 1, { prompt->n_text }, prompt->text },
        { "input.text_uncond", TSAR_I64, 1, { prompt->n_text_uncond }, prompt->text_uncond },
        { "input.class", TSAR_I64, 1, { 1 }, c->num_classes > 0 ? &class_id : NULL },
        { "input.caption", TSAR_F64, 2, { c->cond_tokens, c->caption_dim }, prompt->caption },
        { "input.caption_mask", TSAR_F64, 1, { c->cond_tokens }, prompt->caption_mask },
        { "codes", TSAR_I64, 2, { c->grid_h, c->grid_w }, result->codes + image * N },
        { "coarse", TSAR_I64, 2, { c->grid_h, c->grid_w }, result->coarse != NULL ? result->coarse + image * N : NULL },
        { "step_of", TSAR_I64, 2, { c->rows, c->columns }, result->step_of != NULL ? result->step_of + image * n : NULL },
        { "logits", TSAR_F64, 3, { n, slots, c->vocab }, result->logits != NULL ? result->logits + image * n * token : NULL },
    };
    tsar_writer *writer = NULL;
    tsar_status status = tsar_writer_open(&writer, path, err);
    if (status == TSAR_OK && command != NULL) status = tsar_writer_meta(writer, "command", command, err);
    if (status == TSAR_OK) status = put_settings(writer, settings, (size_t)settings->first_image + image, err);
    if (status == TSAR_OK) return tsar_values_write(writer, tensors, sizeof tensors / sizeof *tensors, err);
    tsar_writer_abandon(writer);
    return status;
}

/* The value of a key, where the file has it: a whole number from `least` on (least = -1 or 0), or a finite decimal number. */
typedef struct {
    const tsar_file *file;
    tsar_error *err;
    tsar_status status;
} record_reader;

static const char *get_text(const record_reader *r, const char *flag)
{
    char key[32];
    (void)snprintf(key, sizeof key, KEY_PREFIX "%s", flag);
    return r->status == TSAR_OK ? tsar_file_meta(r->file, key) : NULL;
}

static void refuse(record_reader *r, const char *flag, const char *text, const char *wanted)
{
    r->status = tsar_fail(r->err, TSAR_INPUT, "%s: the metadata's " KEY_PREFIX "%s is '%.60s'; it must be %s", tsar_file_path(r->file), flag, text, wanted);
}

static void get_count(record_reader *r, const char *flag, uint64_t most, uint64_t *out)
{
    const char *text = get_text(r, flag);
    uint64_t value = 0;
    int fits = text != NULL && *text != '\0';
    if (text == NULL) return;
    for (const char *p = text; fits && *p != '\0'; p++) {
        const uint64_t digit = (uint64_t)(*p - '0');
        fits = *p >= '0' && *p <= '9' && value <= (most - digit) / 10 && digit <= most;
        value = value * 10 + digit;
    }
    if (fits)
        *out = value;
    else
        refuse(r, flag, text, "a whole number");
}

static void get_real(record_reader *r, const char *flag, double *out)
{
    const char *text = get_text(r, flag);
    double value;
    if (text == NULL) return;
    if (tsar_real_read(&value, text, NULL) && fabs(value) < INFINITY)
        *out = value;
    else
        refuse(r, flag, text, "a finite decimal number");
}

tsar_status tsar_record_settings(tsar_settings *settings, uint64_t *image, const tsar_file *file, tsar_error *err)
{
    record_reader r = { file, err, TSAR_OK };
    tsar_settings s = *settings;
    const char *text;
    uint64_t top_k = s.top_k, greedy = s.greedy != 0, interval = (uint64_t)s.cfg_interval, from = *image;
    get_count(&r, "image", UINT64_MAX, &from);
    get_count(&r, "seed", UINT64_MAX, &s.seed);
    get_real(&r, "cfg", &s.cfg);
    if ((text = get_text(&r, "cfg-schedule")) != NULL) r.status = tsar_schedule_parse(&s.schedule, text, err);
    if ((text = get_text(&r, "cfg-interval")) != NULL && strcmp(text, "-1") == 0)
        interval = UINT64_MAX;
    else
        get_count(&r, "cfg-interval", INT64_MAX, &interval);
    get_real(&r, "temperature", &s.temperature);
    get_count(&r, "top-k", INT32_MAX, &top_k);
    get_real(&r, "top-p", &s.top_p);
    get_count(&r, "greedy", 1, &greedy);
    if ((text = get_text(&r, "decode")) != NULL) r.status = tsar_order_parse(&s, text, err);
    s.top_k = (size_t)top_k;
    s.greedy = (int)greedy;
    s.cfg_interval = interval == UINT64_MAX ? -1 : (int64_t)interval;
    if (r.status == TSAR_OK) r.status = tsar_settings_check(&s, err);
    if (r.status != TSAR_OK) return r.status == TSAR_USAGE ? TSAR_INPUT : r.status;
    *settings = s;
    *image = from;
    return TSAR_OK;
}
