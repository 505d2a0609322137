/* tokenizer.c - published byte-pair tokenizers: tokenizer.json (text_tokenizer.json), and tiktoken's ranks with their special tokens beside
 * them (QUIRKS-bpe). What is not one of the rules that are built in is refused by name: other ids would be worse than none. */
#include "files/files.h"
#include "text.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_FILE ((size_t)1 << 28) /* bytes of a tokenizer */
#define NONE UINT32_MAX
enum { MAX_STEPS = 16 };

/* ------------------------------------------------------------------------------------------------------------ lists that grow */

/* One more element of `size` bytes: its place in *array, NULL when memory is out. */
static void *append(void *array, size_t *n, size_t *room, size_t size, tsar_error *err)
{
    void *old;
    memcpy(&old, array, sizeof old);
    if (*n == *room) {
        const size_t more = *room ? 2 * *room : 256;
        void *grown = tsar_alloc(more, size, "a tokenizer", err);
        if (!grown) return NULL;
        if (*n) memcpy(grown, old, *n * size);
        tsar_free(old);
        memcpy(array, &grown, sizeof grown);
        old = grown;
        *room = more;
    }
    return (char *)old + (*n)++ * size;
}

/* A string and its id. */
typedef struct {
    const char *text;
    size_t length;
    int64_t id;
    int normalised; /* added tokens: looked for after the normaliser */
} entry;

/* A vocabulary, and its index by string. */
typedef struct {
    entry *entries;
    size_t n, room;
    uint32_t *buckets;
    size_t mask;
} vocabulary;

static size_t vocabulary_bucket(const vocabulary *v, const char *text, size_t length)
{
    size_t bucket = tsar_bytes_hash(text, length) & v->mask;
    for (uint32_t i; (i = v->buckets[bucket]) != NONE; bucket = (bucket + 1) & v->mask)
        if (v->entries[i].length == length && memcmp(v->entries[i].text, text, length) == 0) break;
    return bucket;
}

static int64_t id_of(const vocabulary *v, const char *text, size_t length)
{
    const uint32_t i = v->buckets[vocabulary_bucket(v, text, length)];
    return i == NONE ? -1 : v->entries[i].id;
}

/* The first entry that stands twice, in *twice; SIZE_MAX for none. */
static tsar_status index_vocabulary(vocabulary *v, size_t *twice, tsar_error *err)
{
    size_t size = 16;
    while (size / 2 < v->n) size *= 2;
    *twice = SIZE_MAX;
    v->buckets = tsar_alloc(size, sizeof *v->buckets, "a tokenizer", err);
    if (!v->buckets) return TSAR_ROOM;
    v->mask = size - 1;
    memset(v->buckets, 0xFF, size * sizeof *v->buckets);
    for (size_t i = 0; i < v->n; i++) {
        const size_t bucket = vocabulary_bucket(v, v->entries[i].text, v->entries[i].length);
        if (v->buckets[bucket] != NONE && *twice == SIZE_MAX) *twice = i;
        v->buckets[bucket] = (uint32_t)i;
    }
    return TSAR_OK;
}

/* ------------------------------------------------------------------------------------------------------- the pieces of a bpe */

/* n entries as pieces: their texts side by side. */
static tsar_status set_pieces(tsar_pieces *pieces, const entry *entries, size_t n, tsar_error *err)
{
    size_t bytes = 0;
    for (size_t i = 0; i < n; i++) bytes += entries[i].length;
    pieces->bytes = tsar_alloc(bytes, 1, "a tokenizer", err);
    pieces->at = tsar_alloc(n + 1, sizeof *pieces->at, "a tokenizer", err);
    pieces->ids = tsar_alloc(n, sizeof *pieces->ids, "a tokenizer", err);
    if (!pieces->bytes || !pieces->at || !pieces->ids) return TSAR_ROOM;
    pieces->n = n;
    pieces->n_bytes = bytes;
    for (size_t i = 0; i < n; i++) {
        memcpy(pieces->bytes + pieces->at[i], entries[i].text, entries[i].length);
        pieces->at[i + 1] = pieces->at[i] + (int64_t)entries[i].length;
        pieces->ids[i] = entries[i].id;
    }
    return TSAR_OK;
}

static tsar_status set_specials(tsar_bpe *bpe, const entry *entries, size_t n, tsar_error *err)
{
    tsar_status status = set_pieces(&bpe->special, entries, n, err);
    bpe->special_pass = status == TSAR_OK ? tsar_alloc(n, 1, "a tokenizer", err) : NULL;
    if (!bpe->special_pass) return TSAR_ROOM;
    for (size_t i = 0; i < n; i++) bpe->special_pass[i] = (uint8_t)(entries[i].normalised != 0);
    return status;
}

