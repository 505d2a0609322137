/* spiece.c - SentencePiece unigram from the file spiece.model (SPEC 11; QUIRKS-t5): the normaliser's charsmap, the path of the best score with
 * the library's float sums, unknowns and bytes. The file is hostile: every length and every index of the charsmap is checked when it is read. */
#include "text.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef enum { NORMAL = 1, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE } piece_type;
enum { UNIGRAM = 1 };
#define META "\xE2\x96\x81" /* U+2581, a blank inside pieces */
enum { META_BYTES = 3 };

typedef struct {
    const char *text;
    size_t length;
    float score;
    piece_type type;
} piece;

struct tsar_spiece {
    piece *pieces;   /* [n], the id is the index; texts belong to the file */
    uint32_t *order; /* [n_matched]: pieces that text can match (normal and user-defined), by their bytes */
    size_t n, n_matched, unknown;
    int64_t byte_ids[256]; /* -1: none */
    float least;           /* score of the normal pieces */
    double user_score;     /* highest of them, at least FLT_MIN: user-defined pieces have bytes * it - 0.1 */
    int byte_fallback, dummy_prefix, remove_blanks, escape_blanks, user_defined;
    uint64_t model_type;
    int suffix_blanks;
    const uint8_t *units; /* [n_units] of four bytes, little-endian: darts-clone's array; NULL for no charsmap */
    size_t n_units;
    const char *strings; /* [n_strings], each ended by 0 */
    size_t n_strings;
};

/* -------------------------------------------------------------------------------------------------------------- protobuf */

/* A message, and the field that was read last: `number`; its value for varints and fixed sizes, its bytes where it has a length. */
typedef struct {
    const uint8_t *at, *end;
    uint64_t number, value;
    unsigned wire;
    const uint8_t *bytes;
    size_t length;
    int damaged;
} message;

static uint64_t read_varint(message *m)
{
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 70; shift += 7) {
        if (m->at == m->end || shift == 63 + 7) break;
        const uint8_t byte = *m->at++;
        if (shift == 63 && byte > 1) break;
        value |= (uint64_t)(byte & 0x7F) << shift;
        if (!(byte & 0x80)) return value;
    }
    m->damaged = 1;
    return 0;
}

/* The next field; 0 at the end of the message, or where it is damaged. Groups (wire types 3 and 4) count as damage. */
static int next_field(message *m)
{
    if (m->damaged || m->at == m->end) return 0;
    const uint64_t tag = read_varint(m);
    m->number = tag >> 3;
    m->wire = (unsigned)(tag & 7);
    m->value = 0;
    m->bytes = NULL;
    m->length = 0;
    uint64_t length = m->wire == 1 ? 8 : m->wire == 5 ? 4 : 0;
    if (m->wire == 0) m->value = read_varint(m);
    if (m->wire == 2) length = read_varint(m);
    if (m->damaged || m->number == 0 || m->wire == 3 || m->wire == 4 || m->wire > 5 || length > (uint64_t)(m->end - m->at)) {
        m->damaged = 1;
        return 0;
    }
    m->bytes = m->at;
    m->length = (size_t)length;
    m->at += length;
    return 1;
}

static message inside(const message *m)
{
    message inner = { 0 };
    inner.at = m->bytes;
    inner.end = m->bytes + m->length;
    return inner;
}

static uint32_t little_endian(const uint8_t *b) { return b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24; }

static int read_piece(piece *p, const message *field)
{
    message m = inside(field);
    p->text = "";
    p->length = 0;
    p->score = 0;
    p->type = NORMAL;
    while (next_field(&m)) {
        if (m.number == 1 && m.wire == 2) {
            p->text = (const char *)m.bytes;
            p->length = m.length;
        } else if (m.number == 2 && m.wire == 5) {
            const uint32_t bits = little_endian(m.bytes);
            memcpy(&p->score, &bits, sizeof p->score);
        } else if (m.number == 3 && m.wire == 0) {
            p->type = m.value >= NORMAL && m.value <= BYTE ? (piece_type)m.value : NORMAL;
        }
    }
    return !m.damaged;
}

static int read_trainer(tsar_spiece *s, const message *field)
{
    message m = inside(field);
    while (next_field(&m)) {
        if (m.wire != 0) continue;
        if (m.number == 3) s->model_type = m.value;
        if (m.number == 24) s->suffix_blanks = m.value != 0;
        if (m.number == 35) s->byte_fallback = m.value != 0;
    }
    return !m.damaged;
}

