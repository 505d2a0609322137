/* split.c - text into pieces, by the published tokenizers' splitting rules (QUIRKS-bpe, B to D): each rule is a list of steps, each step a
 * pattern whose matches become pieces of their own, and so do the gaps between them. */
#include "text.h"

#include <stdlib.h>
#include <string.h>

/* The stretch that a pattern sees: one piece of the step before. Places are bytes. */
typedef struct {
    const char *text;
    size_t end;
} stretch;

/* Bytes that the pattern takes at `at` < end; 0 if it does not match there. */
typedef size_t (*pattern)(const stretch *p, size_t at);

/* ------------------------------------------------------------------------------------------------------ parts of patterns */

static uint32_t char_at(const stretch *p, size_t at, size_t *length) { return tsar_char_at(p->text + at, p->end - at, length); }

/* Bytes of the character at `at` if it is of the class, else 0 (at the end, too). */
static size_t one_of(const stretch *p, size_t at, tsar_class which)
{
    size_t length;
    return at < p->end && tsar_char_is(which, char_at(p, at, &length)) ? length : 0;
}

/* Bytes of the longest run of the class from `at` on. */
static size_t run_of(const stretch *p, size_t at, tsar_class which)
{
    size_t end = at;
    for (size_t n; (n = one_of(p, end, which)) > 0;) end += n;
    return end - at;
}

static size_t literal(const stretch *p, size_t at, const char *word)
{
    const size_t n = strlen(word);
    return p->end - at >= n && memcmp(p->text + at, word, n) == 0 ? n : 0;
}

/* An optional first character of `first` bytes, then a run of the class: first? class+ */
static size_t led_run(const stretch *p, size_t at, size_t first, tsar_class which)
{
    const size_t led = first ? run_of(p, at + first, which) : 0;
    return led ? first + led : run_of(p, at, which);
}

static size_t line_end(const stretch *p, size_t at) { return at < p->end && (p->text[at] == '\r' || p->text[at] == '\n'); }

/* [^\s\p{L}\p{N}] */
static size_t other(const stretch *p, size_t at)
{
    size_t length;
    if (at >= p->end) return 0;
    const uint32_t code = char_at(p, at, &length);
    return tsar_char_is(TSAR_BLANK, code) || tsar_char_is(TSAR_LETTER, code) || tsar_char_is(TSAR_NUMBER, code) ? 0 : length;
}

/*  ?[^\s\p{L}\p{N}]+ */
static size_t others(const stretch *p, size_t at)
{
    size_t end = at + literal(p, at, " ");
    if (!other(p, end)) return 0;
    for (size_t n; (n = other(p, end)) > 0;) end += n;
    return end - at;
}

/* \s+(?!\S)|\s+: a run of blanks, but for its last one where something else follows and it is not the only one. */
static size_t blanks(const stretch *p, size_t at)
{
    size_t end = at, last = at;
    for (size_t n; (n = one_of(p, end, TSAR_BLANK)) > 0; end += n) last = end;
    return end < p->end && last > at ? last - at : end - at;
}

/* ---------------------------------------------------------------------------------------------------------- the patterns */

/* <sentinel:[0-9]+> */
static size_t sentinel(const stretch *p, size_t at)
{
    size_t end = at + literal(p, at, "<sentinel:");
    const size_t digits = end;
    if (end == at) return 0;
    while (end < p->end && p->text[end] >= '0' && p->text[end] <= '9') end++;
    return end > digits && end < p->end && p->text[end] == '>' ? end + 1 - at : 0;
}

/* (IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z */
static size_t image_name(const stretch *p, size_t at)
{
    size_t end = at + literal(p, at, "IMGIMG");
    const size_t letters = end;
    if (end == at) return 0;
    while (end < p->end && end < letters + 4 && p->text[end] >= 'A' && p->text[end] <= 'I') end++;
    return end > letters && end < p->end && p->text[end] == 'Z' ? end + 1 - at : 0;
}

/* ([\t\n]|    |  ) */
static size_t layout(const stretch *p, size_t at)
{
    if (p->text[at] == '\t' || p->text[at] == '\n') return 1;
    const size_t four = literal(p, at, "    ");
    return four ? four : literal(p, at, "  ");
}

static size_t digit(const stretch *p, size_t at) { return one_of(p, at, TSAR_DIGIT); }
static size_t number(const stretch *p, size_t at) { return one_of(p, at, TSAR_NUMBER); }
static size_t old_sign(const stretch *p, size_t at) { return one_of(p, at, TSAR_OLD_PUNCTUATION); }

/* [\p{P}!-/:-@\[-`{-~] */
static size_t sign(const stretch *p, size_t at)
{
    const char c = p->text[at];
    return (c >= '!' && c <= '/') || (c >= ':' && c <= '@') || (c >= '[' && c <= '`') || (c >= '{' && c <= '~') ? 1 : one_of(p, at, TSAR_PUNCTUATION);
}

