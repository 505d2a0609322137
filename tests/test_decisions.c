/* test_decisions.c - decoding verified: in every order, with codes that are right, wrong, near-ties of a lower precision, or drawn with other random
 * numbers. */
#include "test.h"
#include "verify.h"

#include <math.h>

static const char *const model_path = "test_decisions.model.tmp", *const codes_path = "test_decisions.codes.tmp";

static const char shuffled[] = "arch=token-shuffle dim=48 n_layer=2 n_head=4 n_kv_head=2 ffn_hidden=64 norm_eps=1e-5 rope=1d text_vocab=20 "
                               "codebook_size=40 grid_h=6 grid_w=8 shuffle=2 shuffle_blocks=1 shuffle_hidden=32 seed=5";
static const char coarse[] = "arch=token-shuffle dim=48 n_layer=1 n_head=4 n_kv_head=2 ffn_hidden=64 norm_eps=1e-5 rope=1d text_vocab=20 "
                             "codebook_size=90 n_coarse=9 grid_h=6 grid_w=8 shuffle=2 shuffle_blocks=1 shuffle_hidden=32 seed=5 "
                             "fine_dim=32 fine_n_layer=1 fine_n_head=2 fine_ffn_hidden=40";
static const char classes[] = "arch=llamagen-c2i dim=48 n_layer=2 n_head=4 n_kv_head=4 ffn_hidden=64 norm_eps=1e-5 rope=2d codebook_size=40 grid_h=5 grid_w=5 "
                              "num_classes=7 cond_tokens=1 seed=6";
static const char *const orders[] = { "raster", "zipar:2", "zipar:1,first-row", "zipar-adaptive:2" };

enum { MOST = 100 };
typedef struct {
    int64_t codes[MOST], labels[MOST], steps[MOST];
    double logits[MOST * MOST];
} generated;
static generated g;

/* Generates and writes the file that is verified; `change` is added to the code at place `at` (modulo the vocabulary). */
static void generate(const tsar_model *by, const tsar_settings *settings, size_t at, int64_t change)
{
    static const int64_t text[] = { 0, 3, 5, 17, 1 };
    const tsar_config *c = &by->config;
    const tsar_prompt prompt = { .text = text, .n_text = c->num_classes ? 0 : 5, .class_id = c->num_classes ? 3 : 0 };
    tsar_result result = { g.codes, c->n_coarse ? g.labels : NULL, g.steps, g.logits, NULL };
    tsar_error err = { "" };
    tsar_status status = tsar_generate(by, &prompt, settings, 1, &result, NULL, NULL, &err);
    if (change) g.codes[at] = (g.codes[at] + change) % (int64_t)c->codebook_size;
    if (status == TSAR_OK) status = tsar_record_write(codes_path, by, &prompt, settings, &result, 0, NULL, &err);
    CHECK(status == TSAR_OK, "generate: %s", err.text);
}

static tsar_verify_counts verify(const tsar_model *model, const tsar_settings *settings, tsar_dtype p, int other, tsar_status *status)
{
    const tsar_verify_options options = { .rtol = -1, .precision = p, .other_random = other, .settings = settings };
    tsar_verify_counts counts;
    tsar_error err = { "" };
    *status = tsar_verify(model, codes_path, &options, NULL, NULL, &counts, &err);
    CHECK(*status <= TSAR_DIFFERENT, "verify: %s", err.text);
    return counts;
}

/* Right codes agree to the bit; one that is changed is named with its place, and nothing else is; with other random numbers it only has to be allowed. */
static void test_orders(const tsar_model *m, const char *description)
{
    for (size_t i = 0; i < 8; i++) {
        tsar_settings s = tsar_settings_default(m);
        tsar_status status;
        s.seed = 3, s.cfg = 2, s.top_k = 20, s.greedy = i % 2 == 1;
        CHECK(tsar_order_parse(&s, orders[i / 2], NULL) == TSAR_OK, "%s", orders[i / 2]);
        generate(m, &s, 0, 0);
        tsar_verify_counts counts = verify(m, &s, TSAR_DTYPES, 0, &status);
        CHECK(status == TSAR_OK && counts.n_decisions == 0 && counts.verdicts[TSAR_IDENTICAL] == counts.compared && counts.compared >= 4,
              "%.14s %s%s: %d, %zu decisions, first %s", description, orders[i / 2], s.greedy ? " greedy" : "", status, counts.n_decisions, counts.first);
        if (s.order == TSAR_ZIPAR_ADAPTIVE) continue;
        const size_t last = m->config.grid_h * m->config.grid_w - 1; /* nothing follows it but, in coarse-to-fine, nothing at all */
        generate(m, &s, last, 1);
        counts = verify(m, &s, TSAR_DTYPES, 0, &status);
        CHECK(status == TSAR_DIFFERENT && counts.n_decisions == 1 && strcmp(counts.first, "codes") == 0, "%s, one code: %zu decisions, %s", orders[i / 2],
              counts.n_decisions, counts.first);
        CHECK(counts.decisions[0].y == m->config.grid_h - 1 && counts.decisions[0].x == m->config.grid_w - 1 && counts.decisions[0].theirs == g.codes[last],
              "its place is told");
    }
}