/* Of the n entries, whose texts are bytes, those that a whole piece becomes although merging would end elsewhere. bpe has its merges. */
static tsar_status set_whole(tsar_bpe *bpe, entry *entries, size_t n, const char *path, tsar_error *err)
{
    tsar_pieces all = { 0 };
    tsar_bpe merges = {
        .merges = bpe->merges, .n_merges = bpe->n_merges, .merge_ids = bpe->merge_ids, .merge_ranks = bpe->merge_ranks, .byte_ids = bpe->byte_ids
    };
    size_t kept = 0;
    unsigned char *unreached = tsar_alloc(n, 1, "a tokenizer", err);
    tsar_status status = unreached ? tsar_bpe_open(&merges, 0, path, err) : TSAR_ROOM;
    if (status == TSAR_OK) status = set_pieces(&all, entries, n, err);
    if (status == TSAR_OK) status = tsar_bpe_unreached(&merges, &all, unreached, err);
    for (size_t i = 0; i < n && status == TSAR_OK; i++)
        if (unreached[i]) entries[kept++] = entries[i];
    if (status == TSAR_OK && kept) status = set_pieces(&bpe->whole, entries, kept, err);
    tsar_bpe_unindex(&merges);
    tsar_pieces_close(&all);
    tsar_free(unreached);
    return status;
}

static tsar_status allocate_merges(tsar_bpe *bpe, size_t n, tsar_error *err)
{
    bpe->merges = tsar_alloc(n, 2 * sizeof *bpe->merges, "a tokenizer", err);
    bpe->merge_ids = tsar_alloc(n, sizeof *bpe->merge_ids, "a tokenizer", err);
    bpe->merge_ranks = tsar_alloc(n, sizeof *bpe->merge_ranks, "a tokenizer", err);
    bpe->byte_ids = tsar_alloc(256, sizeof *bpe->byte_ids, "a tokenizer", err);
    return bpe->merges && bpe->merge_ids && bpe->merge_ranks && bpe->byte_ids ? TSAR_OK : TSAR_ROOM;
}

/* --------------------------------------------------------------------------------------------------------- tokenizer.json */

typedef struct {
    tsar_json json;
    const char *path;
    tsar_bpe *bpe;
    vocabulary vocab, added;
    entry *merges; /* "a b", or the two of ["a", "b"] as two entries */
    size_t n_merges, merges_room;
    int paired; /* merges are pairs of strings */
    int ignore_merges, has_model;
    tsar_step steps[MAX_STEPS];
    size_t n_steps;
    tsar_error *err;
} reader;

static tsar_status refuse(const reader *r, const char *what)
{
    return tsar_fail(r->err, TSAR_INPUT, "%s: this tokenizer has %s, which tsar does not follow: its ids would be others", r->path, what);
}

/* A value that must be false, null, or "". */
static tsar_status expect_off(reader *r, const char *what)
{
    const char *text = "";
    int on = 0;
    tsar_status status = TSAR_OK;
    switch (tsar_json_peek(&r->json)) {
    case TSAR_JSON_NULL: return tsar_json_null(&r->json);
    case TSAR_JSON_BOOL: status = tsar_json_bool(&r->json, &on); break;
    case TSAR_JSON_STRING: status = tsar_json_string(&r->json, &text, NULL); break;
    default: on = 1;
    }
    return status == TSAR_OK && (on || *text) ? refuse(r, what) : status;
}

static tsar_status read_added(reader *r)
{
    tsar_status status = tsar_json_list(&r->json);
    for (int more = 1; status == TSAR_OK;) {
        status = tsar_json_item(&r->json, &more);
        if (status != TSAR_OK || !more) break;
        entry *token = append(&r->added.entries, &r->added.n, &r->added.room, sizeof *token, r->err);
        if (!token) return TSAR_ROOM;
        memset(token, 0, sizeof *token);
        token->normalised = 1;
        token->id = -1;
        status = tsar_json_object(&r->json);
        for (const char *key = ""; status == TSAR_OK;) {
            uint64_t id = 0;
            status = tsar_json_member(&r->json, &key, NULL);
            if (status != TSAR_OK || !key) break;
            if (strcmp(key, "content") == 0) {
                status = tsar_json_string(&r->json, &token->text, &token->length);
            } else if (strcmp(key, "id") == 0) {
                status = tsar_json_u64(&r->json, &id);
                token->id = id <= INT32_MAX ? (int64_t)id : -1;
            } else if (strcmp(key, "normalized") == 0) {
                status = tsar_json_bool(&r->json, &token->normalised);
            } else if (strcmp(key, "lstrip") == 0 || strcmp(key, "rstrip") == 0 || strcmp(key, "single_word") == 0) {
                status = expect_off(r, "added tokens that take blanks with them or are single words");
            } else {
                status = tsar_json_skip(&r->json);
            }
        }
        if (status == TSAR_OK && token->length == 0) status = refuse(r, "an added token without content");
    }
    return status;
}

/* The parts of a step that matter: what kind it is, and that its switches stand as the rules have them. */
typedef struct {
    const char *type, *pattern, *behavior;
    int individual, use_regex;
} step_parts;

