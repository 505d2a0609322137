/* Configurations (SPEC 2): the table of families, the table of keys, and their users: reading, checking and writing. */
#include "../tsar.h"

#include <float.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------------------------------------------------- families */

const char *const tsar_schedule_names[TSAR_SCHEDULES] = { "constant", "linear", "half-linear", "cosine" };

#define IDS (TSAR_TAKES_EOL | TSAR_TAKES_COARSE | TSAR_TAKES_QK_NORM)
#define LLAMAGEN (TSAR_TAKES_COARSE | TSAR_TAKES_QK_NORM | TSAR_TAKES_ROPE_2D | TSAR_TAKES_AUTHORS)

/* SPEC 3 (prefixes), 8 (shapes), 9 (sampling), 11 (templates). The last three rows differ by these and by their keys alone. */
const tsar_family tsar_families[TSAR_ARCHS] = {
    /* name           prefix               unconditional         template              table rows takes */
    { "",             TSAR_PREFIX_NONE,    TSAR_UNCOND_NONE,     TSAR_TEMPLATE_NONE,   1,    1,   0,
      7.5, TSAR_HALF_LINEAR, 0, -1 },
    { "token-shuffle", TSAR_PREFIX_IDS,    TSAR_UNCOND_SYSTEM,   TSAR_TEMPLATE_TSAR,   1,    1,   IDS | TSAR_TAKES_SHUFFLE | TSAR_TAKES_ROPE_2D,
      7.5, TSAR_HALF_LINEAR, 0, TSAR_SOI },
    { "llamagen-c2i", TSAR_PREFIX_CLASS,   TSAR_UNCOND_CLASS,    TSAR_TEMPLATE_NONE,   1,    0,   LLAMAGEN,
      4.0, TSAR_CONSTANT, 2000, -1 },
    { "llamagen-t2i", TSAR_PREFIX_CAPTION, TSAR_UNCOND_FEATURES, TSAR_TEMPLATE_NONE,   1,    0,   LLAMAGEN,
      7.5, TSAR_CONSTANT, 1000, -1 },
    { "lumina-mgpt",  TSAR_PREFIX_IDS,     TSAR_UNCOND_LAST,     TSAR_TEMPLATE_LUMINA, 1,    1,   IDS,
      3.0, TSAR_CONSTANT, 2000, -1 },
    { "emu3",         TSAR_PREFIX_IDS,     TSAR_UNCOND_NEGATIVE, TSAR_TEMPLATE_EMU3,   1,    1,   IDS,
      3.0, TSAR_CONSTANT, 2048, -1 },
    { "janus",        TSAR_PREFIX_IDS,     TSAR_UNCOND_PAD,      TSAR_TEMPLATE_JANUS,  0,    1,   IDS,
      5.0, TSAR_CONSTANT, 0, -1 },
};

/* -------------------------------------------------------------------------------------------------------------- keys */

#define MAX_VOCAB ((size_t)2147483647) /* 2^31 - 1: ids fit into 32 bits */
#define MAX_LAYERS ((size_t)4096)      /* of any kind: a few keys shall not make a billion weights to visit */
#define MAX_TEMPORAL ((size_t)64)

#define GPT TSAR_PART_GPT
#define FINE TSAR_PART_FINE
#define VQ TSAR_PART_VQ
#define T5 TSAR_PART_T5
#define STACKS (GPT | FINE)
#define WITH_CODES (GPT | FINE | VQ)
#define AT(field) offsetof(tsar_config, field)
#define OF(arch) (1u << (arch))
#define OF_SEQUENCES (OF(TSAR_LUMINA_MGPT) | OF(TSAR_EMU3) | OF(TSAR_JANUS))

/* One row: name, parts that know it and parts that need it, kind, place, bounds, choices, value where it is absent, families. */
#define SIZE(key, parts, required, most, absent, families) { #key, parts, required, TSAR_KEY_SIZE, AT(key), most, NULL, absent, families }
#define CHOICE(key, parts, required, field, choices, absent) { #key, parts, required, TSAR_KEY_CHOICE, AT(field), 0, choices, absent, 0 }
#define REAL(key, parts, required, field, absent) { #key, parts, required, TSAR_KEY_REAL, AT(field), 0, NULL, absent, 0 }
#define ID(key, parts) { #key, parts, 0, TSAR_KEY_ID, AT(key), MAX_VOCAB - 1, NULL, NULL, 0 }