static int read_normalizer(tsar_spiece *s, const message *field, const uint8_t **charsmap, size_t *bytes)
{
    message m = inside(field);
    while (next_field(&m)) {
        if (m.number == 2 && m.wire == 2) {
            *charsmap = m.bytes;
            *bytes = m.length;
        }
        if (m.wire != 0) continue;
        if (m.number == 3) s->dummy_prefix = m.value != 0;
        if (m.number == 4) s->remove_blanks = m.value != 0;
        if (m.number == 5) s->escape_blanks = m.value != 0;
    }
    return !m.damaged;
}

/* ------------------------------------------------------------------------------------------------------------- the charsmap */

static uint32_t unit_at(const tsar_spiece *s, size_t i) { return little_endian(s->units + 4 * i); }
static int has_leaf(uint32_t u) { return (u >> 8 & 1) != 0; }
static size_t offset_of(uint32_t u) { return (size_t)(u >> 10) << ((u & 512) >> 6); }
static uint32_t label_of(uint32_t u) { return u & 0x800000FFu; }

/* Walks the whole trie once: every place it can reach is inside, and every value the beginning of a string. NULL, or what is wrong. */
static const char *check_trie(const tsar_spiece *s, unsigned char *seen, size_t *stack)
{
    size_t depth = 0;
    stack[depth++] = 0;
    seen[0] = 1;
    while (depth) {
        const size_t at = stack[--depth];
        const size_t children = at ^ offset_of(unit_at(s, at));
        if (children >= s->n_units) return "points outside of itself";
        if (at != 0 && has_leaf(unit_at(s, at)) && (unit_at(s, children) & 0x7FFFFFFFu) >= s->n_strings) return "points outside of its strings";
        for (size_t c = 1; c < 256; c++) {
            const size_t child = children ^ c;
            if (child >= s->n_units) return "points outside of itself";
            if (label_of(unit_at(s, child)) != c || seen[child]) continue;
            seen[child] = 1;
            stack[depth++] = child;
        }
    }
    return NULL;
}

static tsar_status open_charsmap(tsar_spiece *s, const uint8_t *bytes, size_t n, const char *name, tsar_error *err)
{
    if (n == 0) return TSAR_OK;
    const uint32_t size = n >= 4 ? little_endian(bytes) : 0;
    const char *wrong = NULL;
    if (n < 4 || size == 0 || size % 4 != 0 || size > n - 4)
        wrong = "is cut off, or its size is none";
    else if (size == n - 4 || bytes[n - 1] != 0)
        wrong = "has strings without an end";
    if (wrong) return tsar_fail(err, TSAR_INPUT, "%s: the charsmap of the normaliser %s", name, wrong);
    s->units = bytes + 4;
    s->n_units = size / 4;
    s->strings = (const char *)bytes + 4 + size;
    s->n_strings = n - 4 - size;
    unsigned char *seen = tsar_alloc(s->n_units, 1, "the charsmap", err);
    size_t *stack = tsar_alloc(s->n_units, sizeof *stack, "the charsmap", err);
    const tsar_status status = seen && stack ? TSAR_OK : TSAR_ROOM;
    if (status == TSAR_OK) wrong = check_trie(s, seen, stack);
    tsar_free(seen);
    tsar_free(stack);
    return wrong ? tsar_fail(err, TSAR_INPUT, "%s: the charsmap of the normaliser %s", name, wrong) : status;
}

/* The longest key that text begins with: its bytes, and in *value what replaces them; 0 for none. */
static size_t longest_key(const tsar_spiece *s, const char *text, size_t bytes, const char **value)
{
    size_t found = 0;
    if (!s->units) return 0;
    size_t at = offset_of(unit_at(s, 0));
    for (size_t i = 0; i < bytes; i++) {
        const uint32_t c = (unsigned char)text[i];
        at ^= c;
        if (c == 0 || at >= s->n_units || label_of(unit_at(s, at)) != c) break;
        const uint32_t u = unit_at(s, at);
        at ^= offset_of(u);
        if (!has_leaf(u)) continue;
        found = i + 1;
        *value = s->strings + (unit_at(s, at) & 0x7FFFFFFFu);
    }
    return found;
}

/* ------------------------------------------------------------------------------------------------------------- the pieces */

/* bytes of a against bytes of b, the shorter first among equals. */
static int compare_bytes(const char *a, size_t n_a, const char *b, size_t n_b)
{
    const int order = memcmp(a, b, n_a < n_b ? n_a : n_b);
    return order ? order : n_a < n_b ? -1 : n_a > n_b;
}