static tsar_status read_pattern(reader *r, const char **pattern)
{
    const char *key = "";
    tsar_status status = tsar_json_object(&r->json);
    while (status == TSAR_OK) {
        status = tsar_json_member(&r->json, &key, NULL);
        if (status != TSAR_OK || !key) break;
        if (strcmp(key, "Regex") != 0) return refuse(r, "a Split by a plain string");
        status = tsar_json_string(&r->json, pattern, NULL);
    }
    return status;
}

static tsar_status finish_step(reader *r, const step_parts *parts)
{
    static const struct {
        const char *type;
        tsar_step_kind kind;
    } kinds[] = { { "Split", TSAR_STEP_PATTERN }, { "Digits", TSAR_STEP_DIGITS }, { "Punctuation", TSAR_STEP_PUNCTUATION }, { "ByteLevel", TSAR_STEP_BYTES } };
    char what[120];
    size_t i = 0;
    while (i < sizeof kinds / sizeof *kinds && strcmp(parts->type, kinds[i].type) != 0) i++;
    snprintf(what, sizeof what, "a pre_tokenizer of type %.60s", parts->type);
    if (i == sizeof kinds / sizeof *kinds) return refuse(r, what);
    const tsar_step_kind kind = kinds[i].kind;
    if (kind == TSAR_STEP_PATTERN && !parts->pattern) return refuse(r, "a Split without a pattern");
    if ((kind == TSAR_STEP_PATTERN || kind == TSAR_STEP_PUNCTUATION) && parts->behavior && strcmp(parts->behavior, "Isolated") != 0)
        return refuse(r, "a pre_tokenizer whose behavior is not Isolated");
    if (kind == TSAR_STEP_PATTERN && !parts->behavior) return refuse(r, "a Split without a behavior");
    if (kind == TSAR_STEP_DIGITS && !parts->individual) return refuse(r, "Digits that are not individual");
    if (r->n_steps == MAX_STEPS) return refuse(r, "more than 16 pre_tokenizers");
    r->steps[r->n_steps].kind = kind == TSAR_STEP_BYTES && parts->use_regex ? TSAR_STEP_GPT2 : kind;
    r->steps[r->n_steps++].pattern = parts->pattern;
    return TSAR_OK;
}

/* A pre_tokenizer: one step, or a Sequence of them. */
static tsar_status read_step(reader *r, int inside)
{
    step_parts parts = { "", NULL, NULL, 0, 1 };
    const char *key = "";
    int more = 1;
    tsar_status status = tsar_json_object(&r->json);
    while (status == TSAR_OK) {
        status = tsar_json_member(&r->json, &key, NULL);
        if (status != TSAR_OK || !key) break;
        if (strcmp(key, "type") == 0) {
            status = tsar_json_string(&r->json, &parts.type, NULL);
        } else if (strcmp(key, "pretokenizers") == 0 && !inside) {
            status = tsar_json_list(&r->json);
            while (status == TSAR_OK) {
                status = tsar_json_item(&r->json, &more);
                if (status != TSAR_OK || !more) break;
                status = read_step(r, 1);
            }
        } else if (strcmp(key, "pattern") == 0) {
            status = read_pattern(r, &parts.pattern);
        } else if (strcmp(key, "behavior") == 0) {
            status = tsar_json_string(&r->json, &parts.behavior, NULL);
        } else if (strcmp(key, "individual_digits") == 0) {
            status = tsar_json_bool(&r->json, &parts.individual);
        } else if (strcmp(key, "use_regex") == 0) {
            status = tsar_json_bool(&r->json, &parts.use_regex);
        } else if (strcmp(key, "add_prefix_space") == 0) {
            status = expect_off(r, "a blank put in front of the text");
        } else if (strcmp(key, "invert") == 0) {
            status = expect_off(r, "an inverted Split");
        } else if (strcmp(key, "trim_offsets") == 0) {
            status = tsar_json_skip(&r->json);
        } else {
            status = refuse(r, "a pre_tokenizer with a switch of its own");
        }
    }
    if (status != TSAR_OK || (!inside && strcmp(parts.type, "Sequence") == 0)) return status;
    return finish_step(r, &parts);
}

/* null, an empty Sequence, NFC, or a Sequence of NFC alone. */
static tsar_status read_normalizer(reader *r)
{
    if (tsar_json_peek(&r->json) == TSAR_JSON_NULL) return tsar_json_null(&r->json);
    const char *key = "", *type = "";
    int more = 1;
    tsar_status status = tsar_json_object(&r->json);
    while (status == TSAR_OK) {
        status = tsar_json_member(&r->json, &key, NULL);
        if (status != TSAR_OK || !key) break;
        if (strcmp(key, "type") == 0) {
            status = tsar_json_string(&r->json, &type, NULL);
            if (status == TSAR_OK && strcmp(type, "NFC") == 0)
                r->bpe->nfc = 1;
            else if (status == TSAR_OK && strcmp(type, "Sequence") != 0)
                status = refuse(r, "a normalizer other than NFC");
        } else if (strcmp(key, "normalizers") == 0) {
            status = tsar_json_list(&r->json);
            while (status == TSAR_OK) {
                status = tsar_json_item(&r->json, &more);
                if (status != TSAR_OK || !more) break;
                status = r->json.depth < 8 ? read_normalizer(r) : refuse(r, "nested normalizers");
            }
        } else {
            status = refuse(r, "a normalizer with a switch of its own");
        }
    }
    return status;
}

