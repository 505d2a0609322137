/* bpe.c - byte pairs (SPEC 11; QUIRKS-bpe): added tokens are cut out, each stretch is normalised and split into pieces, each piece becomes
 * bytes, and neighbours merge by rank, the leftmost among equals. tsar's own tokenizer (SPEC 3, Text) is the case without added tokens and
 * rules, with ids in rank order. */
#include "text.h"

#include <inttypes.h>
#include <string.h>

#define FIRST_BYTE ((int64_t)TSAR_SPECIALS)
#define FIRST_MERGE (TSAR_SPECIALS + 256)
#define MAX_TEXT ((size_t)1 << 30) /* bytes: a place fits into the low half of a heap's key */
#define MAX_ID ((int64_t)1 << 24)  /* ids are below it, unless the model says less */
#define NONE UINT32_MAX

/* ----------------------------------------------------------------------------------------------------------- look-up */

/* Tables with open addressing, at most half full: buckets hold indices, NONE where there is nothing. */
static tsar_status open_hash(tsar_hash *hash, size_t n, tsar_error *err)
{
    size_t size = 16;
    while (size / 2 < n) size *= 2;
    hash->at = tsar_alloc(size, sizeof *hash->at, "the tokenizer's index", err);
    if (!hash->at) return TSAR_ROOM;
    hash->mask = size - 1;
    memset(hash->at, 0xFF, size * sizeof *hash->at);
    return TSAR_OK;
}

static size_t hash_pair(int64_t left, int64_t right)
{
    const uint64_t h = (uint64_t)left * UINT64_C(0x9E3779B97F4A7C15) ^ (uint64_t)right * UINT64_C(0xC2B2AE3D27D4EB4F);
    return (size_t)((h ^ h >> 29) * UINT64_C(0xBF58476D1CE4E5B9) >> 32);
}

size_t tsar_bytes_hash(const void *bytes, size_t n)
{
    const unsigned char *b = bytes;
    uint64_t h = UINT64_C(0xCBF29CE484222325);
    for (size_t i = 0; i < n; i++) h = (h ^ b[i]) * UINT64_C(0x100000001B3);
    return (size_t)(h ^ h >> 32);
}

static int is_pair(const tsar_bpe *bpe, uint32_t m, int64_t left, int64_t right)
{
    return bpe->merges[2 * (size_t)m] == left && bpe->merges[2 * (size_t)m + 1] == right;
}

/* The bucket of the merge of this pair, or the free one where it would be. */
static size_t pair_bucket(const tsar_bpe *bpe, int64_t left, int64_t right)
{
    size_t bucket = hash_pair(left, right) & bpe->pairs.mask;
    while (bpe->pairs.at[bucket] != NONE && !is_pair(bpe, bpe->pairs.at[bucket], left, right)) bucket = (bucket + 1) & bpe->pairs.mask;
    return bucket;
}

static size_t piece_size(const tsar_pieces *pieces, size_t i) { return (size_t)(pieces->at[i + 1] - pieces->at[i]); }

static size_t piece_bucket(const tsar_pieces *pieces, const tsar_hash *hash, const void *bytes, size_t n)
{
    size_t bucket = tsar_bytes_hash(bytes, n) & hash->mask;
    for (uint32_t i; (i = hash->at[bucket]) != NONE; bucket = (bucket + 1) & hash->mask)
        if (piece_size(pieces, i) == n && memcmp(pieces->bytes + pieces->at[i], bytes, n) == 0) break;
    return bucket;
}

/* The piece that these bytes are; NONE if they are none. */
static uint32_t find_piece(const tsar_pieces *pieces, const tsar_hash *hash, const void *bytes, size_t n)
{
    return pieces->n ? hash->at[piece_bucket(pieces, hash, bytes, n)] : NONE;
}

static tsar_status index_pieces(const tsar_pieces *pieces, tsar_hash *hash, tsar_error *err)
{
    if (pieces->n == 0) return TSAR_OK;
    tsar_status status = open_hash(hash, pieces->n, err);
    for (size_t i = 0; i < pieces->n && status == TSAR_OK; i++) {
        const size_t bucket = piece_bucket(pieces, hash, pieces->bytes + pieces->at[i], piece_size(pieces, i));
        if (hash->at[bucket] == NONE) hash->at[bucket] = (uint32_t)i;
    }
    return status;
}

