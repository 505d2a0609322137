/* Tests of text (SPEC 11): byte-pair tokenizers, SentencePiece and the cleaning of captions against the golden files of the reference libraries
 * (tests/vectors/bpe, tests/vectors/t5), templates, hostile files, refusals, speed. */
#include "../weights/files/files.h"
#include "../weights/text.h"
#include "test.h"

#include <stdlib.h>
#include <time.h>

#define BPE "tests/vectors/bpe/"
#define T5_FOLDER "tests/vectors/t5/"

/* ------------------------------------------------------------------------------------------------------------- golden files */

static char *read_whole(const char *path, size_t *bytes)
{
    FILE *stream = fopen(path, "rb");
    char *text = NULL;
    *bytes = 0;
    if (stream && fseek(stream, 0, SEEK_END) == 0) {
        *bytes = (size_t)ftell(stream);
        rewind(stream);
        text = malloc(*bytes + 1);
        if (text && fread(text, 1, *bytes, stream) != *bytes) *bytes = 0;
        if (text) text[*bytes] = 0;
    }
    if (stream) fclose(stream);
    return text;
}

static int hex(char c) { return c <= '9' ? c - '0' : c - 'a' + 10; }

/* One line "hex TAB ids" of a golden file: the ids of the text are those, and for a published tokenizer they stand for the text. */
static void check_line(const tsar_tokenizer *t, char *line, const char *name, int back)
{
    tsar_error err = { "" };
    char *tab = strchr(line, '\t'), *text = NULL;
    const size_t n = tab && *line != '-' ? (size_t)(tab - line) / 2 : 0;
    int64_t *ids = NULL;
    size_t n_ids = 0, expected = 0, bytes = 0;
    if (!CHECK(tab != NULL, "%s: a line without ids", name)) return;
    char *in = malloc(n + 1); /* exactly as long as the text, so that reading beyond it is seen */
    for (size_t i = 0; in && i < n; i++) in[i] = (char)(hex(line[2 * i]) * 16 + hex(line[2 * i + 1]));
    const tsar_status status = t->spiece ? tsar_spiece_encode(t->spiece, in, n, &ids, &n_ids, &err) : tsar_bpe_encode(&t->bpe, in, n, &ids, &n_ids, &err);
    int same = status == TSAR_OK;
    for (char *at = tab + 1, *end; same; at = end) {
        const long id = strtol(at, &end, 10);
        if (end == at) break;
        same = expected < n_ids && ids[expected++] == id;
    }
    CHECK(same && expected == n_ids, "%s: %.80s %s", name, line, err.text);
    if (same && back && CHECK(tsar_bpe_decode(&t->bpe, ids, n_ids, &text, &bytes, &err) == TSAR_OK, "%s: %s", name, err.text))
        CHECK(bytes == n && memcmp(text, in, n) == 0, "%s: %.80s and back", name, line);
    tsar_free(ids);
    tsar_free(text);
    free(in);
}

static void check_golden(const char *tokenizer, const char *golden, int back)
{
    tsar_error err = { "" };
    tsar_tokenizer t;
    size_t bytes;
    char *lines = read_whole(golden, &bytes);
    if (!CHECK(lines != NULL && tsar_tokenizer_open(&t, tokenizer, &err) == TSAR_OK, "%s: %s", tokenizer, err.text)) {
        free(lines);
        return;
    }
    for (char *line = lines, *end; *line; line = end + 1) {
        end = strchr(line, '\n');
        *end = 0;
        check_line(&t, line, golden, back);
    }
    tsar_tokenizer_close(&t);
    free(lines);
}