static tsar_status read_vocabulary(reader *r)
{
    const char *key = "";
    size_t length = 0;
    tsar_status status = tsar_json_object(&r->json);
    while (status == TSAR_OK) {
        uint64_t id = 0;
        status = tsar_json_member(&r->json, &key, &length);
        if (status != TSAR_OK || !key) break;
        status = tsar_json_u64(&r->json, &id);
        if (status == TSAR_OK && id > INT32_MAX) status = refuse(r, "ids beyond 2^31");
        entry *word = status == TSAR_OK ? append(&r->vocab.entries, &r->vocab.n, &r->vocab.room, sizeof *word, r->err) : NULL;
        if (status != TSAR_OK) break;
        if (!word) return TSAR_ROOM;
        *word = (entry){ key, length, (int64_t)id, 0 };
    }
    return status;
}

static tsar_status keep_merge(reader *r, const char *text, size_t length)
{
    entry *merge = append(&r->merges, &r->n_merges, &r->merges_room, sizeof *merge, r->err);
    if (!merge) return TSAR_ROOM;
    *merge = (entry){ text, length, 0, 0 };
    return TSAR_OK;
}

/* "a b" (before 0.20) or ["a", "b"]. */
static tsar_status read_merges(reader *r)
{
    int more = 1, inner = 1;
    const char *text = "";
    size_t length = 0;
    tsar_status status = tsar_json_list(&r->json);
    while (status == TSAR_OK) {
        status = tsar_json_item(&r->json, &more);
        if (status != TSAR_OK || !more) break;
        const int paired = tsar_json_peek(&r->json) == TSAR_JSON_LIST;
        if (r->n_merges && paired != r->paired) return refuse(r, "merges in two spellings");
        r->paired = paired;
        if (!paired) {
            status = tsar_json_string(&r->json, &text, &length);
            if (status == TSAR_OK && strncmp(text, "#version", 8) != 0) status = keep_merge(r, text, length);
            continue;
        }
        status = tsar_json_list(&r->json);
        size_t parts = 0;
        for (; status == TSAR_OK; parts++) {
            status = tsar_json_item(&r->json, &inner);
            if (status != TSAR_OK || !inner) break;
            status = tsar_json_string(&r->json, &text, &length);
            if (status == TSAR_OK) status = keep_merge(r, text, length);
        }
        if (status == TSAR_OK && parts != 2) status = refuse(r, "a merge of other than two parts");
    }
    return status;
}

static tsar_status read_model(reader *r)
{
    const char *key = "", *type = "BPE";
    tsar_status status = tsar_json_object(&r->json);
    r->has_model = 1;
    while (status == TSAR_OK) {
        status = tsar_json_member(&r->json, &key, NULL);
        if (status != TSAR_OK || !key) break;
        if (strcmp(key, "type") == 0) {
            status = tsar_json_string(&r->json, &type, NULL);
            if (status == TSAR_OK && strcmp(type, "BPE") != 0) status = refuse(r, "a model that is not BPE");
        } else if (strcmp(key, "vocab") == 0) {
            status = read_vocabulary(r);
        } else if (strcmp(key, "merges") == 0) {
            status = read_merges(r);
        } else if (strcmp(key, "ignore_merges") == 0) {
            status = tsar_json_bool(&r->json, &r->ignore_merges);
        } else if (strcmp(key, "fuse_unk") == 0) {
            status = tsar_json_skip(&r->json);
        } else if (strcmp(key, "dropout") == 0 || strcmp(key, "unk_token") == 0 || strcmp(key, "byte_fallback") == 0) {
            status = expect_off(r, "dropout, an unknown token or a fallback to bytes");
        } else if (strcmp(key, "continuing_subword_prefix") == 0 || strcmp(key, "end_of_word_suffix") == 0) {
            status = expect_off(r, "a prefix or suffix of words");
        } else {
            status = refuse(r, "a model with a switch of its own");
        }
    }
    return status;
}