static const tsar_key keys[] = {
    { "arch", GPT, GPT, TSAR_KEY_ARCH, AT(arch), 0, NULL, NULL, 0 },
    SIZE(dim, GPT, GPT, TSAR_MAX_DIM, NULL, 0),
    SIZE(n_layer, GPT, GPT, MAX_LAYERS, NULL, 0),
    SIZE(n_head, GPT, GPT, TSAR_MAX_DIM, NULL, 0),
    SIZE(n_kv_head, GPT, GPT, TSAR_MAX_DIM, NULL, 0),
    SIZE(ffn_hidden, GPT, GPT, TSAR_MAX_DIM, NULL, 0),
    REAL(norm_eps, STACKS, STACKS, norm_eps, NULL),
    CHOICE(rope, GPT, GPT, rope_2d, "1d 2d", NULL),
    REAL(rope_base, STACKS, 0, rope_base, "10000"),
    SIZE(qk_norm, GPT, 0, TSAR_MAX_DIM, NULL, 0),
    CHOICE(norm_order, GPT, 0, norm_post, "pre post", NULL),
    SIZE(text_vocab, GPT, GPT, MAX_VOCAB, NULL, OF(TSAR_TOKEN_SHUFFLE)),
    SIZE(vocab_size, GPT, GPT, MAX_VOCAB, NULL, OF_SEQUENCES),
    { "image_base", GPT, GPT, TSAR_KEY_COUNT, AT(image_base), MAX_VOCAB, NULL, NULL, OF(TSAR_LUMINA_MGPT) | OF(TSAR_EMU3) },
    SIZE(image_embed, GPT, GPT, TSAR_MAX_DIM, NULL, OF(TSAR_JANUS)),
    SIZE(image_head, GPT, GPT, TSAR_MAX_DIM, NULL, OF(TSAR_JANUS)),
    ID(eol, GPT),
    SIZE(codebook_size, WITH_CODES, WITH_CODES, MAX_VOCAB, NULL, 0),
    SIZE(grid_h, WITH_CODES, STACKS, TSAR_MAX_DIM, NULL, 0),
    SIZE(grid_w, WITH_CODES, STACKS, TSAR_MAX_DIM, NULL, 0),
    SIZE(n_coarse, WITH_CODES, FINE, MAX_VOCAB, NULL, 0),
    SIZE(shuffle, GPT, GPT, TSAR_MAX_DIM, NULL, OF(TSAR_TOKEN_SHUFFLE)),
    SIZE(shuffle_blocks, GPT, 0, MAX_LAYERS, NULL, OF(TSAR_TOKEN_SHUFFLE)),
    SIZE(shuffle_hidden, GPT, 0, TSAR_MAX_DIM, NULL, OF(TSAR_TOKEN_SHUFFLE)),
    SIZE(num_classes, GPT, GPT, TSAR_MAX_DIM, NULL, OF(TSAR_LLAMAGEN_C2I)),
    CHOICE(null_class, GPT, 0, no_null_class, "1 0", NULL), /* 0: the table of classes has no row for "no class" (ours) */
    SIZE(cond_tokens, GPT, GPT, TSAR_MAX_DIM, NULL, OF(TSAR_LLAMAGEN_C2I) | OF(TSAR_LLAMAGEN_T2I)),
    SIZE(caption_dim, GPT, GPT, TSAR_MAX_DIM, NULL, OF(TSAR_LLAMAGEN_T2I)),
    SIZE(vq_ch, VQ, VQ, TSAR_MAX_DIM, NULL, 0),
    { "vq_ch_mult", VQ, VQ, TSAR_KEY_LEVELS, AT(vq_ch_mult), TSAR_MAX_DIM, NULL, NULL, 0 },
    SIZE(vq_res_blocks, VQ, VQ, MAX_LAYERS, NULL, 0),
    SIZE(vq_z_channels, VQ, VQ, TSAR_MAX_DIM, NULL, 0),
    SIZE(vq_embed_dim, VQ, VQ, TSAR_MAX_DIM, NULL, 0),
    CHOICE(vq_l2_norm, VQ, VQ, vq_l2_norm, "0 1", NULL),
    SIZE(vq_groups, VQ, 0, TSAR_MAX_DIM, "32", 0),
    CHOICE(vq_attn, VQ, 0, vq_attn_mid, "lowest mid", NULL),
    CHOICE(vq_pixels, VQ, 0, vq_pixels_down, "nearest down", NULL),
    SIZE(vq_temporal, VQ, 0, MAX_TEMPORAL, NULL, 0),
    SIZE(t5_vocab, T5, T5, MAX_VOCAB, NULL, 0),
    SIZE(t5_dim, T5, T5, TSAR_MAX_DIM, NULL, 0),
    SIZE(t5_n_layer, T5, T5, MAX_LAYERS, NULL, 0),
    SIZE(t5_n_head, T5, T5, TSAR_MAX_DIM, NULL, 0),
    SIZE(t5_head_dim, T5, T5, TSAR_MAX_DIM, NULL, 0),
    SIZE(t5_ffn_hidden, T5, T5, TSAR_MAX_DIM, NULL, 0),
    SIZE(t5_buckets, T5, 0, MAX_LAYERS, "32", 0),
    SIZE(t5_max_distance, T5, 0, TSAR_MAX_DIM, "128", 0),
    REAL(t5_norm_eps, T5, 0, t5_norm_eps, "1e-06"),
    CHOICE(t5_clean, T5, 0, t5_clean, "none llamagen", NULL),
    CHOICE(text_split, TSAR_PART_TEXT, 0, text_split, "none chameleon chameleon-splits deepseek-llm qwen2", NULL),
    CHOICE(text_normal, TSAR_PART_TEXT, 0, text_normal_nfc, "none nfc", NULL),
    CHOICE(text_template, TSAR_PART_TEXT, 0, text_template, "none tsar lumina emu3 janus janus-pro", NULL),
    ID(bos, TSAR_PART_TEXT),
    ID(sep, TSAR_PART_TEXT),
    ID(boi, TSAR_PART_TEXT),
    ID(eoi, TSAR_PART_TEXT),
    ID(eof, TSAR_PART_TEXT),
    ID(eos, TSAR_PART_TEXT),
    ID(img, TSAR_PART_TEXT),
    ID(pad, TSAR_PART_TEXT),
    ID(size_base, TSAR_PART_TEXT),
    SIZE(size_unit, TSAR_PART_TEXT, 0, TSAR_MAX_DIM, NULL, 0),
    SIZE(fine_dim, FINE, FINE, TSAR_MAX_DIM, NULL, 0),
    SIZE(fine_n_layer, FINE, FINE, MAX_LAYERS, NULL, 0),
    SIZE(fine_n_head, FINE, FINE, TSAR_MAX_DIM, NULL, 0),
    SIZE(fine_ffn_hidden, FINE, FINE, TSAR_MAX_DIM, NULL, 0),
    { "seed", TSAR_PART_ALL, 0, TSAR_KEY_SEED, AT(seed), 0, NULL, "0", 0 },
    REAL(default_cfg, GPT, 0, defaults.cfg, NULL),
    CHOICE(default_cfg_schedule, GPT, 0, defaults.cfg_schedule, "constant linear half-linear cosine", NULL),
    REAL(default_temperature, GPT, 0, defaults.temperature, NULL),
    { "default_top_k", GPT, 0, TSAR_KEY_COUNT, AT(defaults.top_k), MAX_VOCAB, NULL, NULL, 0 },
    { "default_top_p", GPT, 0, TSAR_KEY_SHARE, AT(defaults.top_p), 0, NULL, NULL, 0 },
};
enum { N_KEYS = sizeof keys / sizeof *keys };