/* 's|'t|'re|'ve|'m|'ll|'d; in Qwen's pattern without regard to case, of which U+017F, the long s, is one. */
static size_t contraction(const stretch *p, size_t at, int any_case)
{
    static const char *const endings[] = { "s", "t", "re", "ve", "m", "ll", "d" };
    if (p->text[at] != '\'') return 0;
    for (size_t i = 0; i < sizeof endings / sizeof *endings; i++) {
        const size_t n = strlen(endings[i]);
        size_t same = 0;
        while (same < n && at + 1 + same < p->end && (p->text[at + 1 + same] | (any_case ? 0x20 : 0)) == endings[i][same]) same++;
        if (same == n) return 1 + n;
    }
    return any_case && literal(p, at + 1, "\xC5\xBF") ? 3 : 0;
}

/* GPT-2:  's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+ */
static size_t gpt2(const stretch *p, size_t at)
{
    const size_t blank = literal(p, at, " ");
    size_t n = contraction(p, at, 0);
    if (n == 0) n = led_run(p, at, blank, TSAR_LETTER);
    if (n == 0) n = led_run(p, at, blank, TSAR_NUMBER);
    if (n == 0) n = others(p, at);
    return n ? n : blanks(p, at);
}

/* \s*[\r\n]+ : to the last end of a line in a run of blanks. */
static size_t lines(const stretch *p, size_t at)
{
    size_t end = at, last = at;
    for (size_t n; (n = one_of(p, end, TSAR_BLANK)) > 0;) {
        const int ends = line_end(p, end) != 0;
        end += n;
        if (ends) last = end;
    }
    return last - at;
}

/* Qwen 2:  (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+ */
static size_t qwen2(const stretch *p, size_t at)
{
    size_t length;
    const uint32_t code = char_at(p, at, &length);
    const int leads = !line_end(p, at) && !tsar_char_is(TSAR_LETTER, code) && !tsar_char_is(TSAR_NUMBER, code);
    size_t n = contraction(p, at, 1);
    if (n == 0) n = led_run(p, at, leads ? length : 0, TSAR_LETTER);
    if (n == 0) n = number(p, at);
    if (n == 0) {
        n = others(p, at);
        while (n > 0 && line_end(p, at + n)) n++;
    }
    if (n == 0) n = lines(p, at);
    return n ? n : blanks(p, at);
}

/* \s?[...]+ of DeepSeek-LLM; and its \s+$, [\r\n] and [...]+ */
static size_t deepseek_word(const stretch *p, size_t at) { return led_run(p, at, one_of(p, at, TSAR_BLANK), TSAR_DEEPSEEK_LETTER); }
static size_t deepseek_signs(const stretch *p, size_t at) { return led_run(p, at, one_of(p, at, TSAR_BLANK), TSAR_DEEPSEEK_SIGN); }
static size_t deepseek_cjk(const stretch *p, size_t at) { return run_of(p, at, TSAR_DEEPSEEK_CJK); }

static size_t last_blanks(const stretch *p, size_t at)
{
    const size_t n = run_of(p, at, TSAR_BLANK);
    return at + n == p->end ? n : 0;
}

/* ------------------------------------------------------------------------------------------------------------- the rules */

/* A step of a rule: the pattern as code, and as a tokenizer.json spells it; NULL where it is no pattern there. The classes of DeepSeek-LLM are
 * spelled as %s: their ranges are compared. */
typedef struct {
    pattern matches; /* NULL: none (bytes) */
    tsar_step_kind kind;
    const char *spelled;
    tsar_class listed;
} rule_step;

enum { MAX_RULE_STEPS = 7 };
#define GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
#define QWEN2 "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define PATTERN(function, text)                                                                                                                                \
    {                                                                                                                                                          \
        function, TSAR_STEP_PATTERN, text, TSAR_LETTER                                                                                                         \
    }
#define LISTED(function, text, which)                                                                                                                          \
    {                                                                                                                                                          \
        function, TSAR_STEP_PATTERN, text, which                                                                                                               \
    }

static const struct {
    tsar_split split;
    size_t n;
    rule_step steps[MAX_RULE_STEPS];
} rules[] = {
    { TSAR_SPLIT_CHAMELEON,
      6,
      { PATTERN(sentinel, "<sentinel:[0-9]+>"),
        PATTERN(image_name, "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z"),
        PATTERN(layout, "([\\t\\n]|    |  )"),
        { digit, TSAR_STEP_DIGITS, NULL, TSAR_LETTER },
        { old_sign, TSAR_STEP_PUNCTUATION, NULL, TSAR_LETTER },
        { gpt2, TSAR_STEP_GPT2, NULL, TSAR_LETTER } } },
    { TSAR_SPLIT_CHAMELEON_SPLITS,
      7,
      { PATTERN(sentinel, "<sentinel:[0-9]+>"),
        PATTERN(image_name, "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z"),
        PATTERN(layout, "([\\t\\n]|    |  )"),
        PATTERN(number, "\\p{N}"),
        PATTERN(sign, "[\\p{P}!-/:-@\\[-`{-~]"),
        PATTERN(gpt2, GPT2),
        { NULL, TSAR_STEP_BYTES, NULL, TSAR_LETTER } } },
    { TSAR_SPLIT_DEEPSEEK_LLM,
      7,
      { PATTERN(line_end, "[\r\n]"),
        LISTED(deepseek_word, "\\s?[%s]+", TSAR_DEEPSEEK_LETTER),
        LISTED(deepseek_signs, "\\s?[%s]+", TSAR_DEEPSEEK_SIGN),
        PATTERN(last_blanks, "\\s+$"),
        LISTED(deepseek_cjk, "[%s]+", TSAR_DEEPSEEK_CJK),
        { digit, TSAR_STEP_DIGITS, NULL, TSAR_LETTER },
        { NULL, TSAR_STEP_BYTES, NULL, TSAR_LETTER } } },
    { TSAR_SPLIT_QWEN2, 2, { PATTERN(qwen2, QWEN2), { NULL, TSAR_STEP_BYTES, NULL, TSAR_LETTER } } },
};
enum { RULES = sizeof rules / sizeof *rules };