static tsar_status read_document(reader *r)
{
    const char *key = "";
    tsar_status status = tsar_json_object(&r->json);
    while (status == TSAR_OK) {
        status = tsar_json_member(&r->json, &key, NULL);
        if (status != TSAR_OK || !key) break;
        if (strcmp(key, "added_tokens") == 0 && tsar_json_peek(&r->json) == TSAR_JSON_LIST)
            status = read_added(r);
        else if (strcmp(key, "normalizer") == 0)
            status = read_normalizer(r);
        else if (strcmp(key, "pre_tokenizer") == 0 && tsar_json_peek(&r->json) == TSAR_JSON_OBJECT)
            status = read_step(r, 0);
        else if (strcmp(key, "model") == 0)
            status = read_model(r);
        else
            status = tsar_json_skip(&r->json); /* post_processor: bos alone; decoder, padding, truncation */
    }
    return status == TSAR_OK ? tsar_json_end(&r->json) : status;
}

/* The bytes that a vocabulary's string spells: 21-7E, A1-AC, AE-FF are the character of the same number, the other 68, ascending, U+0100 and
 * so on. Returns how many, SIZE_MAX if a character is none of them. out has room for as many as the string. */
static size_t spelled_bytes(unsigned char *out, const char *text, size_t length)
{
    size_t n = 0, bytes;
    for (size_t at = 0; at < length; at += bytes) {
        const uint32_t code = tsar_char_at(text + at, length - at, &bytes);
        const int itself = (code >= 0x21 && code <= 0x7E) || (code >= 0xA1 && code <= 0xAC) || (code >= 0xAE && code <= 0xFF);
        if (!itself && (code < 0x100 || code >= 0x100 + 68)) return SIZE_MAX;
        const uint32_t k = code - 0x100;
        out[n++] = (unsigned char)(itself ? code : k < 0x21 ? k : k < 0x21 + 0x22 ? k - 0x21 + 0x7F : 0xAD);
    }
    return n;
}

static tsar_status set_bytes(reader *r)
{
    for (size_t i = 0; i < 256; i++) r->bpe->byte_ids[i] = -1;
    for (size_t i = 0; i < r->vocab.n; i++) {
        unsigned char bytes[4];
        const entry *word = &r->vocab.entries[i];
        if (word->length <= 2 && spelled_bytes(bytes, word->text, word->length) == 1) r->bpe->byte_ids[bytes[0]] = word->id;
    }
    for (size_t b = 0; b < 256; b++)
        if (r->bpe->byte_ids[b] < 0 && b != 0xC0 && b != 0xC1 && b < 0xF5)
            return tsar_fail(r->err, TSAR_INPUT, "%s: the vocabulary has no token for byte 0x%02X, so that some text would have no ids", r->path, (unsigned)b);
    return TSAR_OK;
}

/* Splits merge i into its parts; 0 if it is not two. */
static int merge_parts(const reader *r, size_t i, const char **left, size_t *n_left, const char **right, size_t *n_right)
{
    if (r->paired) {
        *left = r->merges[2 * i].text;
        *n_left = r->merges[2 * i].length;
        *right = r->merges[2 * i + 1].text;
        *n_right = r->merges[2 * i + 1].length;
        return 1;
    }
    const entry *merge = &r->merges[i];
    const char *blank = memchr(merge->text, ' ', merge->length);
    if (!blank) return 0;
    *left = merge->text;
    *n_left = (size_t)(blank - merge->text);
    *right = blank + 1;
    *n_right = merge->length - *n_left - 1;
    return !memchr(*right, ' ', *n_right);
}

/* Ids of the merges; a pair that comes twice has the later rank. */
static tsar_status set_merges(reader *r)
{
    const size_t n = r->paired ? r->n_merges / 2 : r->n_merges;
    tsar_bpe *bpe = r->bpe;
    char whole[512];
    tsar_status status = allocate_merges(bpe, n, r->err);
    for (size_t i = 0; i < n && status == TSAR_OK; i++) {
        const char *left, *right;
        size_t n_left, n_right;
        if (!merge_parts(r, i, &left, &n_left, &right, &n_right) || n_left + n_right > sizeof whole)
            return tsar_fail(r->err, TSAR_INPUT, "%s: merge %zu is not two words of at most %zu bytes", r->path, i, sizeof whole);
        memcpy(whole, left, n_left);
        memcpy(whole + n_left, right, n_right);
        bpe->merges[2 * i] = id_of(&r->vocab, left, n_left);
        bpe->merges[2 * i + 1] = id_of(&r->vocab, right, n_right);
        bpe->merge_ids[i] = id_of(&r->vocab, whole, n_left + n_right);
        bpe->merge_ranks[i] = (int64_t)i;
        if (bpe->merges[2 * i] < 0 || bpe->merges[2 * i + 1] < 0 || bpe->merge_ids[i] < 0)
            return tsar_fail(r->err, TSAR_INPUT, "%s: merge %zu (%.40s) has a part or product that the vocabulary lacks", r->path, i, left);
    }
    bpe->n_merges = n;
    return status == TSAR_OK ? tsar_bpe_drop_repeated(bpe, r->err) : status;
}