const tsar_key *tsar_keys(size_t *n)
{
    *n = N_KEYS;
    return keys;
}

const tsar_key *tsar_key_find(const char *name)
{
    for (size_t i = 0; i < N_KEYS; i++)
        if (strcmp(keys[i].name, name) == 0) return &keys[i];
    return NULL;
}

static unsigned parts_of(const tsar_config *c)
{
    return (c->has_gpt ? GPT | TSAR_PART_TEXT : 0u) | (c->has_fine ? FINE : 0u) | (c->has_vq ? VQ : 0u) | (c->has_t5 ? T5 : 0u);
}

static int is_known(const tsar_config *c, const tsar_key *key)
{
    return (key->parts & parts_of(c)) != 0 && (key->families == 0 || (key->families & OF(c->arch)) != 0);
}

/* ------------------------------------------------------------------------------------------------------------ numbers */

static int is_digit(char c) { return c >= '0' && c <= '9'; }

/* Decimal digits and nothing else, at most `limit`; 0 if it is none of that. *end is what stopped it, if end is not NULL. */
static int parse_u64(const char *text, uint64_t limit, uint64_t *value, const char **end)
{
    const char *at = text;
    *value = 0;
    for (; is_digit(*at); at++) {
        const uint64_t digit = (uint64_t)(*at - '0');
        if (digit > limit || *value > (limit - digit) / 10) return 0;
        *value = *value * 10 + digit;
    }
    if (end) *end = at;
    return at > text && (end || !*at);
}