/* -------------------------------------------------------------------------------------------------- checks, and the index */

static tsar_status check_pieces(const tsar_pieces *pieces, const char *what, int64_t n_ids, const char *name, tsar_error *err)
{
    for (size_t i = 0; i < pieces->n; i++) {
        if (pieces->at[i] < 0 || pieces->at[i] >= pieces->at[i + 1] || (uint64_t)pieces->at[i + 1] > pieces->n_bytes)
            return tsar_fail(err, TSAR_INPUT, "%s: piece %zu of tokenizer.%s is not at bytes %" PRId64 " to %" PRId64 " of %zu", name, i, what, pieces->at[i],
                             pieces->at[i + 1], pieces->n_bytes);
        if (pieces->ids[i] < 0 || pieces->ids[i] >= n_ids)
            return tsar_fail(err, TSAR_INPUT, "%s: piece %zu of tokenizer.%s has id %" PRId64 ", which is not from 0 to %" PRId64, name, i, what,
                             pieces->ids[i], n_ids - 1);
    }
    return TSAR_OK;
}

/* tsar's own: merge r makes id 3 + 256 + r of two smaller ones, none of them special. */
static tsar_status check_own(const tsar_bpe *bpe, const char *name, tsar_error *err)
{
    for (size_t i = 0; i < 2 * bpe->n_merges; i++)
        if (bpe->merges[i] < FIRST_BYTE || bpe->merges[i] >= FIRST_MERGE + (int64_t)(i / 2))
            return tsar_fail(err, TSAR_INPUT, "%s: merge %zu of tokenizer.merges uses id %" PRId64 ", which is not from %d to %" PRId64, name, i / 2,
                             bpe->merges[i], TSAR_SPECIALS, FIRST_MERGE + (int64_t)(i / 2) - 1);
    return TSAR_OK;
}

/* Published ones: ids in range, and an id for every byte that UTF-8 has. */
static tsar_status check_published(const tsar_bpe *bpe, int64_t n_ids, const char *name, tsar_error *err)
{
    for (size_t i = 0; i < 256; i++) {
        const int never = i == 0xC0 || i == 0xC1 || i >= 0xF5;
        if (bpe->byte_ids[i] < (never ? -1 : 0) || bpe->byte_ids[i] >= n_ids)
            return tsar_fail(err, TSAR_INPUT, "%s: byte %zu of the tokenizer has the id %" PRId64 ", which is not from 0 to %" PRId64, name, i,
                             bpe->byte_ids[i], n_ids - 1);
    }
    for (size_t i = 0; i < bpe->n_merges; i++) {
        const int64_t part[3] = { bpe->merges[2 * i], bpe->merges[2 * i + 1], bpe->merge_ids[i] };
        for (size_t k = 0; k < 3; k++)
            if (part[k] < 0 || part[k] >= n_ids)
                return tsar_fail(err, TSAR_INPUT, "%s: merge %zu of the tokenizer has the id %" PRId64 ", which is not from 0 to %" PRId64, name, i, part[k],
                                 n_ids - 1);
        if (bpe->merge_ranks[i] < 0 || bpe->merge_ranks[i] > INT32_MAX)
            return tsar_fail(err, TSAR_INPUT, "%s: merge %zu of the tokenizer has the rank %" PRId64 ", which is not from 0 to %ld", name, i,
                             bpe->merge_ranks[i], (long)INT32_MAX);
    }
    return TSAR_OK;
}

/* The lengths of added tokens, descending, and the bytes that they begin with. */
static tsar_status index_lengths(tsar_bpe *bpe, tsar_error *err)
{
    size_t longest = 0;
    for (size_t i = 0; i < bpe->special.n; i++)
        if (piece_size(&bpe->special, i) > longest) longest = piece_size(&bpe->special, i);
    bpe->lengths = tsar_alloc(longest + 1, 1, "the tokenizer's index", err);
    if (!bpe->lengths) return TSAR_ROOM;
    bpe->longest = longest;
    for (size_t i = 0; i < bpe->special.n; i++) {
        bpe->lengths[piece_size(&bpe->special, i)] = 1;
        bpe->begins[bpe->special.bytes[bpe->special.at[i]]] = 1;
    }
    return TSAR_OK;
}