/* The id of an added token is that of the vocabulary; where this lacks it, the next one behind the vocabulary's count. The field must agree. */
static tsar_status set_added(reader *r)
{
    size_t lacking = 0;
    for (size_t i = 0; i < r->added.n; i++) {
        entry *token = &r->added.entries[i];
        int64_t id = id_of(&r->vocab, token->text, token->length);
        if (id < 0) id = (int64_t)(r->vocab.n + lacking++);
        if (token->id != id)
            return tsar_fail(r->err, TSAR_INPUT,
                             "%s: added token %.60s has the id %" PRId64 ", but its place means %" PRId64 "; libraries disagree about such a file", r->path,
                             token->text, token->id, id);
    }
    return set_specials(r->bpe, r->added.entries, r->added.n, r->err);
}

/* ignore_merges: every word of the vocabulary is found as a whole. */
static tsar_status set_vocabulary_whole(reader *r)
{
    entry *words = tsar_alloc(r->vocab.n, sizeof *words, "a tokenizer", r->err);
    size_t n = 0, bytes = 0;
    for (size_t i = 0; i < r->vocab.n; i++) bytes += r->vocab.entries[i].length;
    unsigned char *spelled = words ? tsar_alloc(bytes, 1, "a tokenizer", r->err) : NULL;
    tsar_status status = spelled ? TSAR_OK : TSAR_ROOM;
    unsigned char *to = spelled;
    for (size_t i = 0; i < r->vocab.n && status == TSAR_OK; i++) {
        const size_t length = spelled_bytes(to, r->vocab.entries[i].text, r->vocab.entries[i].length);
        if (length == SIZE_MAX || length == 0) continue;
        words[n++] = (entry){ (const char *)to, length, r->vocab.entries[i].id, 0 };
        to += length;
    }
    if (status == TSAR_OK) status = set_whole(r->bpe, words, n, r->path, r->err);
    tsar_free(spelled);
    tsar_free(words);
    return status;
}

static tsar_status build(reader *r)
{
    size_t twice = SIZE_MAX, odd = 0;
    if (!r->has_model || r->vocab.n == 0) return tsar_fail(r->err, TSAR_INPUT, "%s: is no tokenizer.json: it has no model with a vocab", r->path);
    if (!tsar_split_recognise(&r->bpe->split, r->steps, r->n_steps, &odd))
        return tsar_fail(r->err, TSAR_INPUT,
                         "%s: its pre_tokenizer is none that tsar knows (step %zu, %.80s): Chameleon's, DeepSeek-LLM's and Qwen 2's are built in", r->path,
                         odd + 1,
                         odd >= r->n_steps       ? "missing"
                         : r->steps[odd].pattern ? r->steps[odd].pattern
                                                 : "not a Split");
    tsar_status status = index_vocabulary(&r->vocab, &twice, r->err);
    if (status == TSAR_OK && twice != SIZE_MAX)
        status = tsar_fail(r->err, TSAR_INPUT, "%s: the vocabulary has %.60s twice", r->path, r->vocab.entries[twice].text);
    if (status == TSAR_OK) status = set_merges(r);
    if (status == TSAR_OK) status = set_bytes(r);
    if (status == TSAR_OK) status = set_added(r);
    return status == TSAR_OK && r->ignore_merges ? set_vocabulary_whole(r) : status;
}

/* text [bytes] is changed. */
static tsar_status read_json(tsar_bpe *bpe, char *text, size_t bytes, const char *path, tsar_error *err)
{
    reader *r = tsar_alloc(1, sizeof *r, "a tokenizer", err);
    if (!r) return TSAR_ROOM;
    r->path = path;
    r->bpe = bpe;
    r->err = err;
    tsar_json_open(&r->json, text, bytes, path, "the file", "is it a tokenizer.json?", err);
    tsar_status status = read_document(r);
    if (status == TSAR_OK) status = build(r);
    tsar_free(r->vocab.entries);
    tsar_free(r->vocab.buckets);
    tsar_free(r->added.entries);
    tsar_free(r->merges);
    tsar_free(r);
    return status;
}

/* --------------------------------------------------------------------------------------------------------------- tiktoken */

/* Base64 of n characters into out; returns the bytes, SIZE_MAX if it is none. */
static size_t decode_base64(unsigned char *out, const char *text, size_t n)
{
    size_t used = 0;
    uint32_t bits = 0;
    if (n == 0 || n % 4 != 0) return SIZE_MAX;
    const size_t missing = (size_t)(text[n - 1] == '=') + (text[n - 2] == '='); /* told before out, which may be text, has them */
    for (size_t i = 0; i < n; i++) {
        static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        const char *digit = text[i] ? strchr(digits, text[i]) : NULL;
        const int padding = text[i] == '=' && i >= n - missing;
        if (!digit && !padding) return SIZE_MAX;
        bits = bits << 6 | (digit ? (uint32_t)(digit - digits) : 0);
        if (i % 4 != 3) continue;
        for (int k = 2; k >= 0; k--) out[used++] = (unsigned char)(bits >> (8 * k));
        bits = 0;
    }
    return used - missing;
}