/* A decimal number without sign: digits, a fraction, an exponent. */
static int parse_number(const char *text, double *value) { return *text != '+' && *text != '-' && tsar_real_read(value, text, NULL) && *value <= DBL_MAX; }

/* vq_ch_mult: "1,1,2,2,4". */
static int parse_levels(tsar_config *c, const char *text)
{
    uint64_t value = 0;
    c->vq_levels = 0;
    for (const char *at = text;; at++) {
        if (c->vq_levels == TSAR_MAX_LEVELS || !parse_u64(at, TSAR_MAX_DIM, &value, &at) || value == 0 || (*at != ',' && *at)) return 0;
        c->vq_ch_mult[c->vq_levels++] = (size_t)value;
        if (!*at) return 1;
    }
}

/* Which of the words with blanks between them; -1 if none. */
static int find_word(const char *words, const char *word)
{
    const size_t length = strlen(word);
    for (int i = 0; length > 0; i++) {
        const char *end = words + strcspn(words, " ");
        if ((size_t)(end - words) == length && memcmp(words, word, length) == 0) return i;
        if (!*end) break;
        words = end + 1;
    }
    return -1;
}

/* The field of a key in a configuration. */
static void *field(tsar_config *c, const tsar_key *key) { return (char *)c + key->place; }
static const void *const_field(const tsar_config *c, const tsar_key *key) { return (const char *)c + key->place; }

/* The value of a key from its text; 0 if it is none. */
static int parse_value(tsar_config *c, const tsar_key *key, const char *text)
{
    void *to = field(c, key);
    uint64_t whole = 0;
    double real = 0;
    int word = 0;
    switch (key->kind) {
    case TSAR_KEY_SIZE:
    case TSAR_KEY_COUNT:
        if (!parse_u64(text, key->limit, &whole, NULL) || (key->kind == TSAR_KEY_SIZE && whole == 0)) return 0;
        *(size_t *)to = (size_t)whole;
        return 1;
    case TSAR_KEY_ID:
        if (!parse_u64(text, key->limit, &whole, NULL)) return 0;
        *(int64_t *)to = (int64_t)whole;
        return 1;
    case TSAR_KEY_SEED:
        return parse_u64(text, UINT64_MAX, to, NULL);
    case TSAR_KEY_REAL:
    case TSAR_KEY_SHARE:
        if (!parse_number(text, &real) || (key->kind == TSAR_KEY_REAL ? !(real > 0) : !(real >= 0 && real <= 1))) return 0;
        *(double *)to = real;
        return 1;
    case TSAR_KEY_CHOICE:
        if ((word = find_word(key->choices, text)) < 0) return 0;
        *(int *)to = word;
        return 1;
    case TSAR_KEY_ARCH:
        for (word = TSAR_ARCHS - 1; word > 0 && strcmp(text, tsar_families[word].name) != 0; word--) continue;
        c->arch = (tsar_arch)word;
        return word > 0;
    case TSAR_KEY_LEVELS:
        return parse_levels(c, text);
    }
    return 0;
}

/* ------------------------------------------------------------------------------------------------------------ reading */

/* The source of a configuration, and what is wrong with it so far: after the first error every call returns at once. */
typedef struct {
    tsar_lookup lookup;
    const void *source;
    const char *name; /* of the file, for errors */
    tsar_status status;
    tsar_error *err;
} key_reader;

/* Appends the words of a list to text [size] in the form "a, b or c". */
static void put_words(char *text, size_t size, const char *words)
{
    for (const char *at = words; *at;) {
        const size_t length = strcspn(at, " "), used = strlen(text);
        const char *next = at + length + (at[length] == ' ');
        (void)snprintf(text + used, size - used, "%s%.*s", at == words ? "" : *next ? ", " : " or ", (int)length, at);
        at = next;
    }
}

