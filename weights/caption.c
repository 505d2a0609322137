/* caption.c - LlamaGen's cleaning of captions (QUIRKS-t5, clean_caption): a table of rules, each of which replaces what a pattern matches, one
 * after the other, twice over. Exact for printable ASCII without '<' and '&', where neither HTML nor Unicode has a say; other text is refused. */
#include "text.h"

#include <string.h>

/* ------------------------------------------------------------------------------------------------------------- patterns */

/* A pattern is a row of items, tried in order with backtracking, longest first:
 *     x  %x   one character: itself; %a letter, %d digit, %D none, %w letter, digit or _, %s blank, %S none, %. %- and so on themselves
 *     [xyz]   one of these, %a to %S among them
 *     ? * +   behind a character: 0 or 1, any number, at least one; {m,n}: m to n
 *     (a|b)   one of the words; ? behind it: or nothing
 *     %b      a border between word and other characters;  %!x  not followed by x;  ^ $  the ends of the text
 * The text is ASCII. */
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

/* ---------------------------------------------------------------------------------------------------------------- rules */

typedef struct {
    const char *pattern, *with; /* "%0": the match itself, and what follows it */
} rule;

/* Endings of site names and of files. */
#define SITE "[%a%d.%-]+[.](com|co|ru|net|org|edu|gov|it)[%w/%-]*%b/?%!@"
#define FILES "(png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)"

static const rule before[] = {
    { "%bhttps?:/{1,3}", "" }, /* with the next three: addresses, in one sweep */
    { "%bhttps?:[%a%d%%]", "" },
    { "%b" SITE, "" },
    { NULL, NULL },
    { "%bwww:/{1,3}", "" },
    { "%bwww:[%a%d%%]", "" },
    { "%b" SITE, "" },
    { NULL, NULL },
    { "@%w+%b", "" }, /* @name */
    { NULL, NULL },
    { "%-+", "-" },
    { NULL, NULL },
    { "`", "\"" },
    { NULL, NULL },
    { "%d{1,3}[.]%d{1,3}[.]%d{1,3}[.]%d{1,3}", " " }, /* numbers of machines */
    { NULL, NULL },
    { "%d:%d%d%s+$", "" },
    { NULL, NULL },
    { "\\n", " " }, /* a backslash and an n */
    { NULL, NULL },
    { "#%d{1,3}%b", "" },
    { NULL, NULL },
    { "#%d{5,0}%b", "" },
    { NULL, NULL },
    { "%b%d{6,0}%b", "" },
    { NULL, NULL },
    { "%S+[.]" FILES, "" },
    { NULL, NULL },
    { "[\"']{2,0}", "\"" },
    { NULL, NULL },
    { "[.]{2,0}", " " },
    { NULL, NULL },
    { "[#&@~)(%][}{|\\/*]+", " " },
    { NULL, NULL },
    { "%s+[.]%s+", " " },
    { NULL, NULL },
};

/* Words joined by more than three of these are taken apart. */
static const rule apart[] = { { "[%-_]", " " }, { NULL, NULL } };

static const rule after[] = {
    { "%b%a{1,3}%d{3,15}%b", "" }, /* jc6640, jc6640vc, 6640vc231 */
    { NULL, NULL },
    { "%b%a+%d+%a+%b", "" },
    { NULL, NULL },
    { "%b%d+%a+%d+%b", "" },
    { NULL, NULL },
    { "worldwide%s+free%s+shipping", "" }, /* in one sweep: the longer beginnings first */
    { "worldwide%s+shipping", "" },
    { "free%s+shipping", "" },
    { "shipping", "" },
    { NULL, NULL },
    { "(free%s)?download(%sfree)?", "" },
    { NULL, NULL },
    { "%bclick%b%s(for|on)%s%w+", "" },
    { NULL, NULL },
    { "%b" FILES "(%simages|%simage)?", "" },
    { NULL, NULL },
    { "%bpage%s+%d+%b", "" },
    { NULL, NULL },
    { "%b%d*%a+%d+%a+%d+[%a%d]*%b", " " },
    { NULL, NULL },
    { "%b%d+[.]?%d*x%d+[.]?%d*%b", "" }, /* 16x9 */
    { NULL, NULL },
    { "%b%s+:%s+", ": " },
    { NULL, NULL },
    { "%D[,./]%b", "%0 " }, /* a,b */
    { NULL, NULL },
    { "%s+", " " },
    { NULL, NULL },
};

static const rule ends[] = {
    { "^['_,%-:;]", "" }, { NULL, NULL }, { "['_,%-:+]$", "" }, { NULL, NULL }, { "^[.]%S+$", "" }, { NULL, NULL },
};

