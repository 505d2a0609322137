/* pattern.c - small patterns with backtracking, for the rules that clean captions. */
#include "text.h"

#include <string.h>

typedef struct {
    const char *start, *end;
} text;

static int is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
static int is_digit(char c) { return c >= '0' && c <= '9'; }
static int is_word(char c) { return is_letter(c) || is_digit(c) || c == '_'; }

/* Whether c is of %which. */
static int is_of(char which, char c)
{
    switch (which) {
    case 'a': return is_letter(c);
    case 'd': return is_digit(c);
    case 'D': return !is_digit(c);
    case 'w': return is_word(c);
    case 's': return c == ' ';
    case 'S': return c != ' ';
    default: return c == which;
    }
}

/* The end of the one-character item at p. */
static const char *item_end(const char *p)
{
    if (*p == '%') return p + 2;
    if (*p != '[') return p + 1;
    for (p++; *p != ']'; p++) p += *p == '%';
    return p + 1;
}

static int item_takes(const char *p, char c)
{
    if (*p == '%') return is_of(p[1], c);
    if (*p != '[') return *p == c;
    for (p++; *p != ']'; p++) {
        if (*p == '%' ? is_of(p[1], c) : *p == c) return 1;
        p += *p == '%';
    }
    return 0;
}

static int at_border(const text *t, const char *at)
{
    const int before = at > t->start && is_word(at[-1]), behind = at < t->end && is_word(*at);
    return before != behind;
}

/* How often an item may stand: the quantifier at p; returns its end. */
static const char *read_times(const char *p, size_t *least, size_t *most)
{
    *least = *p == '?' || *p == '*' ? 0 : 1;
    *most = *p == '*' || *p == '+' ? SIZE_MAX : 1;
    if (*p == '?' || *p == '*' || *p == '+') return p + 1;
    if (*p != '{') return p;
    *least = *most = 0;
    for (p++; *p != ','; p++) *least = 10 * *least + (size_t)(*p - '0');
    for (p++; *p != '}'; p++) *most = 10 * *most + (size_t)(*p - '0');
    if (*most == 0) *most = SIZE_MAX;
    return p + 1;
}

static const char *match(const text *t, const char *p, const char *at);

/* (a|b)rest and (a|b)?rest */
static const char *match_words(const text *t, const char *p, const char *at)
{
    const char *close = strchr(p, ')');
    const int optional = close[1] == '?';
    for (const char *word = p + 1, *end; word < close; word = end + 1) {
        end = word;
        const char *to = at;
        int same = 1;
        for (; end < close && *end != '|'; end = item_end(end)) same = same && to < t->end && item_takes(end, *to++);
        const char *found = same ? match(t, close + 1 + optional, to) : NULL;
        if (found) return found;
    }
    return optional ? match(t, close + 2, at) : NULL;
}

/* Where the match of p that begins at `at` ends; NULL if there is none. Recursion is no deeper than the pattern is long. */
static const char *match(const text *t, const char *p, const char *at)
{
    size_t least, most, taken = 0;
    if (!*p) return at;
    if (*p == '(') return match_words(t, p, at);
    if (*p == '^') return at == t->start ? match(t, p + 1, at) : NULL;
    if (*p == '$' && !p[1]) return at == t->end ? at : NULL;
    if (p[0] == '%' && p[1] == 'b') return at_border(t, at) ? match(t, p + 2, at) : NULL;
    if (p[0] == '%' && p[1] == '!') return at == t->end || *at != p[2] ? match(t, p + 3, at) : NULL;
    const char *rest = read_times(item_end(p), &least, &most);
    while (taken < most && at + taken < t->end && item_takes(p, at[taken])) taken++;
    for (size_t n = taken + 1; n-- > least;) {
        const char *found = match(t, rest, at + n);
        if (found) return found;
    }
    return NULL;
}

const char *tsar_pattern_match(const char *start, const char *end, const char *pattern, const char *at)
{
    const text t = { start, end };
    return match(&t, pattern, at);
}