tsar_status tsar_bpe_open(tsar_bpe *bpe, size_t n_ids, const char *name, tsar_error *err)
{
    const int64_t limit = n_ids && n_ids < (size_t)MAX_ID ? (int64_t)n_ids : MAX_ID;
    tsar_status status = bpe->byte_ids ? check_published(bpe, limit, name, err) : check_own(bpe, name, err);
    if (status == TSAR_OK && bpe->n_merges > INT32_MAX) status = tsar_fail(err, TSAR_INPUT, "%s: the tokenizer has %zu merges", name, bpe->n_merges);
    if (status == TSAR_OK) status = check_pieces(&bpe->whole, "whole", limit, name, err);
    if (status == TSAR_OK) status = check_pieces(&bpe->special, "special", limit, name, err);
    if (status == TSAR_OK) status = open_hash(&bpe->pairs, bpe->n_merges, err);
    for (size_t i = 0; i < bpe->n_merges && status == TSAR_OK; i++) {
        const size_t bucket = pair_bucket(bpe, bpe->merges[2 * i], bpe->merges[2 * i + 1]);
        if (bpe->pairs.at[bucket] == NONE) bpe->pairs.at[bucket] = (uint32_t)i; /* among equals the first rank */
    }
    if (status == TSAR_OK) status = index_pieces(&bpe->whole, &bpe->whole_hash, err);
    if (status == TSAR_OK) status = index_pieces(&bpe->special, &bpe->special_hash, err);
    return status == TSAR_OK ? index_lengths(bpe, err) : status;
}

tsar_status tsar_bpe_drop_repeated(tsar_bpe *bpe, tsar_error *err)
{
    unsigned char *later = tsar_alloc(bpe->n_merges, 1, "a tokenizer", err);
    tsar_status status = later ? open_hash(&bpe->pairs, bpe->n_merges, err) : TSAR_ROOM;
    size_t kept = 0;
    for (size_t i = bpe->n_merges; i-- > 0 && status == TSAR_OK;) {
        const size_t bucket = pair_bucket(bpe, bpe->merges[2 * i], bpe->merges[2 * i + 1]);
        later[i] = bpe->pairs.at[bucket] != NONE;
        if (!later[i]) bpe->pairs.at[bucket] = (uint32_t)i;
    }
    for (size_t i = 0; i < bpe->n_merges && status == TSAR_OK; i++) {
        if (later[i]) continue;
        memmove(bpe->merges + 2 * kept, bpe->merges + 2 * i, 2 * sizeof *bpe->merges);
        bpe->merge_ids[kept] = bpe->merge_ids[i];
        bpe->merge_ranks[kept++] = bpe->merge_ranks[i];
    }
    if (status == TSAR_OK) bpe->n_merges = kept;
    tsar_free(later);
    tsar_bpe_unindex(bpe);
    return status;
}

void tsar_pieces_close(tsar_pieces *pieces)
{
    tsar_free(pieces->bytes);
    tsar_free(pieces->at);
    tsar_free(pieces->ids);
    memset(pieces, 0, sizeof *pieces);
}

void tsar_bpe_unindex(tsar_bpe *bpe)
{
    tsar_free(bpe->pairs.at);
    tsar_free(bpe->whole_hash.at);
    tsar_free(bpe->special_hash.at);
    tsar_free(bpe->lengths);
    bpe->pairs.at = bpe->whole_hash.at = bpe->special_hash.at = NULL;
    bpe->lengths = NULL;
}

void tsar_bpe_close(tsar_bpe *bpe)
{
    tsar_bpe_unindex(bpe);
    tsar_pieces_close(&bpe->whole);
    tsar_pieces_close(&bpe->special);
    tsar_free(bpe->special_pass);
    tsar_free(bpe->merges);
    tsar_free(bpe->merge_ids);
    tsar_free(bpe->merge_ranks);
    tsar_free(bpe->byte_ids);
    memset(bpe, 0, sizeof *bpe);
}

/* ------------------------------------------------------------------------------------------------------------- merging */

/* A chain of ids, neighbours linked; a heap of the places where a merge may apply, by rank, then from the left. */
typedef struct {
    const tsar_bpe *bpe;
    int64_t *ids;           /* [n]; -1 where a token was merged into its left neighbour */
    uint32_t *left, *right; /* [n]: places of the neighbours; n where there is none */
    size_t n;
    uint64_t *heap; /* rank << 32 | place: at most n - 1 pairs at the start, and two new ones for each of n - 1 merges */
    size_t n_heap;
} merger;