static void test_golden(void)
{
    check_golden(BPE "tok/chameleon.json", BPE "chameleon.tsv", 1);
    check_golden(BPE "tok/chameleon_splits.json", BPE "chameleon_splits.tsv", 1);
    check_golden(BPE "tok/deepseek.json", BPE "deepseek.tsv", 1);
    check_golden(BPE "tok/deepseek_pairs.json", BPE "deepseek.tsv", 1);
    check_golden(BPE "tok/edge.json", BPE "edge.tsv", 0); /* two names for one id */
    check_golden(BPE "tok/edge_ignore_merges.json", BPE "edge_ignore_merges.tsv", 0);
    check_golden(BPE "tok/emu3/emu3.tiktoken", BPE "emu3.tsv", 0); /* NFC */
    check_golden(T5_FOLDER "t5like.model", T5_FOLDER "t5like.tsv", 0);
    check_golden(T5_FOLDER "cf_bytes.model", T5_FOLDER "cf_bytes.tsv", 0);
    check_golden(T5_FOLDER "ident.model", T5_FOLDER "ident.tsv", 0);
}

/* ------------------------------------------------------------------------------------------------------------- templates */

/* A list of numbers. */
static size_t read_list(tsar_json *json, int64_t *values, size_t room)
{
    size_t n = 0;
    int more = 1;
    CHECK(tsar_json_list(json) == TSAR_OK, "a list");
    while (tsar_json_item(json, &more) == TSAR_OK && more && n < room) {
        uint64_t value = 0;
        CHECK(tsar_json_u64(json, &value) == TSAR_OK, "a number");
        values[n++] = (int64_t)value;
    }
    return n;
}

typedef struct {
    const char *model, *prompt, *tokenizer;
    uint64_t width, height, grid_h, grid_w;
    int64_t ids[400], then[8];
    size_t n_ids, n_then;
} template_case;

static int read_case(tsar_json *json, template_case *c)
{
    const char *key;
    tsar_status status = tsar_json_object(json);
    memset(c, 0, sizeof *c);
    while (status == TSAR_OK) {
        status = tsar_json_member(json, &key, NULL);
        if (status != TSAR_OK || !key) break;
        if (strcmp(key, "model") == 0)
            status = tsar_json_string(json, &c->model, NULL);
        else if (strcmp(key, "prompt") == 0)
            status = tsar_json_string(json, &c->prompt, NULL);
        else if (strcmp(key, "tokenizer") == 0)
            status = tsar_json_string(json, &c->tokenizer, NULL);
        else if (strcmp(key, "width") == 0)
            status = tsar_json_u64(json, &c->width);
        else if (strcmp(key, "height") == 0)
            status = tsar_json_u64(json, &c->height);
        else if (strcmp(key, "grid_h") == 0)
            status = tsar_json_u64(json, &c->grid_h);
        else if (strcmp(key, "grid_w") == 0)
            status = tsar_json_u64(json, &c->grid_w);
        else if (strcmp(key, "ids") == 0)
            c->n_ids = read_list(json, c->ids, 400);
        else if (strcmp(key, "then") == 0)
            c->n_then = read_list(json, c->then, 8);
        else
            status = tsar_json_skip(json);
    }
    return status == TSAR_OK;
}

/* The id of a text that is one token; -1 if it is not. */
static int64_t added_token(const tsar_bpe *bpe, const char *text)
{
    int64_t *ids = NULL;
    size_t n = 0;
    const int one = tsar_bpe_encode(bpe, text, strlen(text), &ids, &n, NULL) == TSAR_OK && n == 1;
    const int64_t id = one ? ids[0] : -1;
    tsar_free(ids);
    return id;
}