/* What a value of the key must be, in text [size]. */
static const char *expected(char *text, size_t size, const tsar_key *key)
{
    text[0] = '\0';
    switch (key->kind) {
    case TSAR_KEY_SIZE: (void)snprintf(text, size, "a positive integer of at most %zu", key->limit); break;
    case TSAR_KEY_COUNT: (void)snprintf(text, size, "an integer from 0 to %zu", key->limit); break;
    case TSAR_KEY_ID: (void)snprintf(text, size, "an id, from 0 to %zu", key->limit); break;
    case TSAR_KEY_SEED: (void)snprintf(text, size, "an integer from 0 to 2^64 - 1"); break;
    case TSAR_KEY_REAL: (void)snprintf(text, size, "a positive finite number"); break;
    case TSAR_KEY_SHARE: (void)snprintf(text, size, "a number from 0 (one code is kept) to 1 (which switches it off)"); break;
    case TSAR_KEY_CHOICE: put_words(text, size, key->choices); break;
    case TSAR_KEY_LEVELS: (void)snprintf(text, size, "a list of 1 to %d positive integers such as 1,1,2,2,4", TSAR_MAX_LEVELS); break;
    case TSAR_KEY_ARCH:
        for (int i = 1; i < TSAR_ARCHS; i++)
            (void)snprintf(text + strlen(text), size - strlen(text), "%s%s", i == 1 ? "" : i + 1 < TSAR_ARCHS ? ", " : " or ", tsar_families[i].name);
        break;
    }
    return text;
}

static void read_key(key_reader *r, tsar_config *c, const tsar_key *key)
{
    char text[160];
    const char *value = r->status == TSAR_OK ? r->lookup(r->source, key->name) : NULL;
    if (r->status != TSAR_OK) return;
    if (!value && (key->required & parts_of(c)) != 0)
        r->status = tsar_fail(r->err, TSAR_INPUT, "%s: the configuration has no %s (add %s=VALUE, %s)", r->name, key->name, key->name,
                              expected(text, sizeof text, key));
    else if (value && !parse_value(c, key, value))
        r->status = tsar_fail(r->err, TSAR_INPUT, "%s: %s=%.60s in the configuration is not %s", r->name, key->name, value,
                              expected(text, sizeof text, key));
}

/* The value of every key that is absent. */
static void set_absent(tsar_config *c)
{
    const tsar_family *family = tsar_family_of(c);
    for (size_t i = 0; i < N_KEYS; i++) {
        if (keys[i].kind == TSAR_KEY_ID) *(int64_t *)field(c, &keys[i]) = -1;
        if (keys[i].absent && is_known(c, &keys[i])) (void)parse_value(c, &keys[i], keys[i].absent);
    }
    c->shuffle = 1;
    c->text_template = (int)family->text_template;
    c->defaults.cfg = family->cfg;
    c->defaults.cfg_schedule = (int)family->cfg_schedule;
    c->defaults.temperature = 1;
    c->defaults.top_k = family->top_k;
    c->defaults.top_p = 1;
}

/* -------------------------------------------------------------------------------------------------------------- rules */

/* One more rule, stated as the sentence that is told when it does not hold. */
static void rule(key_reader *r, int holds, const char *format, ...) TSAR_FORMAT(3, 4);
static void rule(key_reader *r, int holds, const char *format, ...)
{
    if (r->status != TSAR_OK || holds) return;
    char sentence[320];
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(sentence, sizeof sentence, format, arguments);
    va_end(arguments);
    r->status = tsar_fail(r->err, TSAR_INPUT, "%s: in the configuration %s", r->name, sentence);
}

/* dim = n_head * head_dim; RoPE turns pairs, in 2d in each half of the head. */
static void check_heads(key_reader *r, const char *prefix, size_t dim, size_t n_head, int rope_2d)
{
    rule(r, n_head && dim % n_head == 0, "%sdim=%zu is not divisible by %sn_head=%zu", prefix, dim, prefix, n_head);
    if (r->status != TSAR_OK) return;
    const size_t head_dim = dim / n_head, pair = rope_2d ? 4 : 2;
    rule(r, head_dim % pair == 0, "the head size %sdim/%sn_head=%zu is not a multiple of %zu, which rope %s needs", prefix, prefix, head_dim, pair,
         rope_2d ? "2d" : "1d");
}