/* The merge of the pair that begins at `place`; NONE if there is none. */
static uint32_t merge_at(const merger *m, size_t place)
{
    if (place >= m->n || m->ids[place] < 0 || m->right[place] >= m->n) return NONE;
    return m->bpe->pairs.at[pair_bucket(m->bpe, m->ids[place], m->ids[m->right[place]])];
}

static uint64_t rank_of(const tsar_bpe *bpe, uint32_t merge) { return bpe->merge_ranks ? (uint64_t)bpe->merge_ranks[merge] : merge; }

static void heap_push(merger *m, size_t place)
{
    const uint32_t merge = merge_at(m, place);
    if (merge == NONE) return;
    const uint64_t key = rank_of(m->bpe, merge) << 32 | place;
    size_t i = m->n_heap++;
    for (; i > 0 && m->heap[(i - 1) / 2] > key; i = (i - 1) / 2) m->heap[i] = m->heap[(i - 1) / 2];
    m->heap[i] = key;
}

static uint64_t heap_pop(merger *m)
{
    const uint64_t top = m->heap[0], key = m->heap[--m->n_heap];
    size_t i = 0;
    for (size_t child = 1; child < m->n_heap; child = 2 * i + 1) {
        if (child + 1 < m->n_heap && m->heap[child + 1] < m->heap[child]) child++;
        if (m->heap[child] >= key) break;
        m->heap[i] = m->heap[child];
        i = child;
    }
    m->heap[i] = key;
    return top;
}

/* The ids of one piece, n > 0 bytes, appended to out; returns how many. O(n log n): the lowest key of the heap is the next merge, unless an
 * older one has taken one of the two. */
static size_t merge_piece(merger *m, const unsigned char *bytes, size_t n, int64_t *out)
{
    const tsar_bpe *bpe = m->bpe;
    m->n = n;
    m->n_heap = 0;
    for (size_t i = 0; i < n; i++) {
        m->ids[i] = bpe->byte_ids ? bpe->byte_ids[bytes[i]] : FIRST_BYTE + bytes[i];
        m->left[i] = (uint32_t)(i == 0 ? n : i - 1);
        m->right[i] = (uint32_t)(i + 1);
    }
    for (size_t i = 0; i + 1 < n; i++) heap_push(m, i);
    while (m->n_heap) {
        const uint64_t key = heap_pop(m);
        const size_t place = (size_t)(key & UINT32_MAX);
        const uint32_t merge = merge_at(m, place);
        if (merge == NONE || rank_of(bpe, merge) != key >> 32) continue;
        const size_t gone = m->right[place], next = m->right[gone];
        m->ids[place] = bpe->merge_ids ? bpe->merge_ids[merge] : FIRST_MERGE + (int64_t)merge;
        m->ids[gone] = -1;
        m->right[place] = (uint32_t)next;
        if (next < n) m->left[next] = (uint32_t)place;
        heap_push(m, place);
        heap_push(m, m->left[place]);
    }
    size_t used = 0;
    for (size_t i = 0; i < n; i++)
        if (m->ids[i] >= 0) out[used++] = m->ids[i];
    return used;
}

static tsar_status open_merger(merger *m, const tsar_bpe *bpe, size_t n, tsar_error *err)
{
    memset(m, 0, sizeof *m);
    m->bpe = bpe;
    m->ids = tsar_alloc(n, sizeof *m->ids, "the prompt", err);
    m->left = tsar_alloc(n, sizeof *m->left, "the prompt", err);
    m->right = tsar_alloc(n, sizeof *m->right, "the prompt", err);
    m->heap = tsar_alloc(n, 3 * sizeof *m->heap, "the prompt", err);
    return m->ids && m->left && m->right && m->heap ? TSAR_OK : TSAR_ROOM;
}

static void close_merger(merger *m)
{
    tsar_free(m->ids);
    tsar_free(m->left);
    tsar_free(m->right);
    tsar_free(m->heap);
}

