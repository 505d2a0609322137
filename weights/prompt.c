/* Prompts (SPEC 3): what an image is conditioned on, checked against a model, and the ids in front of its tokens. */
#include "../tsar.h"

#include <math.h>

/* The list that the prefix is made of: the caller's own for the unconditional sequence, else the conditional one. */
static const int64_t *own_ids(const tsar_prompt *prompt, size_t *n)
{
    const int own = prompt->unconditional && prompt->text_uncond != NULL;
    *n = own ? prompt->n_text_uncond : prompt->n_text;
    return own ? prompt->text_uncond : prompt->text;
}

size_t tsar_prompt_length(const tsar_model *model, const tsar_prompt *prompt)
{
    const tsar_family *family = tsar_family_of(&model->config);
    size_t n;
    if (family->prefix != TSAR_PREFIX_IDS) return model->config.cond_tokens;
    (void)own_ids(prompt, &n);
    if (!prompt->unconditional || prompt->text_uncond) return n;
    return family->uncond == TSAR_UNCOND_SYSTEM ? 2 : family->uncond == TSAR_UNCOND_LAST ? 3 : n;
}

/* The rules of the unconditional prefix: <bos> <soi>; the last three ids; `pad` for all but the first and the last. */
int64_t tsar_prompt_id(const tsar_model *model, const tsar_prompt *prompt, size_t place)
{
    size_t n;
    const int64_t *ids = own_ids(prompt, &n);
    if (!prompt->unconditional || prompt->text_uncond) return ids[place];
    switch (tsar_family_of(&model->config)->uncond) {
    case TSAR_UNCOND_SYSTEM: return place == 0 ? TSAR_BOS : TSAR_SOI;
    case TSAR_UNCOND_LAST: return ids[n - 3 + place];
    case TSAR_UNCOND_PAD: return place == 0 || place + 1 == n ? ids[place] : model->config.pad;
    default: return ids[place];
    }
}

/* A prefix: not empty, every id of the vocabulary, and the id that begins an image among them where the model has one. */
static tsar_status check_ids(const tsar_config *c, const int64_t *ids, size_t n, const char *what, tsar_error *err)
{
    int begins = c->boi < 0;
    if (!ids || n == 0) return tsar_fail(err, TSAR_INPUT, "the model needs a %s of ids, the last of which predicts the first code", what);
    for (size_t i = 0; i < n; i++) {
        if (ids[i] < 0 || (uint64_t)ids[i] >= c->n_ids)
            return tsar_fail(err, TSAR_INPUT, "text id %lld at place %zu of the %s is outside 0 ... %zu (the model's vocabulary)", (long long)ids[i], i, what,
                             c->n_ids - 1);
        begins |= ids[i] == c->boi;
    }
    if (!begins)
        return tsar_fail(err, TSAR_INPUT, "the %s has no id %lld, which begins an image in this model (key boi); put it in front of the image", what,
                         (long long)c->boi);
    return TSAR_OK;
}

/* The prefixes of both sequences, and what the rule of the unconditional one needs. */
static tsar_status check_prefixes(const tsar_config *c, const tsar_prompt *prompt, tsar_error *err)
{
    const tsar_uncond uncond = tsar_family_of(c)->uncond;
    tsar_status status = check_ids(c, prompt->text, prompt->n_text, "prompt", err);
    if (status == TSAR_OK && prompt->text_uncond) return check_ids(c, prompt->text_uncond, prompt->n_text_uncond, "negative prompt", err);
    if (status != TSAR_OK || !prompt->unconditional) return status;
    if (uncond == TSAR_UNCOND_LAST && prompt->n_text < 3)
        return tsar_fail(err, TSAR_INPUT, "the prompt has %zu ids, but guidance needs its last three, or ids of its own (--negative-ids)", prompt->n_text);
    if (uncond == TSAR_UNCOND_PAD && c->pad < 0)
        return tsar_fail(err, TSAR_INPUT, "guidance needs the id of padding (key pad), or a prefix of its own (--negative-ids), or none (--cfg 1)");
    if (uncond == TSAR_UNCOND_NEGATIVE)
        return tsar_fail(err, TSAR_INPUT, "guidance needs a prefix of its own in this model (--negative-ids or --negative), or none (--cfg 1)");
    return TSAR_OK;
}

static tsar_status check_class(const tsar_config *c, const tsar_prompt *prompt, tsar_error *err)
{
    if (c->no_null_class && (prompt->unconditional || prompt->class_id >= c->num_classes))
        return tsar_fail(err, TSAR_INPUT,
                         "the model has no row for \"no class\" (null_class=0): classes are 0 ... %zu, and guidance has nothing to subtract (--cfg 1)",
                         c->num_classes - 1);
    if (prompt->class_id > c->num_classes)
        return tsar_fail(err, TSAR_INPUT, "class %zu is outside 0 ... %zu (class %zu is the unconditional one)", prompt->class_id, c->num_classes,
                         c->num_classes);
    return TSAR_OK;
}

static tsar_status check_caption(const tsar_config *c, const tsar_prompt *prompt, tsar_error *err)
{
    if (!prompt->caption || !prompt->caption_mask) return tsar_fail(err, TSAR_INPUT, "the model needs caption features and their mask");
    for (size_t i = 0; i < c->cond_tokens * c->caption_dim; i++)
        if (!(fabs(prompt->caption[i]) < INFINITY)) return tsar_fail(err, TSAR_INPUT, "caption feature %zu is not finite", i);
    for (size_t i = 0; i < c->cond_tokens; i++)
        if (prompt->caption_mask[i] != 0.0 && prompt->caption_mask[i] != 1.0) return tsar_fail(err, TSAR_INPUT, "caption mask %zu is neither 0 nor 1", i);
    return TSAR_OK;
}

tsar_status tsar_prompt_check(const tsar_model *model, const tsar_prompt *prompt, tsar_error *err)
{
    const tsar_config *c = &model->config;
    switch (tsar_family_of(c)->prefix) {
    case TSAR_PREFIX_NONE: break;
    case TSAR_PREFIX_IDS: return check_prefixes(c, prompt, err);
    case TSAR_PREFIX_CLASS: return check_class(c, prompt, err);
    case TSAR_PREFIX_CAPTION: return check_caption(c, prompt, err);
    }
    return tsar_fail(err, TSAR_INPUT, "the model has no transformer (no key arch): it takes no prompt");
}