/* What the family takes (its row), and what follows from its keys. */
static void check_family(key_reader *r, const tsar_config *c)
{
    const tsar_family *family = tsar_family_of(c);
    const char *shuffle = r->lookup(r->source, "shuffle");
    const size_t s = c->shuffle;
    rule(r, (family->takes & TSAR_TAKES_EOL) || c->eol < 0, "eol=%" PRId64 " is of no use to arch=%s, whose codes are no ids (leave the key out)", c->eol,
         family->name);
    rule(r, (family->takes & TSAR_TAKES_SHUFFLE) || !shuffle || strcmp(shuffle, "1") == 0,
         "shuffle=%.20s must be 1 or absent for arch=%s (arch=token-shuffle has it)", shuffle ? shuffle : "", family->name);
    rule(r, (family->takes & TSAR_TAKES_ROPE_2D) || !c->rope_2d, "rope=2d is not for arch=%s, whose positions count ids (rope=1d)", family->name);
    rule(r, s == 1 || (c->shuffle_blocks && c->shuffle_hidden), "shuffle=%zu needs shuffle_blocks=VALUE and shuffle_hidden=VALUE", s);
    rule(r, (uint64_t)c->dim % ((uint64_t)s * s) == 0, "dim=%zu is not divisible by shuffle^2=%" PRIu64, c->dim, (uint64_t)s * s);
    rule(r, c->grid_h % s == 0 && c->grid_w % s == 0, "the grid %zu x %zu is not divisible by shuffle=%zu", c->grid_h, c->grid_w, s);
    rule(r, !c->size_unit || (c->grid_h % c->size_unit == 0 && c->grid_w % c->size_unit == 0),
         "the grid %zu x %zu is not divisible by size_unit=%zu, in which the prefix tells its size", c->grid_h, c->grid_w, c->size_unit);
    rule(r, family->uncond != TSAR_UNCOND_SYSTEM || c->text_vocab >= TSAR_SPECIALS,
         "text_vocab=%zu leaves no room for <bos>, <soi> and <eoi> (at least 3)", c->text_vocab);
    rule(r, family->prefix != TSAR_PREFIX_CLASS || c->cond_tokens == 1, "cond_tokens=%zu must be 1 for %s: a class is one token", c->cond_tokens,
         family->name);
    rule(r, family->prefix != TSAR_PREFIX_CAPTION || !c->has_t5 || c->t5_dim == c->caption_dim,
         "t5_dim=%zu is not caption_dim=%zu: the encoder's features are the transformer's captions", c->t5_dim, c->caption_dim);
}

static void check_gpt(key_reader *r, const tsar_config *c)
{
    check_heads(r, "", c->dim, c->n_head, c->rope_2d);
    rule(r, c->n_kv_head && c->n_head % c->n_kv_head == 0, "n_head=%zu is not a multiple of n_kv_head=%zu", c->n_head, c->n_kv_head);
    rule(r, c->qk_norm == 0 || c->n_head % c->qk_norm == 0, "n_head=%zu is not a multiple of qk_norm=%zu, the rows of the norms of queries and keys",
         c->n_head, c->qk_norm);
    if (r->status == TSAR_OK) check_family(r, c);
}

/* Ids lie in the vocabulary, and eol is no code. */
static void check_ids(key_reader *r, const tsar_config *c)
{
    if (c->vocab_size)
        rule(r, c->code_row <= c->vocab_size && (!tsar_family_of(c)->shares_table || c->vocab <= c->vocab_size - c->code_row),
             "the %zu codes from id image_base=%zu on do not fit into vocab_size=%zu", c->vocab, c->code_row, c->vocab_size);
    for (size_t i = 0; i < N_KEYS && c->n_ids; i++) {
        const int64_t id = keys[i].kind == TSAR_KEY_ID ? *(const int64_t *)const_field(c, &keys[i]) : -1;
        rule(r, id < 0 || (uint64_t)id < c->n_ids, "%s=%" PRId64 " is no id: the vocabulary has %zu", keys[i].name, id, c->n_ids);
    }
    rule(r, c->eol < 0 || !c->vocab_size || !tsar_family_of(c)->shares_table || (uint64_t)c->eol < c->code_row || (uint64_t)c->eol >= c->code_row + c->vocab,
         "eol=%" PRId64 " is the id of a code (image_base=%zu, %zu codes)", c->eol, c->code_row, c->vocab);
}