tsar_status tsar_bpe_unreached(const tsar_bpe *bpe, const tsar_pieces *pieces, unsigned char *unreached, tsar_error *err)
{
    merger m;
    size_t longest = 1;
    for (size_t i = 0; i < pieces->n; i++)
        if (piece_size(pieces, i) > longest) longest = piece_size(pieces, i);
    int64_t *ids = tsar_alloc(longest, sizeof *ids, "a tokenizer", err);
    tsar_status status = open_merger(&m, bpe, longest, err);
    if (!ids) status = TSAR_ROOM;
    for (size_t i = 0; i < pieces->n && status == TSAR_OK; i++) {
        const size_t n = merge_piece(&m, pieces->bytes + pieces->at[i], piece_size(pieces, i), ids);
        unreached[i] = n != 1 || ids[0] != pieces->ids[i];
    }
    close_merger(&m);
    tsar_free(ids);
    return status;
}

/* ------------------------------------------------------------------------------------------------------------ encoding */

/* The ids so far; room for `room` of them. */
typedef struct {
    int64_t *ids;
    size_t n, room;
} id_list;

static tsar_status reserve(id_list *list, size_t more, tsar_error *err)
{
    if (more <= list->room - list->n) return TSAR_OK;
    const size_t room = list->n + more + list->room / 2;
    int64_t *grown = tsar_alloc(room, sizeof *grown, "the prompt", err);
    if (!grown) return TSAR_ROOM;
    if (list->n) memcpy(grown, list->ids, list->n * sizeof *grown);
    tsar_free(list->ids);
    list->ids = grown;
    list->room = room;
    return TSAR_OK;
}

/* A stretch without added tokens: pieces, bytes, merges. */
static tsar_status encode_stretch(const tsar_bpe *bpe, id_list *list, const char *text, size_t bytes, tsar_error *err)
{
    merger m;
    unsigned char *cut = tsar_alloc(bytes + 1, 1, "the prompt", err);
    tsar_status status = open_merger(&m, bpe, bytes, err);
    if (!cut) status = TSAR_ROOM;
    if (status == TSAR_OK) status = reserve(list, bytes, err);
    if (status == TSAR_OK) tsar_split_text(cut, text, bytes, bpe->split);
    for (size_t start = 0, end; start < bytes && status == TSAR_OK; start = end) {
        for (end = start + 1; !cut[end]; end++) continue;
        const uint32_t whole = find_piece(&bpe->whole, &bpe->whole_hash, text + start, end - start);
        if (whole != NONE)
            list->ids[list->n++] = bpe->whole.ids[whole];
        else
            list->n += merge_piece(&m, (const unsigned char *)text + start, end - start, list->ids + list->n);
    }
    close_merger(&m);
    tsar_free(cut);
    return status;
}

/* The longest added token of the pass that begins at text; NONE if there is none. */
static uint32_t special_at(const tsar_bpe *bpe, const char *text, size_t bytes, unsigned pass)
{
    if (!bpe->begins[(unsigned char)*text]) return NONE;
    for (size_t n = bpe->longest < bytes ? bpe->longest : bytes; n > 0; n--) {
        const uint32_t i = bpe->lengths[n] ? find_piece(&bpe->special, &bpe->special_hash, text, n) : NONE;
        if (i != NONE && bpe->special_pass[i] == pass) return i;
    }
    return NONE;
}

enum { RAW = 0, NORMALISED = 1, PASSES = 2 }; /* special_pass: before the normaliser, after it */

static tsar_status encode_pass(const tsar_bpe *bpe, id_list *list, const char *text, size_t bytes, unsigned pass, tsar_error *err);

/* What lies between added tokens of a pass goes on to the next step. */
static tsar_status encode_between(const tsar_bpe *bpe, id_list *list, const char *text, size_t bytes, unsigned pass, tsar_error *err)
{
    if (bytes == 0) return TSAR_OK;
    if (pass == NORMALISED) return encode_stretch(bpe, list, text, bytes, err);
    if (!bpe->nfc) return encode_pass(bpe, list, text, bytes, NORMALISED, err);
    char *normal = NULL;
    size_t n = 0;
    tsar_status status = tsar_nfc(text, bytes, &normal, &n, err);
    if (status == TSAR_OK) status = encode_pass(bpe, list, normal, n, NORMALISED, err);
    tsar_free(normal);
    return status;
}

