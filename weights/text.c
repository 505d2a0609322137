/* text.c - from a sentence to a prefix by the template of the model's family (SPEC 11), and back. */
#include "text.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* --------------------------------------------------------------------------------------------------------- templates */

const char tsar_negative_prompt[] =
    "lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, cropped, worst quality, low quality, "
    "normal quality, jpeg artifacts, signature, watermark, username, blurry.";
static const char EMU3_SUFFIX[] = " masterpiece, film grained, best quality.";

/* A prefix under way: the text that is still to be encoded, and the ids before it. A special token's own text is part of it, because
 * normalisation and added tokens see both (Emu3's NFC); the first failure stays. */
typedef struct {
    const tsar_model *model;
    char *text;
    size_t bytes, text_room;
    int64_t *ids;
    size_t n, room;
    tsar_status status;
    tsar_error *err;
} prefix;

static void add_text(prefix *p, const char *text, size_t bytes)
{
    if (p->status == TSAR_OK && bytes > p->text_room - p->bytes) {
        const size_t room = tsar_product(2, p->bytes + bytes);
        char *grown = tsar_alloc(room, 1, "the prompt", p->err);
        if (!grown) p->status = TSAR_ROOM;
        if (grown && p->bytes) memcpy(grown, p->text, p->bytes);
        if (grown) {
            tsar_free(p->text);
            p->text = grown;
            p->text_room = room;
        }
    }
    if (p->status != TSAR_OK) return;
    if (bytes) memcpy(p->text + p->bytes, text, bytes);
    p->bytes += bytes;
}

static void add_string(prefix *p, const char *text) { add_text(p, text, strlen(text)); }

/* Room for `more` ids. */
static void reserve_ids(prefix *p, size_t more)
{
    if (p->status != TSAR_OK || more <= p->room - p->n) return;
    const size_t room = 2 * p->n + more;
    int64_t *grown = tsar_alloc(room, sizeof *grown, "the prompt", p->err);
    if (!grown) {
        p->status = TSAR_ROOM;
        return;
    }
    if (p->n) memcpy(grown, p->ids, p->n * sizeof *grown);
    tsar_free(p->ids);
    p->ids = grown;
    p->room = room;
}

/* Encodes the text so far. */
static void flush_text(prefix *p)
{
    int64_t *ids = NULL;
    size_t n = 0;
    if (p->status == TSAR_OK && p->bytes) p->status = tsar_bpe_encode(&p->model->bpe, p->text, p->bytes, &ids, &n, p->err);
    p->bytes = 0;
    reserve_ids(p, n);
    if (p->status == TSAR_OK && n) memcpy(p->ids + p->n, ids, n * sizeof *ids);
    if (p->status == TSAR_OK) p->n += n;
    tsar_free(ids);
}

static void add_id(prefix *p, int64_t id, const char *key)
{
    flush_text(p);
    if (p->status == TSAR_OK && id < 0)
        p->status = tsar_fail(p->err, TSAR_INPUT, "the model has no key %s, which its prompts need (give it with tsar import, or ids by --prompt-ids)", key);
    reserve_ids(p, 1);
    if (p->status == TSAR_OK) p->ids[p->n++] = id;
}

/* A special token by its text where the tokenizer has one for it, else by its id. */
static void add_special(prefix *p, int64_t id, const char *key)
{
    const tsar_pieces *special = &p->model->bpe.special;
    size_t i = 0;
    while (i < special->n && special->ids[i] != id) i++;
    if (id < 0 || i == special->n)
        add_id(p, id, key);
    else
        add_text(p, (const char *)special->bytes + special->at[i], (size_t)(special->at[i + 1] - special->at[i]));
}

/* The id of a size in codes: size_base + n / size_unit. */
static void add_size(prefix *p, size_t n)
{
    const tsar_config *c = &p->model->config;
    const size_t unit = c->size_unit ? c->size_unit : 1;
    if (p->status == TSAR_OK && n % unit != 0)
        p->status = tsar_fail(p->err, TSAR_INPUT, "a side of %zu codes has no id of its own: the model's sizes are multiples of %zu codes", n, unit);
    add_id(p, c->size_base < 0 ? -1 : c->size_base + (int64_t)(n / unit), "size_base");
}