static void check_vq(key_reader *r, const tsar_config *c)
{
    rule(r, c->vq_ch % c->vq_groups == 0, "vq_ch=%zu is not divisible by vq_groups=%zu", c->vq_ch, c->vq_groups);
    for (size_t i = 0; i < c->vq_levels; i++)
        rule(r, c->vq_ch_mult[i] <= TSAR_MAX_DIM / c->vq_ch,
             "level %zu of the tokenizer would have vq_ch * vq_ch_mult=%zu * %zu channels, more than %zu", i, c->vq_ch, c->vq_ch_mult[i],
             TSAR_MAX_DIM);
    rule(r, (c->vq_temporal & (c->vq_temporal - 1)) == 0 || !c->vq_temporal, "vq_temporal=%zu is not a power of two", c->vq_temporal);
    rule(r, !c->vq_temporal || c->vq_z_channels == c->vq_embed_dim, "vq_z_channels=%zu is not vq_embed_dim=%zu, which vq_temporal needs", c->vq_z_channels,
         c->vq_embed_dim);
}

/* SPEC 11: distances below buckets/4 have a bucket each, the powers that place the others stay below 2^63. */
static void check_t5(key_reader *r, const tsar_config *c)
{
    const size_t quarter = c->t5_buckets / 4;
    uint64_t power = 1;
    size_t e = 0;
    for (; e < quarter && power <= (uint64_t)INT64_MAX / c->t5_max_distance; e++) power *= c->t5_max_distance;
    rule(r, c->t5_n_head <= TSAR_MAX_DIM / c->t5_head_dim, "t5_n_head * t5_head_dim=%zu * %zu is more than %zu", c->t5_n_head, c->t5_head_dim,
         TSAR_MAX_DIM);
    rule(r, c->t5_buckets % 4 == 0, "t5_buckets=%zu is not a multiple of 4", c->t5_buckets);
    rule(r, c->t5_max_distance > quarter, "t5_max_distance=%zu is not above t5_buckets/4=%zu", c->t5_max_distance, quarter);
    rule(r, e == quarter, "t5_max_distance^(t5_buckets/4)=%zu^%zu is not below 2^63", c->t5_max_distance, quarter);
}

/* What follows from the keys. */
static void derive(tsar_config *c)
{
    c->vocab = c->n_coarse ? c->n_coarse : c->codebook_size;
    c->n_ids = c->text_vocab ? c->text_vocab : c->vocab_size;
    c->code_row = c->text_vocab + c->image_base;
    c->rows = c->grid_h / c->shuffle;
    c->columns = c->grid_w / c->shuffle;
    c->tokens = c->rows * c->columns;
    c->vq_factor = c->has_vq ? (size_t)1 << (c->vq_levels - 1) : 0;
}

tsar_status tsar_config_read(tsar_config *config, tsar_lookup lookup, const void *source, const char *name, tsar_error *err)
{
    key_reader state = { lookup, source, name, TSAR_OK, err }, *r = &state;
    tsar_config *c = config;
    memset(c, 0, sizeof *c);
    c->has_gpt = lookup(source, "arch") != NULL;
    c->has_vq = lookup(source, "vq_ch") != NULL;
    c->has_fine = lookup(source, "fine_dim") != NULL;
    c->has_t5 = lookup(source, "t5_dim") != NULL;
    if (!c->has_gpt && !c->has_vq && !c->has_fine && !c->has_t5)
        return tsar_fail(err, TSAR_INPUT,
                         "%s describes no part of a tsar model: its configuration has none of the keys arch (transformer), vq_ch (image "
                         "tokenizer), fine_dim (stage two) and t5_dim (text encoder); tsar import makes a model file from a checkpoint",
                         name);
    if (c->has_gpt) read_key(r, c, &keys[0]); /* arch, on which the others depend */
    set_absent(c);
    for (size_t i = 0; i < N_KEYS && r->status == TSAR_OK; i++)
        if (is_known(c, &keys[i])) read_key(r, c, &keys[i]);
    if (r->status != TSAR_OK) return r->status;
    derive(c);
    rule(r, (uint64_t)c->grid_h * c->grid_w <= TSAR_MAX_DIM, "grid_h * grid_w=%zu * %zu is more than %zu codes", c->grid_h, c->grid_w, TSAR_MAX_DIM);
    rule(r, c->n_coarse <= c->codebook_size, "n_coarse=%zu is more than codebook_size=%zu", c->n_coarse, c->codebook_size);
    if (c->has_gpt) check_gpt(r, c);
    if (c->has_gpt) check_ids(r, c);
    if (c->has_vq) check_vq(r, c);
    if (c->has_fine) check_heads(r, "fine_", c->fine_dim, c->fine_n_head, 1);
    if (c->has_t5) check_t5(r, c);
    return r->status;
}

