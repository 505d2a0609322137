/* Text (SPEC 3, ours): byte-level byte-pair encoding. Ids 0, 1, 2 are <bos>, <soi>, <eoi>; byte b is 3 + b; merge r of
 * tokenizer.merges, a pair of smaller ids, is 3 + 256 + r. Every text has ids, and they give its bytes back. */
#include "../tsar.h"

#include <inttypes.h>
#include <string.h>

#define FIRST_BYTE ((int64_t)TSAR_SPECIALS)
#define FIRST_MERGE (FIRST_BYTE + 256)
#define MAX_PROMPT ((size_t)1 << 30) /* bytes: a place fits into the low half of a heap's key */

/* A chain of ids, neighbours linked; a heap of the places where a merge may apply, by rank, then from the left. */
typedef struct {
    const int64_t *merges; /* [n_merges][2] */
    size_t n_merges;
    uint32_t *order;        /* [n_merges]: ranks, sorted by pair */
    int64_t *ids;           /* [n]; -1 where a token was merged into its left neighbour */
    uint32_t *left, *right; /* [n]: places of the neighbours; n where there is none */
    size_t n;
    uint64_t *heap; /* rank << 32 | place: at most n - 1 pairs at the start, and two new ones for each of n - 1 merges */
    size_t n_heap;
} merger;

/* The order of pairs: by the left id, then by the right one. */
static int compare_pairs(const int64_t *a, int64_t left, int64_t right)
{
    if (a[0] != left) return a[0] < left ? -1 : 1;
    return a[1] < right ? -1 : a[1] > right;
}

/* Sorts the ranks by their pairs, a lower rank first among equals: merges runs of 1, 2, 4, ... other is [n_merges] of scratch. */
static void sort_ranks(merger *m, uint32_t *other)
{
    const size_t n = m->n_merges;
    uint32_t *from = m->order, *to = other;
    for (size_t i = 0; i < n; i++) from[i] = (uint32_t)i;
    for (size_t run = 1; run < n; run *= 2) {
        for (size_t start = 0; start < n; start += 2 * run) {
            const size_t middle = n - start < run ? n : start + run, end = n - middle < run ? n : middle + run;
            size_t a = start, b = middle;
            for (size_t k = start; k < end; k++) {
                const int take_a =
                    b == end || (a < middle && compare_pairs(m->merges + 2 * from[a], m->merges[2 * from[b]], m->merges[2 * from[b] + 1]) <= 0);
                to[k] = take_a ? from[a++] : from[b++];
            }
        }
        uint32_t *swap = from;
        from = to;
        to = swap;
    }
    if (from != m->order) memcpy(m->order, from, n * sizeof *from);
}