/* Python's strip: Unicode's blanks, and 1C to 1F. */
static void strip_blanks(const char **text, size_t *bytes)
{
    size_t length, first = 0, last = 0; /* behind the last character that is no blank */
    int seen = 0;
    for (size_t at = 0; at < *bytes; at += length) {
        const uint32_t code = tsar_char_at(*text + at, *bytes - at, &length);
        if (tsar_char_is(TSAR_BLANK, code) || (code >= 0x1C && code <= 0x1F)) continue;
        if (!seen) first = at;
        seen = 1;
        last = at + length;
    }
    *text += first;
    *bytes = last - first;
}

static void fill_janus(prefix *p, const tsar_sentence *sentence, const char *user, const char *assistant)
{
    const char *text = sentence->text;
    size_t bytes = sentence->bytes;
    strip_blanks(&text, &bytes);
    add_id(p, p->model->config.bos, "bos");
    add_string(p, user);
    add_string(p, bytes ? ": " : ":");
    add_text(p, text, bytes);
    if (bytes) add_string(p, "\n\n");
    add_string(p, assistant);
    add_string(p, ":");
    add_special(p, p->model->config.boi, "boi");
}

static void fill_lumina(prefix *p, const tsar_sentence *sentence, size_t h, size_t w)
{
    const tsar_config *c = &p->model->config;
    const size_t pixels = c->has_vq ? c->vq_factor : 16; /* a code's side */
    char size[64];
    snprintf(size, sizeof size, "%" PRIu64 "x%" PRIu64, (uint64_t)w * pixels, (uint64_t)h * pixels);
    add_id(p, c->bos, "bos");
    add_string(p, "Generate an image of ");
    add_string(p, size);
    add_string(p, " according to the following prompt:\n");
    add_text(p, sentence->text, sentence->bytes);
    add_special(p, c->sep, "sep");
    add_id(p, c->boi, "boi");
    add_size(p, h);
    add_size(p, w);
}

static void fill_emu3(prefix *p, const tsar_sentence *sentence, size_t h, size_t w)
{
    const tsar_config *c = &p->model->config;
    char size[64];
    snprintf(size, sizeof size, "%" PRIu64 "*%" PRIu64, (uint64_t)h, (uint64_t)w);
    add_special(p, c->bos, "bos");
    add_text(p, sentence->text, sentence->bytes);
    if (!sentence->raw && !sentence->negative) add_string(p, EMU3_SUFFIX);
    add_special(p, c->boi, "boi");
    add_string(p, size);
    add_special(p, c->img, "img");
}

/* The prefix by the template of the configuration. */
static void fill(prefix *p, const tsar_sentence *sentence)
{
    const tsar_config *c = &p->model->config;
    const size_t h = sentence->h ? sentence->h : c->grid_h, w = sentence->w ? sentence->w : c->grid_w;
    switch ((tsar_template)c->text_template) {
    case TSAR_TEMPLATE_NONE: break;
    case TSAR_TEMPLATE_TSAR:
        add_id(p, TSAR_BOS, "bos");
        add_text(p, sentence->text, sentence->bytes);
        add_id(p, TSAR_SOI, "boi");
        break;
    case TSAR_TEMPLATE_LUMINA: fill_lumina(p, sentence, h, w); break;
    case TSAR_TEMPLATE_EMU3: fill_emu3(p, sentence, h, w); break;
    case TSAR_TEMPLATE_JANUS: fill_janus(p, sentence, "User", "Assistant"); break;
    case TSAR_TEMPLATE_JANUS_PRO: fill_janus(p, sentence, "<|User|>", "<|Assistant|>"); break;
    }
    flush_text(p);
}

enum { T5_END = 1, MOST_T5 = 120 }; /* </s>; pieces where no cond_tokens tells */

tsar_status tsar_text_t5(const tsar_model *t5, const tsar_sentence *sentence, size_t most, int64_t **ids, size_t *n, tsar_error *err)
{
    char *clean = NULL;
    const char *text = sentence->text;
    size_t bytes = sentence->bytes;
    *ids = NULL;
    *n = 0;
    if (!t5->spiece)
        return tsar_fail(err, TSAR_INPUT, "%s has no tokenizer t5.spiece, so it takes no text (import it with its spiece.model)",
                         t5->config.has_t5 ? "the text encoder" : "the model");
    tsar_status status = TSAR_OK;
    if (t5->config.t5_clean && !sentence->raw) {
        status = tsar_caption_clean(text, bytes, &clean, &bytes, err);
        text = clean;
    }
    if (status == TSAR_OK) status = tsar_spiece_encode(t5->spiece, text, bytes, ids, n, err);
    tsar_free(clean);
    if (status != TSAR_OK) return status;
    if (*n > most - 1) *n = most - 1;
    (*ids)[(*n)++] = T5_END;
    return TSAR_OK;
}