static void check_case(const template_case *c)
{
    tsar_error err = { "" };
    char path[200];
    int64_t *ids = NULL;
    size_t n = 0;
    tsar_model model = { .config = { .bos = -1, .sep = -1, .boi = -1, .img = -1, .size_base = -1 } };
    tsar_config *k = &model.config;
    const int emu3 = strncmp(c->model, "emu3", 4) == 0, lumina = strcmp(c->model, "lumina") == 0;
    snprintf(path, sizeof path, BPE "%s%s", c->tokenizer, emu3 ? "emu3.tiktoken" : "");
    if (!CHECK(tsar_bpe_read(&model.bpe, path, &err) == TSAR_OK, "%s: %s", path, err.text)) return;
    k->text_template = emu3 ? TSAR_TEMPLATE_EMU3 : lumina ? TSAR_TEMPLATE_LUMINA : strstr(c->model, "Pro") ? TSAR_TEMPLATE_JANUS_PRO : TSAR_TEMPLATE_JANUS;
    k->bos = emu3 ? added_token(&model.bpe, "<|extra_203|>") : lumina ? 0 : c->ids[0];
    k->sep = 8710;
    k->boi = emu3 ? added_token(&model.bpe, "<|image start|>") : lumina ? 8197 : added_token(&model.bpe, "<begin_of_image>");
    k->img = added_token(&model.bpe, "<|image token|>");
    k->size_base = 8804;
    k->size_unit = 2;
    const int negative = strcmp(c->model, "emu3-negative") == 0;
    const char *text = negative ? tsar_negative_prompt : c->prompt;
    const tsar_sentence s = { .text = text,
                              .bytes = strlen(text),
                              .negative = negative,
                              .h = (size_t)(lumina ? c->height / 16 : c->grid_h),
                              .w = (size_t)(lumina ? c->width / 16 : c->grid_w) };
    CHECK(tsar_text_prefix(&model, &s, &ids, &n, &err) == TSAR_OK, "%s, %.60s: %s", c->model, text, err.text);
    CHECK(n == c->n_ids + c->n_then && memcmp(ids, c->ids, c->n_ids * sizeof *ids) == 0, "%s: ids of %.60s", c->model, text);
    CHECK(n < c->n_then || memcmp(ids + n - c->n_then, c->then, c->n_then * sizeof *ids) == 0, "%s: what follows %.60s", c->model, text);
    tsar_free(ids);
    if (lumina) {
        const tsar_sentence odd = { .text = "x", .bytes = 1, .h = 47, .w = 48 };
        CHECK(tsar_text_prefix(&model, &odd, &ids, &n, &err) == TSAR_INPUT && strstr(err.text, "47"), "a side that has no id: %s", err.text);
    }
    tsar_bpe_close(&model.bpe);
}

static void test_templates(void)
{
    tsar_error err = { "" };
    size_t bytes, cases = 0;
    int more = 1;
    char *text = read_whole(BPE "templates.json", &bytes);
    tsar_json json;
    static template_case c;
    if (!CHECK(text != NULL, "templates.json")) return;
    tsar_json_open(&json, text, bytes, "templates.json", "the file", "", &err);
    CHECK(tsar_json_list(&json) == TSAR_OK, "%s", err.text);
    while (tsar_json_item(&json, &more) == TSAR_OK && more && CHECK(read_case(&json, &c), "a case: %s", err.text)) {
        check_case(&c);
        cases++;
    }
    CHECK(cases == 44, "%d cases", (int)cases);
    free(text);
}

/* -------------------------------------------------------------------------------------------------------------- captions */

/* clean.json: what is printable ASCII without < and &, behind %XX too, is cleaned exactly; the rest is refused. */
static void test_captions(void)
{
    tsar_error err = { "" };
    size_t bytes, exact = 0, refused = 0, n, n_text = 0, n_clean = 0;
    int more = 1;
    char *json_text = read_whole(T5_FOLDER "clean.json", &bytes), *clean = NULL;
    const char *key, *text = "", *wanted = "";
    tsar_json json;
    if (!CHECK(json_text != NULL, "clean.json")) return;
    tsar_json_open(&json, json_text, bytes, "clean.json", "the file", "", &err);
    CHECK(tsar_json_object(&json) == TSAR_OK, "%s", err.text);
    while (tsar_json_member(&json, &key, NULL) == TSAR_OK && key) {
        if (strcmp(key, "cases") != 0) {
            CHECK(tsar_json_skip(&json) == TSAR_OK, "%s", err.text);
            continue;
        }
        CHECK(tsar_json_list(&json) == TSAR_OK, "%s", err.text);
        while (tsar_json_item(&json, &more) == TSAR_OK && more && tsar_json_object(&json) == TSAR_OK) {
            while (tsar_json_member(&json, &key, NULL) == TSAR_OK && key) {
                if (strcmp(key, "text") == 0)
                    CHECK(tsar_json_string(&json, &text, &n_text) == TSAR_OK, "%s", err.text);
                else if (strcmp(key, "clean") == 0)
                    CHECK(tsar_json_string(&json, &wanted, &n_clean) == TSAR_OK, "%s", err.text);
                else
                    CHECK(tsar_json_skip(&json) == TSAR_OK, "%s", err.text);
            }
            const tsar_status status = tsar_caption_clean(text, n_text, &clean, &n, &err);
            if (status == TSAR_OK) {
                CHECK(n == n_clean && memcmp(clean, wanted, n) == 0, "%.80s becomes %.*s instead of %.80s", text, (int)n, clean, wanted);
                exact++;
                tsar_free(clean);
            } else {
                CHECK(status == TSAR_INPUT && strstr(err.text, "U+") && strstr(err.text, "--raw-prompt"), "refused: %s", err.text);
                refused++;
            }
        }
    }
    CHECK(exact == 176 && exact + refused == 350, "%d of the texts are exact, %d refused", (int)exact, (int)refused);
    free(json_text);
}