/* Added tokens of a pass are cut out, leftmost, then longest. */
static tsar_status encode_pass(const tsar_bpe *bpe, id_list *list, const char *text, size_t bytes, unsigned pass, tsar_error *err)
{
    tsar_status status = TSAR_OK;
    size_t start = 0;
    for (size_t at = 0; at < bytes && status == TSAR_OK;) {
        const uint32_t special = bpe->special.n ? special_at(bpe, text + at, bytes - at, pass) : NONE;
        if (special == NONE) {
            at++;
            continue;
        }
        status = encode_between(bpe, list, text + start, at - start, pass, err);
        if (status == TSAR_OK) status = reserve(list, 1, err);
        if (status == TSAR_OK) list->ids[list->n++] = bpe->special.ids[special];
        start = at += piece_size(&bpe->special, special);
    }
    return status == TSAR_OK ? encode_between(bpe, list, text + start, bytes - start, pass, err) : status;
}

tsar_status tsar_bpe_encode(const tsar_bpe *bpe, const char *text, size_t bytes, int64_t **ids, size_t *n, tsar_error *err)
{
    id_list list = { NULL, 0, 0 };
    *ids = NULL;
    *n = 0;
    if (bytes > MAX_TEXT) return tsar_fail(err, TSAR_INPUT, "the prompt has %zu bytes, more than %zu", bytes, MAX_TEXT);
    for (size_t at = 0, length; bpe->byte_ids && at < bytes; at += length)
        if (tsar_char_at(text + at, bytes - at, &length) == 0xFFFD && length == 1)
            return tsar_fail(err, TSAR_INPUT, "the text is no UTF-8 at byte %zu (0x%02X), and this tokenizer takes nothing else", at, (unsigned char)text[at]);
    tsar_status status = reserve(&list, 1, err);
    if (status == TSAR_OK) status = encode_pass(bpe, &list, text, bytes, RAW, err);
    if (status != TSAR_OK) {
        tsar_free(list.ids);
        return status;
    }
    *ids = list.ids;
    *n = list.n;
    return TSAR_OK;
}

/* ------------------------------------------------------------------------------------------------------------ decoding */

/* What each id stands for: how many bytes, and where they come from: 0 nothing, 1 + b byte b, then pieces of whole, of special, then merges,
 * each of ids that stand for something already, so that writing them ends. */
typedef struct {
    uint32_t source;
    uint32_t bytes;
} meaning;

typedef struct {
    const tsar_bpe *bpe;
    meaning *of; /* [n_ids] */
    size_t n_ids;
    uint32_t first_whole, first_special, first_merge; /* sources */
} meanings;

static void mean(meanings *m, int64_t id, size_t source, uint64_t bytes)
{
    if (m->of[id].source) return;
    m->of[id].source = (uint32_t)source;
    m->of[id].bytes = bytes > MAX_TEXT ? (uint32_t)MAX_TEXT + 1 : (uint32_t)bytes;
}

static int64_t merge_id(const tsar_bpe *bpe, size_t i) { return bpe->merge_ids ? bpe->merge_ids[i] : FIRST_MERGE + (int64_t)i; }

/* One more than the largest id. */
static size_t count_ids(const tsar_bpe *bpe)
{
    int64_t most = FIRST_MERGE - 1;
    for (size_t i = 0; bpe->byte_ids && i < 256; i++) most = bpe->byte_ids[i] > most ? bpe->byte_ids[i] : most;
    for (size_t i = 0; i < bpe->n_merges; i++) most = merge_id(bpe, i) > most ? merge_id(bpe, i) : most;
    for (size_t i = 0; i < bpe->whole.n; i++) most = bpe->whole.ids[i] > most ? bpe->whole.ids[i] : most;
    for (size_t i = 0; i < bpe->special.n; i++) most = bpe->special.ids[i] > most ? bpe->special.ids[i] : most;
    return (size_t)most + 1;
}

enum { SWEEPS = 8 }; /* a published list is in an order in which the first finds all */