static size_t line_length(const char *text, size_t left)
{
    const char *end = memchr(text, '\n', left);
    return end ? (size_t)(end - text) : left;
}

/* Lines "base64 rank", ranks from 0 on in order; the bytes of each are decoded in place. */
static tsar_status read_ranks(vocabulary *ranks, char *text, size_t bytes, const char *path, tsar_error *err)
{
    for (size_t at = 0, length; at < bytes; at += length + 1) {
        char *line = text + at;
        length = line_length(line, bytes - at);
        const char *blank = memchr(line, ' ', length);
        const size_t n = blank ? (size_t)(blank - line) : 0;
        uint64_t rank = 0;
        size_t k = n + 1;
        for (; blank && k < length && line[k] >= '0' && line[k] <= '9' && rank < INT32_MAX; k++) rank = 10 * rank + (uint64_t)(line[k] - '0');
        const int complete = blank && k > n + 1 && (k == length || (k + 1 == length && line[k] == '\r')) && rank == ranks->n;
        const size_t decoded = complete ? decode_base64((unsigned char *)line, line, n) : SIZE_MAX;
        if (decoded == SIZE_MAX || decoded == 0)
            return tsar_fail(err, TSAR_INPUT, "%s: line %zu is not a token in base64 and its rank %zu", path, ranks->n + 1, ranks->n);
        entry *token = append(&ranks->entries, &ranks->n, &ranks->room, sizeof *token, err);
        if (!token) return TSAR_ROOM;
        *token = (entry){ line, decoded, (int64_t)rank, 0 };
    }
    return TSAR_OK;
}

/* Two ids and their product. */
typedef struct {
    int64_t left, right, product;
} rank_merge;

/* Every way in which two ranks make a third is a merge, whose rank is the third. */
static tsar_status list_rank_merges(const vocabulary *ranks, rank_merge **merges, size_t *n, tsar_error *err)
{
    size_t room = 0;
    for (size_t i = 0; i < ranks->n; i++) {
        const entry *token = &ranks->entries[i];
        for (size_t k = 1; k < token->length; k++) {
            const int64_t left = id_of(ranks, token->text, k), right = left < 0 ? -1 : id_of(ranks, token->text + k, token->length - k);
            if (right < 0) continue;
            rank_merge *merge = append(merges, n, &room, sizeof *merge, err);
            if (!merge) return TSAR_ROOM;
            *merge = (rank_merge){ left, right, token->id };
        }
    }
    return TSAR_OK;
}

static tsar_status set_rank_merges(tsar_bpe *bpe, const vocabulary *ranks, const char *path, tsar_error *err)
{
    rank_merge *merges = NULL;
    size_t n = 0;
    tsar_status status = list_rank_merges(ranks, &merges, &n, err);
    if (status == TSAR_OK) status = allocate_merges(bpe, n, err);
    for (size_t i = 0; i < n && status == TSAR_OK; i++) {
        bpe->merges[2 * i] = merges[i].left;
        bpe->merges[2 * i + 1] = merges[i].right;
        bpe->merge_ids[i] = bpe->merge_ranks[i] = merges[i].product;
    }
    tsar_free(merges);
    bpe->n_merges = n;
    for (size_t b = 0; b < 256 && status == TSAR_OK; b++) {
        const unsigned char byte = (unsigned char)b;
        bpe->byte_ids[b] = id_of(ranks, (const char *)&byte, 1);
        if (bpe->byte_ids[b] < 0) status = tsar_fail(err, TSAR_INPUT, "%s: has no rank for byte 0x%02X", path, (unsigned)b);
    }
    return status;
}

enum { EXTRAS = 205 }; /* <|extra_0|> ... <|extra_204|> */

/* Emu3's special tokens behind the ranks: <|endoftext|>, <|im_start|>, <|im_end|>, the extras, then the lines of emu3_vision_tokens.txt. */
static tsar_status set_rank_specials(tsar_bpe *bpe, size_t n_ranks, char *vision, size_t bytes, tsar_error *err)
{
    static const char *const first[] = { "<|endoftext|>", "<|im_start|>", "<|im_end|>" };
    char extras[EXTRAS][20];
    vocabulary all = { 0 };
    tsar_status status = TSAR_OK;
    for (size_t i = 0; i < 3 + EXTRAS && status == TSAR_OK; i++) {
        entry *token = append(&all.entries, &all.n, &all.room, sizeof *token, err);
        if (i >= 3) snprintf(extras[i - 3], sizeof extras[i - 3], "<|extra_%u|>", (unsigned)(i - 3));
        const char *text = i < 3 ? first[i] : extras[i - 3];
        if (token)
            *token = (entry){ text, strlen(text), (int64_t)(n_ranks + i), 1 };
        else
            status = TSAR_ROOM;
    }
    for (size_t at = 0, length; at < bytes && status == TSAR_OK; at += length + 1) {
        length = line_length(vision + at, bytes - at);
        const char *text = vision + at;
        size_t n = length;
        while (n > 0 && (*text == ' ' || *text == '\t')) text++, n--;
        while (n > 0 && (text[n - 1] == ' ' || text[n - 1] == '\t' || text[n - 1] == '\r')) n--;
        if (n == 0) continue;
        const int64_t id = (int64_t)(n_ranks + all.n);
        entry *token = append(&all.entries, &all.n, &all.room, sizeof *token, err);
        if (token)
            *token = (entry){ text, n, id, 1 };
        else
            status = TSAR_ROOM;
    }
    if (status == TSAR_OK) status = set_specials(bpe, all.entries, all.n, err);
    tsar_free(all.entries);
    return status;
}

