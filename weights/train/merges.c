/* Learning the merges of byte-level BPE (SPEC 3, Text) from the captions of the scenes: see gpt.h. */
#include "gpt.h"
#include "scenes.h"

#include <stdlib.h>
#include <string.h>

#define MAX_WORDS 512
#define MAX_LETTERS 24
#define CAPTIONS 20000
#define FIRST_MERGE (TSAR_SPECIALS + 256)

typedef struct {
    int64_t ids[MAX_LETTERS];
    size_t n;
    uint64_t count;
} word;
typedef struct {
    word words[MAX_WORDS];
    size_t n;
} word_list;

/* Counts a word of `length` bytes. */
static void count_word(word_list *list, const char *text, size_t length)
{
    word w = { { 0 }, length < MAX_LETTERS ? length : MAX_LETTERS, 1 };
    for (size_t i = 0; i < w.n; i++) w.ids[i] = TSAR_SPECIALS + (int64_t)(unsigned char)text[i];
    for (size_t i = 0; i < list->n; i++)
        if (list->words[i].n == w.n && memcmp(list->words[i].ids, w.ids, sizeof w.ids) == 0) {
            list->words[i].count++;
            return;
        }
    if (list->n < MAX_WORDS) list->words[list->n++] = w;
}

/* Splits a caption in front of each space. */
static void count_caption(word_list *list, const char *caption)
{
    size_t start = 0, length = strlen(caption);
    for (size_t i = 1; i <= length; i++)
        if (i == length || caption[i] == ' ') {
            count_word(list, caption + start, i - start);
            start = i;
        }
}

/* How often a pair of neighbours occurs. */
static uint64_t count_pair(const word_list *list, int64_t left, int64_t right)
{
    uint64_t count = 0;
    for (size_t i = 0; i < list->n; i++)
        for (size_t k = 0; k + 1 < list->words[i].n; k++)
            if (list->words[i].ids[k] == left && list->words[i].ids[k + 1] == right) count += list->words[i].count;
    return count;
}

/* The most frequent pair, the lowest ids of equals; 0 when every word is one id. */
static int best_pair(const word_list *list, int64_t pair[2])
{
    uint64_t best = 0;
    for (size_t i = 0; i < list->n; i++)
        for (size_t k = 0; k + 1 < list->words[i].n; k++) {
            int64_t left = list->words[i].ids[k], right = list->words[i].ids[k + 1];
            uint64_t count = count_pair(list, left, right);
            if (count > best || (count == best && (left < pair[0] || (left == pair[0] && right < pair[1])))) {
                best = count;
                pair[0] = left;
                pair[1] = right;
            }
        }
    return best > 0;
}

static void apply(word_list *list, const int64_t pair[2], int64_t id)
{
    for (size_t i = 0; i < list->n; i++) {
        word *w = &list->words[i];
        size_t used = 0;
        for (size_t k = 0; k < w->n; k++) {
            int joined = k + 1 < w->n && w->ids[k] == pair[0] && w->ids[k + 1] == pair[1];
            w->ids[used++] = joined ? id : w->ids[k];
            k += joined ? 1 : 0;
        }
        w->n = used;
    }
}

static void count_captions(word_list *list, uint64_t seed)
{
    for (uint64_t i = 0; i < CAPTIONS; i++) {
        scene s;
        scene_draw(&s, seed, i, -1, 0);
        count_caption(list, s.caption);
    }
}

static int compare_words(const void *a, const void *b) { return strcmp(a, b); }

tsar_status train_words(uint64_t seed, char **words, tsar_error *err)
{
    enum { ROOM = MAX_LETTERS + 1 };
    word_list *list = tsar_alloc(1, sizeof *list, "the words of the captions", err);
    char *sorted = tsar_alloc(MAX_WORDS, ROOM, "the words of the captions", err);
    *words = tsar_alloc(MAX_WORDS, ROOM, "the words of the captions", err);
    if (list && sorted && *words) {
        count_captions(list, seed);
        for (size_t i = 0; i < list->n; i++) {
            const word *w = &list->words[i];
            size_t from = w->ids[0] == TSAR_SPECIALS + ' ';
            for (size_t k = from; k < w->n; k++) sorted[i * ROOM + k - from] = (char)(w->ids[k] - TSAR_SPECIALS);
        }
        qsort(sorted, list->n, ROOM, compare_words);
        for (size_t i = 0; i < list->n; i++) {
            if (i > 0 && strcmp(sorted + (i - 1) * ROOM, sorted + i * ROOM) == 0) continue; /* within a caption and at its start */
            if (i > 0) strcat(*words, " ");
            strcat(*words, sorted + i * ROOM);
        }
    }
    tsar_status status = list && sorted && *words ? TSAR_OK : TSAR_ROOM;
    tsar_free(list);
    tsar_free(sorted);
    return status;
}

tsar_status train_merges(uint64_t seed, int64_t **merges, size_t *n, tsar_error *err)
{
    word_list *list = tsar_alloc(1, sizeof *list, "the words of the captions", err);
    *merges = tsar_alloc(MAX_WORDS * MAX_LETTERS, 2 * sizeof **merges, "merges", err);
    *n = 0;
    if (!list || !*merges) {
        tsar_free(list);
        tsar_free(*merges);
        *merges = NULL;
        return TSAR_ROOM;
    }
    count_captions(list, seed);
    int64_t pair[2] = { 0, 0 };
    while (*n < MAX_WORDS * MAX_LETTERS && best_pair(list, pair)) {
        memcpy(*merges + 2 * *n, pair, sizeof pair);
        apply(list, pair, FIRST_MERGE + (int64_t)*n);
        ++*n;
    }
    tsar_free(list);
    return TSAR_OK;
}