static tsar_status open_meanings(meanings *m, const tsar_bpe *bpe, tsar_error *err)
{
    m->bpe = bpe;
    m->n_ids = count_ids(bpe);
    m->first_whole = 257;
    m->first_special = m->first_whole + (uint32_t)bpe->whole.n;
    m->first_merge = m->first_special + (uint32_t)bpe->special.n;
    m->of = tsar_alloc(m->n_ids, sizeof *m->of, "text", err);
    if (!m->of) return TSAR_ROOM;
    for (size_t b = 0; b < 256; b++)
        if (!bpe->byte_ids || bpe->byte_ids[b] >= 0) mean(m, bpe->byte_ids ? bpe->byte_ids[b] : FIRST_BYTE + (int64_t)b, 1 + b, 1);
    for (size_t i = 0; i < bpe->special.n; i++) mean(m, bpe->special.ids[i], m->first_special + i, piece_size(&bpe->special, i));
    for (size_t i = 0; i < bpe->whole.n; i++) mean(m, bpe->whole.ids[i], m->first_whole + i, piece_size(&bpe->whole, i));
    for (size_t sweep = 0, found = 1; found && sweep < SWEEPS; sweep++) {
        found = 0;
        for (size_t i = 0; i < bpe->n_merges; i++) {
            const meaning *left = &m->of[bpe->merges[2 * i]], *right = &m->of[bpe->merges[2 * i + 1]];
            if (m->of[merge_id(bpe, i)].source || !left->source || !right->source) continue;
            mean(m, merge_id(bpe, i), m->first_merge + i, (uint64_t)left->bytes + right->bytes);
            found++;
        }
    }
    return TSAR_OK;
}

/* Writes the bytes of one id, left part before right. stack: ids still to come, at most one more than the bytes of the id. */
static char *write_id(const meanings *m, int64_t id, int64_t *stack, char *to)
{
    size_t depth = 0;
    stack[depth++] = id;
    while (depth) {
        const uint32_t source = m->of[stack[--depth]].source;
        if (source < m->first_whole) {
            *to++ = (char)(unsigned char)(source - 1);
        } else if (source < m->first_merge) {
            const int special = source >= m->first_special;
            const tsar_pieces *pieces = special ? &m->bpe->special : &m->bpe->whole;
            const size_t i = source - (special ? m->first_special : m->first_whole);
            memcpy(to, pieces->bytes + pieces->at[i], piece_size(pieces, i));
            to += piece_size(pieces, i);
        } else {
            const int64_t *pair = m->bpe->merges + 2 * (size_t)(source - m->first_merge);
            stack[depth++] = pair[1];
            stack[depth++] = pair[0];
        }
    }
    return to;
}

tsar_status tsar_bpe_decode(const tsar_bpe *bpe, const int64_t *ids, size_t n, char **text, size_t *bytes, tsar_error *err)
{
    meanings m = { 0 };
    uint64_t total = 0;
    size_t longest = 0;
    *text = NULL;
    *bytes = 0;
    tsar_status status = open_meanings(&m, bpe, err);
    for (size_t i = 0; i < n && status == TSAR_OK; i++) {
        const int own_special = !bpe->byte_ids && ids[i] >= 0 && ids[i] < FIRST_BYTE; /* says nothing */
        if (!own_special && (ids[i] < 0 || (uint64_t)ids[i] >= m.n_ids || !m.of[ids[i]].source))
            status = tsar_fail(err, TSAR_INPUT, "id %" PRId64 " at place %zu is no text of this model (ids are from 0 to %zu)", ids[i], i, m.n_ids - 1);
        if (status != TSAR_OK || own_special) continue;
        total += m.of[ids[i]].bytes;
        if (m.of[ids[i]].bytes > longest) longest = m.of[ids[i]].bytes;
        if (total > MAX_TEXT) status = tsar_fail(err, TSAR_INPUT, "the ids stand for more than %zu bytes of text", MAX_TEXT);
    }
    int64_t *stack = status == TSAR_OK ? tsar_alloc(longest + 2, sizeof *stack, "text", err) : NULL;
    char *out = status == TSAR_OK ? tsar_alloc((size_t)total + 1, 1, "text", err) : NULL;
    if (status == TSAR_OK && (!stack || !out)) {
        tsar_free(out);
        out = NULL;
        status = TSAR_ROOM;
    }
    *text = out;
    *bytes = (size_t)total;
    for (size_t i = 0; i < n && out; i++)
        if (bpe->byte_ids || ids[i] >= FIRST_BYTE) out = write_id(&m, ids[i], stack, out);
    tsar_free(m.of);
    tsar_free(stack);
    return status;
}
