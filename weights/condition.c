/* condition.c - from a sentence to what an image is conditioned on, for every family: a prefix of ids and its unconditional one, or the
 * features of the T5 encoder (SPEC 11). */
#include "../tsar.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* The caption of a text-conditional model: the L rows that the encoder gives stand at the right end of cond_tokens zero rows (QUIRKS-t5, 2). */
static tsar_status encode_caption(const tsar_model *model, const tsar_model *t5, const tsar_sentence *sentence, tsar_condition *out, tsar_error *err)
{
    const tsar_config *c = &model->config;
    const size_t T = c->cond_tokens, width = c->caption_dim;
    if (!t5->config.has_t5)
        return tsar_fail(err, TSAR_INPUT, "the model has no text encoder (t5.*): give one with --text-model T5, or features with --caption");
    if (t5->config.t5_dim != width)
        return tsar_fail(err, TSAR_INPUT, "the text encoder has t5_dim=%zu, but the model takes captions of caption_dim=%zu", t5->config.t5_dim, width);
    tsar_status status = tsar_text_t5(t5, sentence, T, &out->ids, &out->n_ids, err);
    if (status != TSAR_OK) return status;
    const size_t L = out->n_ids;
    out->caption = tsar_alloc(tsar_product(T, width), sizeof *out->caption, "the caption", err);
    out->mask = tsar_alloc(T, sizeof *out->mask, "the caption", err);
    if (!out->caption || !out->mask) return TSAR_ROOM;
    for (size_t i = T - L; i < T; i++) out->mask[i] = 1;
    return sentence->ids_only ? TSAR_OK : tsar_t5_encode(t5, out->ids, L, out->caption + (T - L) * width, NULL, err);
}

tsar_status tsar_condition_open(tsar_condition *out, const tsar_model *model, const tsar_model *t5, const tsar_sentence *sentence, const char *negative,
                                tsar_error *err)
{
    const tsar_family *family = tsar_family_of(&model->config);
    memset(out, 0, sizeof *out);
    tsar_status status = TSAR_OK;
    if (negative && family->uncond != TSAR_UNCOND_NEGATIVE)
        status = tsar_fail(err, TSAR_USAGE, "%s takes no negative prompt: its unconditional prefix follows from the prompt", family->name);
    else if (family->prefix == TSAR_PREFIX_CAPTION)
        status = encode_caption(model, t5 ? t5 : model, sentence, out, err);
    else
        status = tsar_text_prefix(model, sentence, &out->ids, &out->n_ids, err);
    if (status == TSAR_OK && family->uncond == TSAR_UNCOND_NEGATIVE) {
        const char *text = negative ? negative : tsar_negative_prompt;
        const tsar_sentence s = { .text = text, .bytes = strlen(text), .negative = 1, .raw = sentence->raw, .h = sentence->h, .w = sentence->w };
        status = tsar_text_prefix(model, &s, &out->uncond, &out->n_uncond, err);
    }
    if (status != TSAR_OK) tsar_condition_close(out);
    return status;
}

char *tsar_condition_text(const tsar_condition *condition, tsar_error *err)
{
    enum { ID_ROOM = 22 };
    char *text = tsar_alloc(tsar_product(condition->n_ids, ID_ROOM) + 1, 1, "the ids of the prompt", err), *end = text;
    for (size_t i = 0; text && i < condition->n_ids; i++) end += sprintf(end, "%s%" PRId64, i ? " " : "", condition->ids[i]);
    return text;
}

void tsar_condition_close(tsar_condition *condition)
{
    tsar_free(condition->ids);
    tsar_free(condition->uncond);
    tsar_free(condition->caption);
    tsar_free(condition->mask);
    memset(condition, 0, sizeof *condition);
}