tsar_status tsar_grid_parse(size_t grid[2], const char *text, tsar_error *err)
{
    uint64_t h = 0, w = 0;
    const char *x = text;
    if (!parse_u64(text, TSAR_MAX_DIM, &h, &x) || *x != 'x' || !parse_u64(x + 1, TSAR_MAX_DIM, &w, NULL) || h == 0 || w == 0 || h * w > TSAR_MAX_DIM)
        return tsar_fail(err, TSAR_USAGE, "--grid %.40s: give rows and columns of codes, for example 48x48", text);
    grid[0] = (size_t)h;
    grid[1] = (size_t)w;
    return TSAR_OK;
}

tsar_status tsar_config_grid(tsar_config *config, const size_t grid[2], tsar_error *err)
{
    tsar_config *c = config;
    if (c->has_gpt && c->rope_2d)
        return tsar_fail(err, TSAR_USAGE, "--grid %zux%zu: the model has rope=2d, which knows rows and columns; its grid is %zu x %zu", grid[0], grid[1],
                         c->grid_h, c->grid_w);
    if (c->has_fine)
        return tsar_fail(err, TSAR_USAGE, "--grid %zux%zu: stage two (fine.*) knows rows and columns; the model's grid is %zu x %zu", grid[0], grid[1],
                         c->grid_h, c->grid_w);
    if (grid[0] % c->shuffle || grid[1] % c->shuffle)
        return tsar_fail(err, TSAR_USAGE, "--grid %zux%zu is not divisible by shuffle=%zu", grid[0], grid[1], c->shuffle);
    if (c->size_unit && (grid[0] % c->size_unit || grid[1] % c->size_unit))
        return tsar_fail(err, TSAR_USAGE, "--grid %zux%zu is not divisible by size_unit=%zu, in which the prefix tells its size", grid[0], grid[1],
                         c->size_unit);
    c->grid_h = grid[0];
    c->grid_w = grid[1];
    derive(c);
    return TSAR_OK;
}

/* ------------------------------------------------------------------------------------------------------------ writing */

/* The value of a field, whatever it means. */
static void put_value(char *text, size_t size, const tsar_config *c, const tsar_key *key)
{
    const void *at = const_field(c, key);
    const char *word = key->choices;
    text[0] = '\0';
    switch (key->kind) {
    case TSAR_KEY_SIZE:
    case TSAR_KEY_COUNT: (void)snprintf(text, size, "%lu", (unsigned long)*(const size_t *)at); break;
    case TSAR_KEY_ID: (void)snprintf(text, size, "%" PRId64, *(const int64_t *)at); break;
    case TSAR_KEY_SEED: (void)snprintf(text, size, "%" PRIu64, *(const uint64_t *)at); break;
    case TSAR_KEY_REAL:
    case TSAR_KEY_SHARE: (void)tsar_real_text(text, *(const double *)at); break;
    case TSAR_KEY_ARCH: (void)snprintf(text, size, "%s", tsar_family_of(c)->name); break;
    case TSAR_KEY_CHOICE:
        for (int i = *(const int *)at; i > 0; i--) word += strcspn(word, " ") + 1;
        (void)snprintf(text, size, "%.*s", (int)strcspn(word, " "), word);
        break;
    case TSAR_KEY_LEVELS:
        for (size_t i = 0, used = 0; i < c->vq_levels; i++, used = strlen(text))
            (void)snprintf(text + used, size - used, "%s%lu", i ? "," : "", (unsigned long)c->vq_ch_mult[i]);
        break;
    }
}

int tsar_key_text(char *text, const tsar_config *config, const tsar_key *key)
{
    char absent[TSAR_KEY_TEXT];
    tsar_config plain = { .arch = config->arch, .has_gpt = config->has_gpt, .has_vq = config->has_vq, .has_fine = config->has_fine, .has_t5 = config->has_t5 };
    text[0] = '\0';
    if (!is_known(config, key)) return 0;
    set_absent(&plain);
    put_value(text, TSAR_KEY_TEXT, config, key);
    put_value(absent, sizeof absent, &plain, key);
    return (key->required & parts_of(config)) != 0 || key->absent || strcmp(text, absent) != 0;
}