/* ----------------------------------------------------------------------------------------------------- files that are wrong */

static void test_spiece_files(void)
{
    static const char *const names[] = { "bpe",
                                         "byte_piece_without_fallback",
                                         "charsmap_3_bytes",
                                         "charsmap_no_units",
                                         "charsmap_size",
                                         "charsmap_size_odd",
                                         "charsmap_unit_offset",
                                         "charsmap_unterminated",
                                         "charsmap_value",
                                         "duplicate_piece",
                                         "empty",
                                         "empty_piece",
                                         "group_wire_type",
                                         "inf_score",
                                         "length_overflow",
                                         "missing_byte_pieces",
                                         "nan_score",
                                         "no_pieces",
                                         "no_unk",
                                         "truncated",
                                         "two_unk",
                                         "varint" };
    tsar_error err = { "" };
    tsar_tokenizer t;
    char path[100];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(path, sizeof path, "tests/spiece/bad_%s.model", names[i]);
        CHECK(tsar_tokenizer_open(&t, path, &err) == TSAR_INPUT && strncmp(err.text, path, strlen(path)) == 0, "%s: %s", path, err.text);
    }
    static const char *const good[] = { "ok_charsmap", "ok_plain", "ok_unknown_fields" };
    for (size_t i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "tests/spiece/%s.model", good[i]);
        if (!CHECK(tsar_tokenizer_open(&t, path, &err) == TSAR_OK, "%s: %s", path, err.text)) continue;
        int64_t *a = NULL, *b = NULL;
        size_t n = 0, m = 0;
        CHECK(tsar_spiece_encode(t.spiece, "aBa", 3, &a, &n, &err) == TSAR_OK && tsar_spiece_encode(t.spiece, "A A", 3, &b, &m, &err) == TSAR_OK, "%s",
              err.text);
        if (i == 0) CHECK(n == m && memcmp(a, b, n * sizeof *a) == 0, "its charsmap: A is a, B a blank");
        tsar_free(a);
        tsar_free(b);
        tsar_tokenizer_close(&t);
    }
}