/* Sorts indices of pieces by their texts: merges runs of 1, 2, 4, ... */
static void sort_pieces(const piece *pieces, uint32_t *order, uint32_t *other, size_t n)
{
    uint32_t *from = order, *to = other;
    for (size_t run = 1; run < n; run *= 2) {
        for (size_t start = 0; start < n; start += 2 * run) {
            const size_t middle = n - start < run ? n : start + run, end = n - middle < run ? n : middle + run;
            size_t a = start, b = middle;
            for (size_t k = start; k < end; k++) {
                const piece *left = a < middle ? &pieces[from[a]] : NULL, *right = b < end ? &pieces[from[b]] : NULL;
                const int take_left = !right || (left && compare_bytes(left->text, left->length, right->text, right->length) <= 0);
                to[k] = take_left ? from[a++] : from[b++];
            }
        }
        uint32_t *swap = from;
        from = to;
        to = swap;
    }
    if (from != order) memcpy(order, from, n * sizeof *order);
}

/* <0xHH>: the byte; -1 if the text is none. */
static int byte_of(const piece *p)
{
    static const char digits[] = "0123456789ABCDEF";
    if (p->length != 6 || memcmp(p->text, "<0x", 3) != 0 || p->text[5] != '>') return -1;
    const char *high = p->text[3] ? strchr(digits, p->text[3]) : NULL, *low = p->text[4] ? strchr(digits, p->text[4]) : NULL;
    return high && low ? (int)((high - digits) * 16 + (low - digits)) : -1;
}

/* What the library demands of the pieces, and what follows from them. */
static tsar_status check_pieces(tsar_spiece *s, const char *name, tsar_error *err)
{
    size_t unknowns = 0, bytes = 0;
    float most = 0x1p-126f;
    s->least = INFINITY;
    for (size_t b = 0; b < 256; b++) s->byte_ids[b] = -1;
    for (size_t i = 0; i < s->n; i++) {
        const piece *p = &s->pieces[i];
        const int byte = p->type == BYTE ? byte_of(p) : -1;
        if (p->length == 0) return tsar_fail(err, TSAR_INPUT, "%s: piece %zu is empty", name, i);
        if (!(fabs((double)p->score) <= (double)0x1.fffffep127f)) return tsar_fail(err, TSAR_INPUT, "%s: the score of piece %zu is no finite number", name, i);
        if (p->type == BYTE && (byte < 0 || !s->byte_fallback))
            return tsar_fail(err, TSAR_INPUT, "%s: piece %zu stands for a byte, but %s", name, i,
                             byte < 0 ? "is none of <0x00> to <0xFF>" : "byte_fallback is off");
        if (byte >= 0) {
            bytes += s->byte_ids[byte] < 0;
            s->byte_ids[byte] = (int64_t)i;
        }
        if (p->type == UNKNOWN) {
            unknowns++;
            s->unknown = i;
        }
        if (p->type == USER_DEFINED) s->user_defined = 1;
        if (p->type == NORMAL && p->score < s->least) s->least = p->score;
        if (p->type == NORMAL && p->score > most) most = p->score;
    }
    s->user_score = (double)most;
    if (unknowns != 1) return tsar_fail(err, TSAR_INPUT, "%s: has %zu pieces for what is unknown, it must be one", name, unknowns);
    if (s->byte_fallback && bytes != 256) return tsar_fail(err, TSAR_INPUT, "%s: byte_fallback needs pieces for all 256 bytes, it has %zu", name, bytes);
    return TSAR_OK;
}

/* The pieces in the order of their bytes: no two are the same, and those that text can match stay. */
static tsar_status order_pieces(tsar_spiece *s, const char *name, tsar_error *err)
{
    uint32_t *other = tsar_alloc(s->n, sizeof *other, "the pieces of the tokenizer", err);
    s->order = tsar_alloc(s->n, sizeof *s->order, "the pieces of the tokenizer", err);
    tsar_status status = other && s->order ? TSAR_OK : TSAR_ROOM;
    for (size_t i = 0; i < s->n && status == TSAR_OK; i++) s->order[i] = (uint32_t)i;
    if (status == TSAR_OK) sort_pieces(s->pieces, s->order, other, s->n);
    for (size_t i = 1; i < s->n && status == TSAR_OK; i++) {
        const piece *a = &s->pieces[s->order[i - 1]], *b = &s->pieces[s->order[i]];
        if (compare_bytes(a->text, a->length, b->text, b->length) == 0)
            status = tsar_fail(err, TSAR_INPUT, "%s: pieces %u and %u are the same", name, (unsigned)s->order[i - 1], (unsigned)s->order[i]);
    }
    for (size_t i = 0; i < s->n && status == TSAR_OK; i++) {
        const piece_type type = s->pieces[s->order[i]].type;
        if (type == NORMAL || type == USER_DEFINED) s->order[s->n_matched++] = s->order[i];
    }
    tsar_free(other);
    return status;
}