/* One sweep over the text: at each place the rules from `r` to the next end are tried in order. out has room for what comes out. */
static size_t sweep(const rule *r, const char *in, size_t n, char *out)
{
    const text t = { in, in + n };
    size_t used = 0;
    for (const char *at = in; at < t.end;) {
        const rule *hit = r;
        const char *end = NULL;
        while (hit->pattern && !(end = match(&t, hit->pattern, at))) hit++;
        if (!hit->pattern) {
            out[used++] = *at++;
            continue;
        }
        const char *with = hit->with;
        if (strncmp(with, "%0", 2) == 0) {
            memcpy(out + used, at, (size_t)(end - at));
            used += (size_t)(end - at);
            with += 2;
        }
        for (; *with; with++) out[used++] = *with;
        at = end;
    }
    return used;
}

/* All sweeps of a table, the text going to and fro between two rooms; it ends in `here`. */
static size_t apply(const rule *rules, size_t n_rules, char *here, size_t n, char *there)
{
    for (size_t i = 0; i < n_rules; i++) {
        n = sweep(rules + i, here, n, there);
        memcpy(here, there, n);
        while (rules[i].pattern) i++;
    }
    return n;
}

#define APPLY(rules, here, n, there) apply(rules, sizeof(rules) / sizeof *(rules), here, n, there)

static size_t strip(char *here, size_t n)
{
    size_t first = 0;
    while (n > 0 && here[n - 1] == ' ') n--;
    while (first < n && here[first] == ' ') first++;
    memmove(here, here + first, n - first);
    return n - first;
}

static int hex_digit(char c) { return is_digit(c) ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1; }

/* '+' is a blank, %41 is A; then what is left must be ASCII that the rules are exact for. */
static tsar_status unquote(char *here, size_t *n, tsar_error *err)
{
    size_t used = 0;
    for (size_t i = 0; i < *n; i++) {
        const int code = here[i] == '%' && i + 2 < *n && hex_digit(here[i + 1]) >= 0 && hex_digit(here[i + 2]) >= 0;
        const unsigned char c = (unsigned char)(code ? 16 * hex_digit(here[i + 1]) + hex_digit(here[i + 2]) : here[i] == '+' ? ' ' : here[i]);
        if (c < 0x20 || c > 0x7E || c == '<' || c == '&') {
            size_t length;
            const uint32_t whole = code ? c : tsar_char_at(here + i, *n - i, &length);
            return tsar_fail(err, TSAR_INPUT, "the prompt has the character U+%04X at byte %zu, and LlamaGen's cleaning of captions is followed for printable "
                             "ASCII without < and & alone (--raw-prompt takes the prompt as it is)", (unsigned)whole, i);
        }
        here[used++] = (char)c;
        if (code) i += 2;
    }
    *n = used;
    return TSAR_OK;
}

static tsar_status clean_once(char *here, size_t *n, char *there, tsar_error *err)
{
    size_t joints = 0;
    tsar_status status = unquote(here, n, err);
    if (status != TSAR_OK) return status;
    *n = strip(here, *n);
    for (size_t i = 0; i < *n; i++)
        if (here[i] >= 'A' && here[i] <= 'Z') here[i] = (char)(here[i] - 'A' + 'a');
    *n = APPLY(before, here, *n, there);
    for (size_t i = 0; i < *n; i++) joints += here[i] == '-' || here[i] == '_';
    if (joints > 3) *n = APPLY(apart, here, *n, there);
    *n = strip(here, *n);
    *n = APPLY(after, here, *n, there);
    const int quoted = *n > 2 && (here[0] == '"' || here[0] == '\'') && (here[*n - 1] == '"' || here[*n - 1] == '\'');
    if (quoted) memmove(here, here + 1, *n -= 2);
    *n = APPLY(ends, here, *n, there);
    *n = strip(here, *n);
    return status;
}

tsar_status tsar_caption_clean(const char *prompt, size_t bytes, char **clean, size_t *n, tsar_error *err)
{
    const size_t room = tsar_product(bytes, 4) + 16; /* twice, "a,b" grows by half at most */
    char *there = tsar_alloc(room, 1, "the prompt", err);
    *clean = there ? tsar_alloc(room, 1, "the prompt", err) : NULL;
    *n = bytes;
    tsar_status status = *clean ? TSAR_OK : TSAR_ROOM;
    if (status == TSAR_OK && bytes) memcpy(*clean, prompt, bytes);
    for (int pass = 0; pass < 2 && status == TSAR_OK; pass++) status = clean_once(*clean, n, there, err);
    tsar_free(there);
    if (status != TSAR_OK) {
        tsar_free(*clean);
        *clean = NULL;
    }
    return status;
}