/* The name of a file in the folder of another. */
static char *beside(const char *path, const char *name, tsar_error *err)
{
    const char *slash = strrchr(path, '/');
    const size_t folder = slash ? (size_t)(slash + 1 - path) : 0;
    char *full = tsar_alloc(folder + strlen(name) + 1, 1, "a name", err);
    if (!full) return NULL;
    memcpy(full, path, folder);
    memcpy(full + folder, name, strlen(name) + 1);
    return full;
}

static tsar_status read_tiktoken(tsar_bpe *bpe, char *text, size_t bytes, const char *path, tsar_error *err)
{
    vocabulary ranks = { 0 };
    size_t twice = SIZE_MAX, vision_bytes = 0;
    char *vision = NULL, *name = beside(path, "emu3_vision_tokens.txt", err);
    bpe->split = TSAR_SPLIT_QWEN2;
    bpe->nfc = 1;
    tsar_status status = name ? read_ranks(&ranks, text, bytes, path, err) : TSAR_ROOM;
    if (status == TSAR_OK) status = index_vocabulary(&ranks, &twice, err);
    if (status == TSAR_OK && twice != SIZE_MAX) status = tsar_fail(err, TSAR_INPUT, "%s: line %zu is a token that an earlier line has", path, twice + 1);
    if (status == TSAR_OK) status = set_rank_merges(bpe, &ranks, path, err);
    if (status == TSAR_OK) status = set_whole(bpe, ranks.entries, ranks.n, path, err);
    if (status == TSAR_OK) status = tsar_text_file(name, MAX_FILE, "a tokenizer", &vision, &vision_bytes, err);
    if (status == TSAR_OK) status = set_rank_specials(bpe, ranks.n, vision, vision_bytes, err);
    tsar_free(ranks.entries);
    tsar_free(ranks.buckets);
    tsar_free(vision);
    tsar_free(name);
    return status;
}

tsar_status tsar_bpe_read(tsar_bpe *bpe, const char *path, tsar_error *err)
{
    char *text = NULL;
    size_t bytes = 0, at = 0;
    memset(bpe, 0, sizeof *bpe);
    tsar_status status = tsar_text_file(path, MAX_FILE, "a tokenizer", &text, &bytes, err);
    while (status == TSAR_OK && at < bytes && strchr(" \t\r\n", text[at]) && text[at]) at++;
    if (status == TSAR_OK) status = at < bytes && text[at] == '{' ? read_json(bpe, text, bytes, path, err) : read_tiktoken(bpe, text, bytes, path, err);
    tsar_free(text);
    if (status == TSAR_OK) status = tsar_bpe_open(bpe, 0, path, err);
    if (status != TSAR_OK) tsar_bpe_close(bpe);
    return status;
}

/* ------------------------------------------------------------------------------------------------------------- any of them */

static int ends_in(const char *path, const char *ending)
{
    const size_t n = strlen(path), e = strlen(ending);
    return n >= e && strcmp(path + n - e, ending) == 0;
}

tsar_status tsar_tokenizer_open(tsar_tokenizer *tokenizer, const char *path, tsar_error *err)
{
    memset(tokenizer, 0, sizeof *tokenizer);
    size_t bytes = 0;
    tsar_status status = tsar_text_file(path, MAX_FILE, "a tokenizer", &tokenizer->file, &bytes, err);
    /* A spiece.model begins with the tag of its first piece, which is also the end of a line. */
    const int spiece = status == TSAR_OK && (ends_in(path, ".model") || (bytes > 0 && tokenizer->file[0] == '\n' && !ends_in(path, ".json")));
    if (spiece) {
        status = tsar_spiece_open(&tokenizer->spiece, tokenizer->file, bytes, path, err);
    } else if (status == TSAR_OK) {
        tsar_free(tokenizer->file);
        tokenizer->file = NULL;
        status = tsar_bpe_read(&tokenizer->bpe, path, err);
    }
    if (status != TSAR_OK) tsar_tokenizer_close(tokenizer);
    return status;
}

void tsar_tokenizer_close(tsar_tokenizer *tokenizer)
{
    tsar_bpe_close(&tokenizer->bpe);
    tsar_spiece_close(tokenizer->spiece);
    tsar_free(tokenizer->file);
    memset(tokenizer, 0, sizeof *tokenizer);
}
