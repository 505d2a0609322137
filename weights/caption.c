/* caption.c - LlamaGen's cleaning of captions (QUIRKS-t5, clean_caption): a table of rules, each of which replaces what a pattern matches, one
 * after the other, twice over. Exact for printable ASCII without '<' and '&', where neither HTML nor Unicode has a say; other text is refused. */
#include "text.h"

#include <string.h>

/* ---------------------------------------------------------------------------------------------------------------- rules */

typedef struct {
    const char *pattern, *with; /* "%0": the match itself, and what follows it */
    int joined;                 /* the next rule is tried in the same sweep, after this one */
} rule;

/* Endings of site names and of files. */
#define SITE "[%a%d.%-]+[.](com|co|ru|net|org|edu|gov|it)[%w/%-]*%b/?%!@"
#define FILES "(png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)"

static const rule before[] = {
    { "%bhttps?:/{1,3}", "", 1 }, /* with the next three: addresses, in one sweep */
    { "%bhttps?:[%a%d%%]", "", 1 },
    { "%b" SITE, "", 0 },
    { "%bwww:/{1,3}", "", 1 },
    { "%bwww:[%a%d%%]", "", 1 },
    { "%b" SITE, "", 0 },
    { "@%w+%b", "", 0 }, /* @name */
    { "%-+", "-", 0 },
    { "`", "\"", 0 },
    { "%d{1,3}[.]%d{1,3}[.]%d{1,3}[.]%d{1,3}", " ", 0 }, /* numbers of machines */
    { "%d:%d%d%s+$", "", 0 },
    { "\\n", " ", 0 }, /* a backslash and an n */
    { "#%d{1,3}%b", "", 0 },
    { "#%d{5,0}%b", "", 0 },
    { "%b%d{6,0}%b", "", 0 },
    { "%S+[.]" FILES, "", 0 },
    { "[\"']{2,0}", "\"", 0 },
    { "[.]{2,0}", " ", 0 },
    { "[#&@~)(%][}{|\\/*]+", " ", 0 },
    { "%s+[.]%s+", " ", 0 },
};

/* Words joined by more than three of these are taken apart. */
static const rule apart[] = { { "[%-_]", " ", 0 } };

static const rule after[] = {
    { "%b%a{1,3}%d{3,15}%b", "", 0 }, /* jc6640, jc6640vc, 6640vc231 */
    { "%b%a+%d+%a+%b", "", 0 },
    { "%b%d+%a+%d+%b", "", 0 },
    { "worldwide%s+free%s+shipping", "", 1 }, /* in one sweep: the longer beginnings first */
    { "worldwide%s+shipping", "", 1 },
    { "free%s+shipping", "", 1 },
    { "shipping", "", 0 },
    { "(free%s)?download(%sfree)?", "", 0 },
    { "%bclick%b%s(for|on)%s%w+", "", 0 },
    { "%b" FILES "(%simages|%simage)?", "", 0 },
    { "%bpage%s+%d+%b", "", 0 },
    { "%b%d*%a+%d+%a+%d+[%a%d]*%b", " ", 0 },
    { "%b%d+[.]?%d*x%d+[.]?%d*%b", "", 0 }, /* 16x9 */
    { "%b%s+:%s+", ": ", 0 },
    { "%D[,./]%b", "%0 ", 0 }, /* a,b */
    { "%s+", " ", 0 },
};

static const rule ends[] = { { "^['_,%-:;]", "", 0 }, { "['_,%-:+]$", "", 0 }, { "^[.]%S+$", "", 0 } };

/* One sweep over the text: at each place `r` and the rules joined to it are tried in order. out has room for what comes out. */
static size_t sweep(const rule *r, const char *in, size_t n, char *out)
{
    const char *stop = in + n;
    size_t used = 0;
    for (const char *at = in; at < stop;) {
        const rule *hit = r;
        const char *end = NULL;
        while (!(end = tsar_pattern_match(in, stop, hit->pattern, at)) && hit->joined) hit++;
        if (!end) {
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
        while (rules[i].joined) i++;
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

static int hex_digit(char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1; }

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
            return tsar_fail(err, TSAR_INPUT,
                             "the prompt has the character U+%04X at byte %zu, and LlamaGen's cleaning of captions is followed for printable "
                             "ASCII without < and & alone (--raw-prompt takes the prompt as it is)",
                             (unsigned)whole, i);
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