/* One step over all pieces: cut is refined. */
static void split_step(unsigned char *cut, const char *text, size_t bytes, pattern matches)
{
    for (size_t start = 0, end; start < bytes; start = end) {
        for (end = start + 1; !cut[end]; end++) continue;
        const stretch p = { text, end };
        for (size_t at = start, length; at < end; at += length) {
            const size_t n = matches(&p, at);
            length = n;
            if (n == 0)
                (void)char_at(&p, at, &length);
            else
                cut[at] = cut[at + n] = 1;
        }
    }
}

void tsar_split_text(unsigned char *cut, const char *text, size_t bytes, tsar_split split)
{
    cut[0] = cut[bytes] = 1;
    for (size_t i = 0; i < RULES; i++)
        for (size_t k = 0; rules[i].split == split && k < rules[i].n; k++)
            if (rules[i].steps[k].matches) split_step(cut, text, bytes, rules[i].steps[k].matches);
}

/* ---------------------------------------------------------------------------------------------------------- recognition */

enum { MAX_RANGES = 256 };

/* The ranges that a pattern's brackets list, "A-Zx" and so on, as they stand; returns how many, or 0 where they are more than MAX_RANGES. */
static size_t list_ranges(uint32_t (*ranges)[2], const char *text, size_t n)
{
    size_t count = 0, length;
    for (size_t at = 0; at < n; count++) {
        if (count == MAX_RANGES) return 0;
        ranges[count][0] = ranges[count][1] = tsar_char_at(text + at, n - at, &length);
        at += length;
        if (n - at > 1 && text[at] == '-') {
            ranges[count][1] = tsar_char_at(text + at + 1, n - at - 1, &length);
            at += 1 + length;
        }
    }
    return count;
}

static int by_first(const void *a, const void *b)
{
    const uint32_t *x = a, *y = b;
    return x[0] < y[0] ? -1 : x[0] > y[0];
}

/* Whether text of n bytes lists the characters of a class, in whatever order and cut. */
static int lists_class(const char *text, size_t n, tsar_class which)
{
    uint32_t ranges[MAX_RANGES][2];
    size_t count, merged = 0;
    const uint32_t(*wanted)[2] = tsar_class_ranges(which, &count);
    const size_t listed = list_ranges(ranges, text, n);
    qsort(ranges, listed, sizeof *ranges, by_first);
    for (size_t i = 0; i < listed; i++) {
        if (merged == 0 || ranges[i][0] > ranges[merged - 1][1] + 1) {
            memmove(ranges[merged++], ranges[i], sizeof *ranges);
        } else if (ranges[i][1] > ranges[merged - 1][1]) {
            ranges[merged - 1][1] = ranges[i][1];
        }
    }
    return merged == count && memcmp(ranges, wanted, count * sizeof *ranges) == 0;
}

static int same_step(const rule_step *ours, const tsar_step *theirs)
{
    if (ours->kind != theirs->kind) return 0;
    if (!ours->spelled) return 1;
    const char *list = strstr(ours->spelled, "%s");
    if (!list) return strcmp(ours->spelled, theirs->pattern) == 0;
    const size_t before = (size_t)(list - ours->spelled), after = strlen(list + 2), n = strlen(theirs->pattern);
    return n > before + after && memcmp(theirs->pattern, ours->spelled, before) == 0 && strcmp(theirs->pattern + n - after, list + 2) == 0 &&
           lists_class(theirs->pattern + before, n - before - after, ours->listed);
}

int tsar_split_recognise(tsar_split *split, const tsar_step *steps, size_t n, size_t *odd)
{
    *odd = 0;
    for (size_t i = 0; i < RULES; i++) {
        size_t same = 0;
        while (same < n && same < rules[i].n && same_step(&rules[i].steps[same], &steps[same])) same++;
        if (same == n && same == rules[i].n) {
            *split = rules[i].split;
            return 1;
        }
        if (same > *odd) *odd = same;
    }
    return 0;
}