/* An earlier code that is changed is wrong where it stands alone: what follows is decided from the file's own code. The logits of what follows then differ. */
static void test_earlier(const tsar_model *m)
{
    tsar_settings s = tsar_settings_default(m);
    tsar_status status;
    s.seed = 3, s.cfg = 1;
    generate(m, &s, 0, 1);
    tsar_verify_counts counts = verify(m, &s, TSAR_DTYPES, 0, &status);
    CHECK(status == TSAR_DIFFERENT && strcmp(counts.first, "logits") == 0 && counts.n_decisions >= 1 && counts.decisions[0].y == 0 &&
              counts.decisions[0].x == 0,
          "an earlier code: first %s, %zu decisions", counts.first, counts.n_decisions);
}

/* What runs in BF16 or F32 takes other codes where the precision cannot decide, and no others: near-ties. Judged as F64 they are errors. */
static void test_precisions(const tsar_model *m, const char *description)
{
    static const tsar_dtype types[] = { TSAR_F32, TSAR_F16, TSAR_BF16 };
    for (size_t i = 0; i < 6; i++) {
        tsar_settings s = tsar_settings_default(m);
        tsar_model *rounded = NULL;
        tsar_error err = { "" };
        tsar_status status = tsar_rounded_open(&rounded, m, TSAR_PART_GPT | TSAR_PART_FINE, types[i / 2], &err);
        s.seed = 3, s.cfg = 2, s.top_k = 20, s.top_p = 0.9, s.greedy = i % 2 == 1;
        if (!CHECK(status == TSAR_OK, "%s", err.text)) return;
        generate(rounded, &s, 0, 0);
        tsar_rounded_close(rounded, m);
        const tsar_verify_counts counts = verify(m, &s, types[i / 2], 0, &status);
        CHECK(status == TSAR_OK && counts.verdicts[TSAR_DIFFERS] == 0, "%.14s in %s%s: %d, %zu decisions, first %s", description, tsar_dtype_name(types[i / 2]),
              s.greedy ? ", greedy" : "", status, counts.n_decisions, counts.first);
        const tsar_verify_counts exact = verify(m, &s, TSAR_F64, 0, &status);
        CHECK(status == TSAR_DIFFERENT && strcmp(exact.first, "logits") == 0, "as F64: %d, first %s", status, exact.first);
        s.seed = 4;
        const tsar_verify_counts other = verify(m, &s, types[i / 2], 1, &status);
        CHECK(status == TSAR_OK, "other random numbers: %zu decisions, first %s", other.n_decisions, other.first);
        s.top_k = 2, s.top_p = 1;
        const tsar_verify_counts cut = verify(m, &s, types[i / 2], 1, &status);
        CHECK(s.greedy || (status == TSAR_DIFFERENT && cut.verdicts[TSAR_DIFFERS] > 0), "codes that top-k cuts away are errors: %zu", cut.n_decisions);
    }
}

int main(void)
{
    static const char *const descriptions[] = { shuffled, coarse, classes };
    for (size_t i = 0; i < 3; i++) {
        tsar_model *m = NULL;
        tsar_error err = { "" };
        if (!CHECK(test_synthesise(&m, model_path, descriptions[i], TSAR_F32, 1, &err) == TSAR_OK, "%s", err.text)) continue;
        test_orders(m, descriptions[i]);
        test_precisions(m, descriptions[i]);
        if (i != 1) test_earlier(m);
        tsar_model_close(m);
    }
    remove(model_path);
    remove(codes_path);
    return test_end();
}