/* chameleon.json with one stretch replaced: refused with words that say why. */
static void test_json_files(void)
{
    static const struct {
        const char *from, *to, *words;
    } changes[] = {
        { "\"lstrip\": false", "\"lstrip\": true", "blanks" },
        { "\"id\": 1,", "\"id\": 7,", "added token <pad> has the id 7" },
        { "<sentinel:[0-9]+>", "<sentinel:[0-8]+>", "step 1" },
        { "\"Isolated\"", "\"Removed\"", "Isolated" },
        { "\"individual_digits\": true", "\"individual_digits\": false", "Digits" },
        { "\"type\": \"BPE\"", "\"type\": \"WordPiece\"", "not BPE" },
        { "\"normalizer\": null", "\"normalizer\": {\"type\": \"NFKC\"}", "NFC" },
        { "\"unk_token\": null", "\"unk_token\": \"<unk>\"", "unknown token" },
        { "\"add_prefix_space\": false", "\"add_prefix_space\": true", "blank" },
        { "\"merges\"", "\"murges\"", "switch of its own" },
        { "\"vocab\"", "\"merges\"", "" },
        { "\"use_regex\": true", "\"use_regex\": false", "step" },
    };
    tsar_error err = { "" };
    tsar_bpe bpe;
    size_t bytes;
    char *text = read_whole(BPE "tok/chameleon.json", &bytes);
    const char *path = "test_text.json";
    for (size_t i = 0; text && i < sizeof changes / sizeof *changes; i++) {
        const char *at = strstr(text, changes[i].from);
        FILE *stream = fopen(path, "wb");
        if (!CHECK(at && stream, "%s", changes[i].from)) continue;
        fwrite(text, 1, (size_t)(at - text), stream);
        fputs(changes[i].to, stream);
        fputs(at + strlen(changes[i].from), stream);
        fclose(stream);
        CHECK(tsar_bpe_read(&bpe, path, &err) == TSAR_INPUT && strstr(err.text, changes[i].words) && strstr(err.text, path), "%s: %s", changes[i].to, err.text);
    }
    for (size_t n = 0; text && n < bytes; n += bytes / 97) { /* cut off anywhere */
        FILE *stream = fopen(path, "wb");
        if (!stream) continue;
        fwrite(text, 1, n, stream);
        fclose(stream);
        CHECK(tsar_bpe_read(&bpe, path, &err) == TSAR_INPUT, "cut off behind %d bytes", (int)n);
    }
    remove(path);
    free(text);
}

static void test_invalid_text(void)
{
    static const char *const texts[] = { "\xFF", "a\xC3", "\xC0\x80", "\xED\xA0\x80", "\xF4\x90\x80\x80" };
    tsar_error err = { "" };
    tsar_tokenizer t;
    int64_t *ids = NULL;
    size_t n;
    if (!CHECK(tsar_tokenizer_open(&t, BPE "tok/deepseek.json", &err) == TSAR_OK, "%s", err.text)) return;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        CHECK(tsar_bpe_encode(&t.bpe, texts[i], strlen(texts[i]), &ids, &n, &err) == TSAR_INPUT && !ids && strstr(err.text, "UTF-8"), "text %d: %s", (int)i,
              err.text);
    const int64_t odd[3] = { -1, 1 << 20, 5 };
    char *text = NULL;
    for (size_t i = 0; i < 2; i++) CHECK(tsar_bpe_decode(&t.bpe, odd + i, 1, &text, &n, &err) == TSAR_INPUT && !text, "id %d: %s", (int)odd[i], err.text);
    tsar_tokenizer_close(&t);
}

/* ------------------------------------------------------------------------------------------------------------------ speed */

/* A prompt of 1,000 bytes in less than 5 ms; of 100 kB in one piece without a square in it. */
static void test_speed(void)
{
    tsar_error err = { "" };
    tsar_tokenizer t;
    static char text[100000];
    int64_t *ids = NULL;
    size_t n;
    if (!CHECK(tsar_tokenizer_open(&t, BPE "tok/chameleon.json", &err) == TSAR_OK, "%s", err.text)) return;
    for (size_t i = 0; i < sizeof text; i++) text[i] = "the quick brown fox, 12 of them; "[i % 33];
    clock_t start = clock();
    for (int i = 0; i < 100; i++) {
        CHECK(tsar_bpe_encode(&t.bpe, text, 1000, &ids, &n, &err) == TSAR_OK, "%s", err.text);
        tsar_free(ids);
    }
    const double each = (double)(clock() - start) / CLOCKS_PER_SEC / 100;
    CHECK(each < 0.005, "a prompt of 1,000 bytes takes %g ms", each * 1e3);
    memset(text, 'a', sizeof text);
    start = clock();
    CHECK(tsar_bpe_encode(&t.bpe, text, sizeof text, &ids, &n, &err) == TSAR_OK, "%s", err.text);
    tsar_free(ids);
    CHECK((double)(clock() - start) / CLOCKS_PER_SEC < 5, "one word of 100,000 letters");
    tsar_tokenizer_close(&t);
}

int main(void)
{
    test_golden();
    test_templates();
    test_captions();
    test_spiece_files();
    test_json_files();
    test_invalid_text();
    test_speed();
    return test_end();
}