/* The lowest rank that merges this pair; n_merges if none does. */
static size_t rank_of(const merger *m, int64_t left, int64_t right)
{
    size_t low = 0, high = m->n_merges;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        if (compare_pairs(m->merges + 2 * m->order[middle], left, right) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low < m->n_merges && compare_pairs(m->merges + 2 * m->order[low], left, right) == 0 ? m->order[low] : m->n_merges;
}

/* The rank of the pair that begins at `place`; n_merges if there is none. */
static size_t rank_at(const merger *m, size_t place)
{
    return place < m->n && m->ids[place] >= 0 && m->right[place] < m->n ? rank_of(m, m->ids[place], m->ids[m->right[place]]) : m->n_merges;
}

static void heap_push(merger *m, size_t place)
{
    const size_t rank = rank_at(m, place);
    if (rank == m->n_merges) return;
    const uint64_t key = (uint64_t)rank << 32 | place;
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

/* Applies the merges in rank order, leftmost first. A merge makes pairs of later ranks only, because its parts are
 * smaller than the id it makes; so the lowest rank in the heap is always the next. O(n log n). */
static void merge_all(merger *m)
{
    for (size_t i = 0; i + 1 < m->n; i++) heap_push(m, i);
    while (m->n_heap) {
        const uint64_t key = heap_pop(m);
        const size_t place = (size_t)(key & UINT32_MAX), rank = (size_t)(key >> 32);
        if (rank_at(m, place) != rank) continue; /* an older merge has taken one of the two */
        const size_t gone = m->right[place], next = m->right[gone];
        m->ids[place] = FIRST_MERGE + (int64_t)rank;
        m->ids[gone] = -1;
        m->right[place] = (uint32_t)next;
        if (next < m->n) m->left[next] = (uint32_t)place;
        heap_push(m, place);
        heap_push(m, m->left[place]);
    }
}

/* The bytes of a text as a chain of ids, then merged. scratch [n_merges]. */
static void encode_bytes(merger *m, const unsigned char *text, uint32_t *scratch)
{
    for (size_t i = 0; i < m->n; i++) {
        m->ids[i] = FIRST_BYTE + text[i];
        m->left[i] = (uint32_t)(i == 0 ? m->n : i - 1);
        m->right[i] = (uint32_t)(i + 1);
    }
    sort_ranks(m, scratch);
    merge_all(m);
}

tsar_status tsar_text_encode(const tsar_model *model, const char *prompt, int64_t **ids, size_t *n, tsar_error *err)
{
    const size_t length = strlen(prompt);
    *ids = NULL;
    *n = 0;
    if (tsar_family_of(&model->config)->text_template != TSAR_TEMPLATE_TSAR)
        return tsar_fail(err, TSAR_INPUT, "this model takes no text prompt (llamagen-c2i takes --class, llamagen-t2i --caption)");
    if (model->config.text_vocab < (size_t)FIRST_MERGE)
        return tsar_fail(err, TSAR_INPUT, "the model has text_vocab=%zu, too small for text, which needs %" PRId64 " (give its ids by --prompt-ids)",
                         model->config.text_vocab, FIRST_MERGE);
    if (length > MAX_PROMPT) return tsar_fail(err, TSAR_INPUT, "the prompt has %zu bytes, more than %zu", length, MAX_PROMPT);

    merger m = { .merges = model->merges, .n_merges = model->n_merges, .n = length };
    uint32_t *scratch = tsar_alloc(m.n_merges, sizeof *scratch, "the prompt", err);
    m.order = tsar_alloc(m.n_merges, sizeof *m.order, "the prompt", err);
    m.left = tsar_alloc(length, sizeof *m.left, "the prompt", err);
    m.right = tsar_alloc(length, sizeof *m.right, "the prompt", err);
    m.heap = tsar_alloc(length, 3 * sizeof *m.heap, "the prompt", err);
    int64_t *out = tsar_alloc(length + 2, sizeof *out, "the prompt", err);
    tsar_status status = TSAR_ROOM;
    if (scratch && m.order && m.left && m.right && m.heap && out) {
        m.ids = out + 1;
        status = TSAR_OK;
        encode_bytes(&m, (const unsigned char *)prompt, scratch);
        size_t used = 0;
        out[used++] = TSAR_BOS;
        for (size_t i = 0; i < length; i++)
            if (m.ids[i] >= 0) out[used++] = m.ids[i]; /* never beyond place i, where it comes from */
        out[used++] = TSAR_SOI;
        *ids = out;
        *n = used;
        out = NULL;
    }
    tsar_free(scratch);
    tsar_free(m.order);
    tsar_free(m.left);
    tsar_free(m.right);
    tsar_free(m.heap);
    tsar_free(out);
    return status;
}

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

/* sizes [n_merges]: bytes that each merge stands for, at most `limit` + 1 (a chain of doublings would overflow). */
static void merge_sizes(const tsar_model *model, uint64_t *sizes, uint64_t limit)
{
    for (size_t r = 0; r < model->n_merges; r++) {
        sizes[r] = 0;
        for (size_t part = 0; part < 2; part++) {
            const int64_t id = model->merges[2 * r + part];
            sizes[r] += id < FIRST_MERGE ? 1 : sizes[id - FIRST_MERGE];
        }
        if (sizes[r] > limit) sizes[r] = limit + 1;
    }
}

/* Writes the bytes of one id, left part before right. stack [n_merges + 1]: ids still to come, each smaller than the one below
 * it was split from. */
static char *expand(const tsar_model *model, int64_t id, int64_t *stack, char *to)
{
    size_t depth = 0;
    stack[depth++] = id;
    while (depth) {
        id = stack[--depth];
        if (id < FIRST_MERGE) {
            *to++ = (char)(unsigned char)(id - FIRST_BYTE);
            continue;
        }
        const int64_t *pair = model->merges + 2 * (id - FIRST_MERGE);
        stack[depth++] = pair[1];
        stack[depth++] = pair[0];
    }
    return to;
}

tsar_status tsar_text_decode(const tsar_model *model, const int64_t *ids, size_t n, char **text, tsar_error *err)
{
    const int64_t end = FIRST_MERGE + (int64_t)model->n_merges;
    uint64_t total = 0;
    tsar_status status = TSAR_OK;
    *text = NULL;
    uint64_t *sizes = tsar_alloc(model->n_merges, sizeof *sizes, "text", err);
    int64_t *stack = tsar_alloc(model->n_merges + 2, sizeof *stack, "text", err);
    if (!sizes || !stack)
        status = TSAR_ROOM;
    else
        merge_sizes(model, sizes, MAX_PROMPT);
    for (size_t i = 0; i < n && status == TSAR_OK; i++) {
        if (ids[i] < 0 || ids[i] >= end)
            status = tsar_fail(err, TSAR_INPUT, "id %" PRId64 " at place %zu is no text of this model (ids are from 0 to %" PRId64 ")", ids[i], i,
                               end - 1);
        else if (ids[i] >= FIRST_BYTE)
            total += ids[i] < FIRST_MERGE ? 1 : sizes[ids[i] - FIRST_MERGE];
        if (status == TSAR_OK && total > MAX_PROMPT) status = tsar_fail(err, TSAR_INPUT, "the ids stand for more than %zu bytes of text", MAX_PROMPT);
    }
    char *out = status == TSAR_OK ? tsar_alloc((size_t)total + 1, 1, "text", err) : NULL;
    if (status == TSAR_OK && !out) status = TSAR_ROOM;
    *text = out;
    for (size_t i = 0; i < n && out; i++)
        if (ids[i] >= FIRST_BYTE) out = expand(model, ids[i], stack, out);
    tsar_free(sizes);
    tsar_free(stack);
    return status;
}