static tsar_status read_model(tsar_spiece *s, const void *file, size_t bytes, const char *name, tsar_error *err)
{
    message m = { .at = file, .end = (const uint8_t *)file + bytes };
    const uint8_t *charsmap = NULL;
    size_t n_charsmap = 0, n = 0;
    int good = 1;
    for (message count = m; next_field(&count);) s->n += count.number == 1 && count.wire == 2;
    s->pieces = tsar_alloc(s->n, sizeof *s->pieces, "the pieces of the tokenizer", err);
    if (!s->pieces) return TSAR_ROOM;
    while (good && next_field(&m)) {
        if (m.wire != 2) continue;
        if (m.number == 1) good = read_piece(&s->pieces[n++], &m);
        if (m.number == 2) good = read_trainer(s, &m);
        if (m.number == 3) good = read_normalizer(s, &m, &charsmap, &n_charsmap);
    }
    if (!good || m.damaged) return tsar_fail(err, TSAR_INPUT, "%s: is cut off or damaged: it is no whole spiece.model", name);
    if (s->n == 0 || s->n > INT32_MAX) return tsar_fail(err, TSAR_INPUT, "%s: has %zu pieces: is it a spiece.model?", name, s->n);
    if (s->model_type != UNIGRAM) return tsar_fail(err, TSAR_INPUT, "%s: is of model_type %u, and tsar knows unigram (1) only", name, (unsigned)s->model_type);
    if (s->suffix_blanks) return tsar_fail(err, TSAR_INPUT, "%s: treats a blank as the end of a word, which tsar does not follow", name);
    tsar_status status = check_pieces(s, name, err);
    if (status == TSAR_OK) status = order_pieces(s, name, err);
    return status == TSAR_OK ? open_charsmap(s, charsmap, n_charsmap, name, err) : status;
}

tsar_status tsar_spiece_open(tsar_spiece **spiece, const void *file, size_t bytes, const char *name, tsar_error *err)
{
    *spiece = NULL;
    tsar_spiece *s = tsar_alloc(1, sizeof *s, "a tokenizer", err);
    if (!s) return TSAR_ROOM;
    s->model_type = UNIGRAM;
    s->dummy_prefix = s->remove_blanks = s->escape_blanks = 1;
    const tsar_status status = read_model(s, file, bytes, name, err);
    if (status == TSAR_OK)
        *spiece = s;
    else
        tsar_spiece_close(s);
    return status;
}

void tsar_spiece_close(tsar_spiece *spiece)
{
    if (!spiece) return;
    tsar_free(spiece->pieces);
    tsar_free(spiece->order);
    tsar_free(spiece);
}

size_t tsar_spiece_count(const tsar_spiece *spiece) { return spiece->n; }

/* ------------------------------------------------------------------------------------------------------------ matching */

/* The stretch of `order` whose pieces begin with the bytes so far. */
typedef struct {
    size_t low, high, depth;
} matches;

static unsigned byte_at(const tsar_spiece *s, size_t i, size_t depth)
{
    const piece *p = &s->pieces[s->order[i]];
    return depth < p->length ? (unsigned char)p->text[depth] + 1u : 0; /* what ends sorts first */
}