tsar_status tsar_text_prefix(const tsar_model *model, const tsar_sentence *sentence, int64_t **ids, size_t *n, tsar_error *err)
{
    const size_t least = TSAR_SPECIALS + 256;
    const tsar_config *c = &model->config;
    *ids = NULL;
    *n = 0;
    if (c->has_t5 && c->text_template == TSAR_TEMPLATE_NONE) return tsar_text_t5(model, sentence, c->cond_tokens ? c->cond_tokens : MOST_T5, ids, n, err);
    if (c->text_template == TSAR_TEMPLATE_NONE)
        return tsar_fail(err, TSAR_INPUT, "this model takes no text prompt (llamagen-c2i takes --class, llamagen-t2i --caption)");
    if (!model->bpe.byte_ids && (c->text_template != TSAR_TEMPLATE_TSAR || !model->bpe.pairs.at))
        return tsar_fail(err, TSAR_INPUT, "the model has no tokenizer, so it takes no text (give its ids by --prompt-ids, or import it with its tokenizer)");
    if (!model->bpe.byte_ids && c->text_vocab < least)
        return tsar_fail(err, TSAR_INPUT, "the model has text_vocab=%zu, too small for text, which needs %zu (give its ids by --prompt-ids)", c->text_vocab,
                         least);
    prefix p = { .model = model, .status = TSAR_OK, .err = err };
    fill(&p, sentence);
    tsar_free(p.text);
    if (p.status == TSAR_OK) {
        *ids = p.ids;
        *n = p.n;
    } else {
        tsar_free(p.ids);
    }
    return p.status;
}

tsar_status tsar_text_encode(const tsar_model *model, const char *prompt, int64_t **ids, size_t *n, tsar_error *err)
{
    const tsar_sentence sentence = { .text = prompt, .bytes = strlen(prompt) };
    return tsar_text_prefix(model, &sentence, ids, n, err);
}

tsar_status tsar_text_ids(const tsar_model *model, const char *text, size_t bytes, int64_t **ids, size_t *n, tsar_error *err)
{
    if (model->spiece) return tsar_spiece_encode(model->spiece, text, bytes, ids, n, err);
    if (model->bpe.pairs.at && (model->bpe.byte_ids || model->config.text_template == TSAR_TEMPLATE_TSAR))
        return tsar_bpe_encode(&model->bpe, text, bytes, ids, n, err);
    *ids = NULL;
    *n = 0;
    return tsar_fail(err, TSAR_INPUT, "the model has no tokenizer, so it takes no text (import it with its tokenizer)");
}

tsar_status tsar_text_decode(const tsar_model *model, const int64_t *ids, size_t n, char **text, tsar_error *err)
{
    size_t bytes = 0;
    return tsar_bpe_decode(&model->bpe, ids, n, text, &bytes, err);
}

/* ------------------------------------------------------------------------------------------------------------ new words */

/* Whether a word of `length` bytes is one of those that blanks divide in the first n bytes of text. */
static int stands_in(const char *text, size_t n, const char *word, size_t length)
{
    for (size_t start = 0, end; start < n; start = end + 1) {
        const char *blank = memchr(text + start, ' ', n - start);
        end = blank ? (size_t)(blank - text) : n;
        if (end - start == length && memcmp(text + start, word, length) == 0) return 1;
    }
    return 0;
}

size_t tsar_text_new_word(const tsar_model *model, const char *prompt, size_t from, size_t *length)
{
    const char *known = model->known_words;
    for (size_t start = from; known && prompt[start]; start += *length + (prompt[start + *length] == ' ')) {
        *length = strcspn(prompt + start, " ");
        if (*length && !stands_in(known, strlen(known), prompt + start, *length) && !stands_in(prompt, start, prompt + start, *length)) return start;
    }
    return SIZE_MAX;
}