static size_t first_at_least(const tsar_spiece *s, const matches *m, unsigned key)
{
    size_t low = m->low, high = m->high;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        if (byte_at(s, middle, m->depth) < key)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* One byte more; returns the piece that ends there, NULL if none does. m is empty (low == high) when no longer piece can match. */
static const piece *next_match(const tsar_spiece *s, matches *m, unsigned char byte)
{
    const size_t low = first_at_least(s, m, byte + 1u), high = first_at_least(s, m, byte + 2u);
    m->low = low;
    m->high = high;
    m->depth++;
    if (low == high) return NULL;
    const piece *p = &s->pieces[s->order[low]];
    return p->length == m->depth ? p : NULL;
}

/* ---------------------------------------------------------------------------------------------------------- normalising */

typedef struct {
    char *text; /* [n], room for more */
    size_t n, room;
    tsar_status status;
    tsar_error *err;
} normal_text;

static void put(normal_text *t, const char *bytes, size_t n)
{
    if (t->status == TSAR_OK && n > t->room - t->n) {
        const size_t room = tsar_product(2, t->n + n) + 64;
        char *grown = tsar_alloc(room, 1, "the normalised text", t->err);
        if (grown) {
            if (t->n) memcpy(grown, t->text, t->n);
            tsar_free(t->text);
            t->text = grown;
            t->room = room;
        } else {
            t->status = TSAR_ROOM;
        }
    }
    if (t->status != TSAR_OK) return;
    memcpy(t->text + t->n, bytes, n);
    t->n += n;
}

/* What stands for the beginning of text: the longest user-defined piece as it is, the charsmap's longest key, one character, or U+FFFD for
 * one byte that is no UTF-8. Returns how many bytes it takes. */
static size_t replace(const tsar_spiece *s, const char *text, size_t bytes, const char **value, size_t *n)
{
    size_t user = 0;
    matches m = { 0, s->n_matched, 0 };
    for (size_t i = 0; s->user_defined && i < bytes && m.low < m.high; i++) {
        const piece *p = next_match(s, &m, (unsigned char)text[i]);
        if (p && p->type == USER_DEFINED) user = i + 1;
    }
    *value = text;
    *n = user;
    if (user) return user;
    const size_t key = longest_key(s, text, bytes, value);
    if (key) {
        *n = strlen(*value);
        return key;
    }
    size_t length;
    const int odd = tsar_char_at(text, bytes, &length) == 0xFFFD && length == 1;
    *value = odd ? "\xEF\xBF\xBD" : text;
    *n = odd ? 3 : length;
    return length;
}

/* Blanks in front are dropped where remove_blanks is set, several become one, and each is written as U+2581. */
static void normalise(const tsar_spiece *s, const char *text, size_t bytes, normal_text *out)
{
    const char *value;
    size_t at = 0, n = 0, taken;
    const char *blank = s->escape_blanks ? META : " ";
    const size_t blank_bytes = strlen(blank);
    while (s->remove_blanks && at < bytes) {
        taken = replace(s, text + at, bytes - at, &value, &n);
        if (n != 1 || *value != ' ') break;
        at += taken;
    }
    if (at == bytes) return;
    if (s->dummy_prefix) put(out, blank, blank_bytes);
    for (int after_blank = s->remove_blanks; at < bytes && out->status == TSAR_OK; at += taken) {
        taken = replace(s, text + at, bytes - at, &value, &n);
        while (after_blank && n > 0 && *value == ' ') value++, n--;
        for (size_t i = 0; i < n; i++)
            if (value[i] == ' ')
                put(out, blank, blank_bytes);
            else
                put(out, value + i, 1);
        if (n > 0) after_blank = s->remove_blanks && value[n - 1] == ' ';
    }
    while (s->remove_blanks && out->n >= blank_bytes && memcmp(out->text + out->n - blank_bytes, blank, blank_bytes) == 0) out->n -= blank_bytes;
}

/* ------------------------------------------------------------------------------------------------------------- Viterbi */

/* The best path to a place: its score, a float as in the library, where its last piece begins, and which one that is. */
typedef struct {
    float score;
    uint32_t from;
    int32_t id; /* -1: nothing ends here */
} step;

/* A candidate replaces only what is strictly worse: on a tie the earliest start stays. */
static void offer(step *to, double score, size_t from, size_t id)
{
    if (to->id >= 0 && !(score > (double)to->score)) return;
    to->score = (float)score;
    to->from = (uint32_t)from;
    to->id = (int32_t)id;
}

/* steps [n + 1]. The sum of a known piece is a double that is rounded when it is stored; that of an unknown one is a float. */
static void find_path(const tsar_spiece *s, const char *text, size_t n, step *steps)
{
    const float unknown = (float)((double)s->least - 10.0);
    size_t length;
    for (size_t at = 0; at <= n; at++) steps[at].id = -1;
    steps[0].score = 0;
    for (size_t at = 0; at < n; at += length) {
        (void)tsar_char_at(text + at, n - at, &length);
        const float best = steps[at].score;
        matches m = { 0, s->n_matched, 0 };
        int single = 0;
        for (size_t end = at; end < n && m.low < m.high; end++) {
            const piece *p = next_match(s, &m, (unsigned char)text[end]);
            if (!p) continue;
            const double score = p->type == USER_DEFINED ? (double)((float)p->length * (float)s->user_score) - 0.1 : (double)p->score;
            offer(&steps[end + 1], score + (double)best, at, (size_t)(p - s->pieces));
            if (p->length == length) single = 1;
        }
        if (!single) offer(&steps[at + length], (double)(float)((double)unknown + (double)best), at, s->unknown);
    }
}

/* The path from its end, then in order; neighbouring unknowns are one, or each byte of them its own piece. Returns how many ids. */
static size_t follow(const tsar_spiece *s, const char *text, size_t n, step *steps, int64_t *ids)
{
    size_t count = 0, next = n;
    for (size_t at = n; at > 0;) { /* turns the links round: from is where the next piece ends */
        const size_t from = steps[at].from;
        steps[at].from = (uint32_t)next;
        next = at;
        at = from;
    }
    steps[0].from = (uint32_t)next;
    int64_t last = -1;
    for (size_t at = 0; at < n;) {
        const size_t end = steps[at].from;
        const int64_t id = steps[end].id;
        const int unknown = (size_t)id == s->unknown;
        for (size_t i = at; unknown && s->byte_fallback && i < end; i++) ids[count++] = s->byte_ids[(unsigned char)text[i]];
        if (!unknown || (!s->byte_fallback && last != id)) ids[count++] = id;
        last = id;
        at = end;
    }
    return count;
}

tsar_status tsar_spiece_encode(const tsar_spiece *spiece, const char *text, size_t bytes, int64_t **ids, size_t *n, tsar_error *err)
{
    normal_text normal = { NULL, 0, 0, TSAR_OK, err };
    *ids = NULL;
    *n = 0;
    if (bytes > (size_t)1 << 28) return tsar_fail(err, TSAR_INPUT, "the prompt has %zu bytes, more than %zu", bytes, (size_t)1 << 28);
    normalise(spiece, text, bytes, &normal);
    tsar_status status = normal.status;
    if (status == TSAR_OK && normal.n >= UINT32_MAX) status = tsar_fail(err, TSAR_INPUT, "the normalised prompt has %zu bytes", normal.n);
    step *steps = status == TSAR_OK ? tsar_alloc(normal.n + 1, sizeof *steps, "the prompt", err) : NULL;
    *ids = steps ? tsar_alloc(normal.n + 1, sizeof **ids, "the prompt", err) : NULL; /* one more, for an end */
    if (status == TSAR_OK && !*ids) status = TSAR_ROOM;
    if (status == TSAR_OK && normal.n) {
        find_path(spiece, normal.text, normal.n, steps);
        *n = follow(spiece, normal.text, normal.n, steps, *ids);
    }
    tsar_free(steps);
    tsar_free(normal.text);
    return status;
}

tsar_status tsar_spiece_decode(const tsar_spiece *spiece, const int64_t *ids, size_t n, char **text, size_t *bytes, tsar_error *err)
{
    size_t total = 0, used = 0;
    *text = NULL;
    *bytes = 0;
    for (size_t i = 0; i < n; i++) {
        if (ids[i] < 0 || (uint64_t)ids[i] >= spiece->n)
            return tsar_fail(err, TSAR_INPUT, "id %lld at place %zu is no piece of this tokenizer (ids are from 0 to %zu)", (long long)ids[i], i,
                             spiece->n - 1);
        if (total > SIZE_MAX / 2 - spiece->pieces[ids[i]].length) return tsar_fail(err, TSAR_INPUT, "the ids stand for too much text");
        total += spiece->pieces[ids[i]].length;
    }
    char *out = tsar_alloc(total + 1, 1, "text", err);
    if (!out) return TSAR_ROOM;
    for (size_t i = 0; i < n; i++) {
        const piece *p = &spiece->pieces[ids[i]];
        if (p->type == CONTROL) continue; /* <pad>, </s>: nothing */
        if (p->type == BYTE) {
            out[used++] = (char)(unsigned char)byte_of(p);
            continue;
        }
        for (size_t k = 0; k < p->length;) {
            if (p->length - k >= META_BYTES && memcmp(p->text + k, META, META_BYTES) == 0) {
                if (used || !spiece->dummy_prefix) out[used++] = ' '; /* the one that was put in front is not the text's */
                k += META_BYTES;
            } else {
                out[used++] = p->text[k++];
            }
        }
    }
    *text = out;
    *bytes = used;
    return TSAR_OK;
}
