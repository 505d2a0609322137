/* page.c - what the page in the browser asks of the library: a picture by a command line of `tsar generate`, the picture after any pass, and all that
 * decided a code. It answers by lines of JSON on standard output, which page.js shows as they are: no number of the page is computed anywhere else.
 *
 * Built for wasm32-wasi as a reactor: page.js calls the functions page_*, the shipped models are files of weights/. */
#include "../flags.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { PICTURES = 8, MODELS = 4, ARGUMENTS = 40, KEPT_DECISIONS = 2048 };

/* A decision, with copies of what it points to. */
typedef struct {
    tsar_decision d;
    size_t code;
    double *values; /* owned, [V] each: what VALUES names */
    size_t *codes;  /* owned, [V]: those that compete */
} kept;

enum { COND, UNCOND, LOGITS, EARLIER, SOFTMAX, TOP_K, TOP_P, VALUES }; /* the last three: probabilities without and with top-k, and with both */

/* One of the pictures side by side. */
typedef struct {
    const tsar_model *model;
    tsar_settings settings;
    kept *decisions; /* [KEPT_DECISIONS] */
    size_t n;
    size_t calls, passes, framed;      /* of the transformer so far; that the tokens took; the pass that rgb shows */
    int64_t *codes, *coarse, *step_of; /* [gh][gw], [gh][gw], [rows][columns] */
    int64_t *seen, *scratch;           /* [gh][gw]: what was told; of page_frame */
    double *scale;                     /* [rows][columns]: of guidance */
    uint8_t *rgb;                      /* [H][W][3] */
} lane;

static lane lanes[PICTURES];
static struct {
    char path[64];
    tsar_model *model;
} models[MODELS];
static char *text; /* what page.js has to say: page_room */

/* ---------------------------------------------------------------------------------------------------------------- answers */

static void put_string(const char *key, const char *value)
{
    printf("\"%s\":\"", key);
    for (; *value; value++)
        if (*value == '"' || *value == '\\' || (unsigned char)*value < ' ')
            printf("\\u%04x", (unsigned)(unsigned char)*value);
        else
            putchar(*value);
    putchar('"');
}

/* ,"key":[...], the numbers to the last bit. */
static void put_reals(const char *key, const double *values, size_t n)
{
    char digits[32];
    printf(",\"%s\":[", key);
    for (size_t i = 0; i < n; i++) printf("%s%s", i ? "," : "", tsar_real_text(digits, values[i]));
    putchar(']');
}

/* Ends a line of the answer, or says why there is none. */
static int answer(tsar_status status, const tsar_error *err)
{
    if (status != TSAR_OK) {
        fputs("\n{", stdout);
        put_string("error", err->text);
        putchar('}');
    }
    putchar('\n');
    fflush(stdout);
    return status == TSAR_OK;
}

/* ------------------------------------------------------------------------------------------------------------- a picture */

static void forget(lane *l)
{
    void *owned[] = { l->codes, l->coarse, l->step_of, l->seen, l->scratch, l->scale, l->rgb };
    for (size_t i = 0; i < l->n; i++) tsar_free(l->decisions[i].values), tsar_free(l->decisions[i].codes);
    tsar_free(l->decisions);
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) tsar_free(owned[i]);
    memset(l, 0, sizeof *l);
}

static tsar_status open_lane(lane *l, tsar_error *err)
{
    const tsar_config *c = &l->model->config;
    const size_t N = c->grid_h * c->grid_w;
    l->decisions = tsar_alloc(KEPT_DECISIONS, sizeof *l->decisions, "the decisions", err);
    l->codes = tsar_alloc(N, sizeof *l->codes, "codes", err);
    l->coarse = tsar_alloc(N, sizeof *l->coarse, "coarse labels", err);
    l->seen = tsar_alloc(N, sizeof *l->seen, "codes", err);
    l->scratch = tsar_alloc(N, sizeof *l->scratch, "codes", err);
    l->step_of = tsar_alloc(c->tokens, sizeof *l->step_of, "the order of tokens", err);
    l->scale = tsar_alloc(c->tokens, sizeof *l->scale, "scales", err);
    l->rgb = tsar_alloc(N * c->vq_factor, 3 * c->vq_factor, "a picture", err);
    for (size_t i = 0; l->seen && i < N; i++) l->seen[i] = -1;
    return l->decisions && l->codes && l->coarse && l->seen && l->scratch && l->scale && l->step_of && l->rgb ? TSAR_OK : TSAR_ROOM;
}

/* A model by its path, opened once. */
static tsar_status find_model(const tsar_model **model, const char *path, tsar_error *err)
{
    size_t i = 0;
    while (i < MODELS && models[i].model && strcmp(models[i].path, path) != 0) i++;
    if (i == MODELS) return tsar_fail(err, TSAR_USAGE, "%s: the page has no room for another model", path);
    if (!models[i].model) (void)snprintf(models[i].path, sizeof models[i].path, "%s", path);
    const tsar_status status = models[i].model ? TSAR_OK : tsar_model_open(&models[i].model, path, TSAR_PART_ALL, 1, err);
    *model = models[i].model;
    return status;
}

/* tsar_decide_fn: keeps the decision and leaves the code as the rule took it. */
static tsar_status keep(void *context, const tsar_decision *d, size_t *code, tsar_error *err)
{
    lane *l = context;
    const double *from[VALUES] = { d->cond, d->uncond, d->logits, d->before, d->logits, d->logits, d->logits };
    const size_t V = d->V;
    tsar_settings settings = l->settings;
    if (l->n == KEPT_DECISIONS) return tsar_fail(err, TSAR_ROOM, "the page keeps at most %d decisions of a picture", KEPT_DECISIONS);
    const kept k = { *d, *code, tsar_alloc(VALUES * V, sizeof *k.values, "logits", err), tsar_alloc(V, sizeof *k.codes, "codes", err) };
    l->decisions[l->n++] = k; /* owned by the lane from here on */
    if (!k.values || !k.codes) return TSAR_ROOM;
    if (d->purpose != TSAR_FINE) l->scale[d->token] = d->scale;
    for (size_t i = 0; i < VALUES; i++) {
        settings.top_k = i < TOP_K ? 0 : l->settings.top_k, settings.top_p = i < TOP_P ? 1 : l->settings.top_p;
        if (from[i]) memcpy(k.values + i * V, from[i], V * sizeof *k.values);
        if (i >= SOFTMAX) tsar_probabilities(k.values + i * V, V, &settings, k.codes);
    }
    for (size_t v = 0; v < V; v++) k.codes[v] = d->codes ? d->codes[v] : v;
    return TSAR_OK;
}

/* What stands for a label before stage two: the lowest code of its cluster, as in tsar_job_draw_frame. */
static size_t shown_code(const tsar_model *m, int64_t label)
{
    size_t code = 0;
    while (code + 1 < m->config.codebook_size && m->cluster_of[code] != label) code++;
    return code;
}

/* tsar_progress_fn: tells the codes that this pass decided, each [place, code, code to show, scale]. Pass 0 runs the prompts, every other is one call. */
static tsar_status tell_pass(void *context, const tsar_progress *p, tsar_error *err)
{
    lane *l = context;
    const tsar_config *c = &l->model->config;
    const char *comma = "";
    char digits[32];
    l->calls += p->pass == 0 && l->settings.cfg > 1 ? 2 : 1;
    printf("{\"pass\":%zu,\"calls\":%zu,\"fine\":%d,\"now\":[", p->pass, l->calls, p->fine);
    for (size_t i = 0; i < c->grid_h * c->grid_w; i++) {
        const size_t token = i / c->grid_w / c->shuffle * c->columns + i % c->grid_w / c->shuffle;
        if (p->codes[i] == l->seen[i] && !p->fine) continue;
        l->seen[i] = p->codes[i];
        const size_t shown = c->n_coarse && !p->fine ? shown_code(l->model, p->codes[i]) : (size_t)p->codes[i];
        printf("%s[%zu,%" PRId64 ",%zu,%s]", comma, i, p->codes[i], shown, tsar_real_text(digits, l->scale[token]));
        comma = ",";
    }
    fputs("]}", stdout);
    (void)answer(TSAR_OK, err);
    return TSAR_OK;
}

/* The last line of a picture: how it came about, and what makes it again. */
static tsar_status tell_picture(const lane *l, const arguments *a, double seconds, tsar_error *err)
{
    const tsar_config *c = &l->model->config;
    const char *prompt = a->at[O_PROMPT].text;
    size_t length = 0;
    tsar_job job = { .model = l->model, .settings = &l->settings, .model_path = a->at[O_MODEL].text, .images = 1, .n_flags = 1 };
    job.flags[0] = "prompt", job.values[0] = prompt;
    const tsar_status status = tsar_job_open(&job, err);
    if (status != TSAR_OK) return status;
    printf("{\"passes\":%zu,\"calls\":%zu,\"tokens\":%zu,\"rows\":%zu,\"columns\":%zu,\"side\":%zu,\"labels\":%zu,\"seconds\":%.3f,\"new\":[", l->passes,
           l->calls, c->tokens, c->rows, c->columns, c->shuffle, c->n_coarse, seconds);
    for (size_t at = 0, n = 0; (at = tsar_text_new_word(l->model, prompt, at, &length)) != SIZE_MAX; at += length, n++)
        printf("%s[%zu,%zu]", n ? "," : "", at, length);
    fputs("],\"step_of\":[", stdout);
    for (size_t t = 0; t < c->tokens; t++) printf("%s%" PRId64, t ? "," : "", l->step_of[t]);
    fputs("],", stdout);
    put_string("command", job.command);
    putchar('}');
    tsar_job_close(&job);
    return TSAR_OK;
}

static tsar_status draw(lane *l, const arguments *a, tsar_error *err)
{
    const double start = tsar_seconds();
    tsar_prompt condition = { 0 };
    int64_t *ids = NULL;
    tsar_status status = find_model(&l->model, a->at[O_MODEL].text ? a->at[O_MODEL].text : "weights/" SHIPPED_MODEL, err);
    if (status == TSAR_OK) status = open_lane(l, err);
    if (status != TSAR_OK) return status;
    const tsar_config *c = &l->model->config;
    tsar_result result = { .codes = l->codes, .coarse = c->n_coarse ? l->coarse : NULL, .step_of = l->step_of, .passes = &l->passes };
    l->settings = tsar_settings_default(l->model);
    l->settings.decide = keep, l->settings.decide_context = l;
    status = tsar_flag_settings(a->at, &l->settings, err);
    if (status == TSAR_OK) status = tsar_text_encode(l->model, a->at[O_PROMPT].text, &ids, &condition.n_text, err);
    condition.text = ids;
    if (status == TSAR_OK) status = tsar_generate(l->model, &condition, &l->settings, 1, &result, tell_pass, l, err);
    if (status == TSAR_OK) status = tsar_vq_decode(l->model, l->codes, c->grid_h, c->grid_w, l->rgb, NULL, err);
    tsar_free(ids);
    l->framed = c->n_coarse ? l->passes : l->passes - 1;
    return status == TSAR_OK ? tell_picture(l, a, tsar_seconds() - start, err) : status;
}

/* ---------------------------------------------------------------------------------------------------- what page.js calls */

/* Room for the arguments of the next call, 0 behind each; NULL if there is none. */
char *page_room(size_t bytes)
{
    tsar_free(text);
    return text = tsar_alloc(bytes + 1, 1, "what the page says", NULL);
}

/* Whether this machine keeps the contract of the numbers. */
int page_start(void)
{
    tsar_error err = { "" };
    return answer(tsar_self_check(&err), &err);
}

/* Draws picture `which` by the n flags of `tsar generate` in page_room: a line for each pass, then one for the whole. 0: an error, which is told. */
int page_draw(size_t which, size_t n)
{
    static const command generate = { GENERATE, "generate", "", 0, 0, NULL, "" };
    static arguments a;
    char *argv[ARGUMENTS], *at = text;
    tsar_error err = { "" };
    memset(&a, 0, sizeof a);
    a.command = GENERATE;
    for (size_t i = 0; i < n && i < ARGUMENTS; i++, at += strlen(at) + 1) argv[i] = at;
    tsar_status status =
        which < PICTURES && n <= ARGUMENTS ? TSAR_OK : tsar_fail(&err, TSAR_USAGE, "the page draws at most %d pictures side by side", PICTURES);
    if (status == TSAR_OK) status = tsar_parse_arguments(&a, &generate, (int)n, argv, &err);
    if (status == TSAR_OK && !a.at[O_PROMPT].text) status = tsar_fail(&err, TSAR_USAGE, "the page draws from --prompt");
    if (status != TSAR_OK) return answer(status, &err);
    forget(&lanes[which]);
    return answer(draw(&lanes[which], &a, &err), &err);
}

/* The picture [H][W][3] after pass `pass`, grey where nothing is decoded yet; in coarse-to-fine the pass behind the last is stage two. NULL: out of memory. */
const uint8_t *page_frame(size_t which, size_t pass)
{
    lane *l = &lanes[which];
    if (!l->model) return NULL;
    const tsar_config *c = &l->model->config;
    const int labels = c->n_coarse > 0 && pass < l->passes;
    const tsar_job_frame frame = { 0, pass, l->seen, labels };
    if (pass == l->framed) return l->rgb;
    l->framed = pass;
    for (size_t i = 0; i < c->grid_h * c->grid_w; i++) {
        const size_t token = i / c->grid_w / c->shuffle * c->columns + i % c->grid_w / c->shuffle;
        l->seen[i] = l->step_of[token] > (int64_t)pass ? -1 : labels ? l->coarse[i] : l->codes[i];
    }
    return tsar_job_draw_frame(l->model, &frame, l->scratch, l->rgb, NULL) == TSAR_OK ? l->rgb : NULL;
}

/* A colour for each code of the shipped tokenizer, [K][3]: the first three numbers of its codeword, from -1 to 1, as red, green and blue. */
const uint8_t *page_colours(void)
{
    const tsar_model *m = NULL;
    tsar_error err = { "" };
    tsar_status status = find_model(&m, "weights/" SHIPPED_MODEL, &err);
    const size_t K = status == TSAR_OK ? m->config.codebook_size : 0, n = status == TSAR_OK ? m->config.vq_embed_dim : 0;
    double *word = tsar_alloc(n, sizeof *word, "a codeword", &err);
    uint8_t *colours = tsar_alloc(K, 3, "colours", &err); /* the page's, once */
    if (status == TSAR_OK && (!word || !colours)) status = TSAR_ROOM;
    for (size_t i = 0; status == TSAR_OK && i < K * 3; i++) {
        if (i % 3 == 0) tsar_vq_codeword(m, i / 3, word);
        colours[i] = (uint8_t)(127.5 * (1 + word[i % 3]));
    }
    tsar_free(word);
    return answer(status, &err) ? colours : NULL;
}

static void put_decision(const kept *k, int greedy)
{
    static const char *const purposes[] = { "draw", "accept", "replace", "fine" }; /* by TSAR_DRAW ... */
    static const char *const names[VALUES] = { "cond", "uncond", "logits", "before", "softmax", "top_k", "p" };
    const tsar_decision *d = &k->d;
    printf("{\"purpose\":\"%s\",\"token\":%zu,\"row\":%zu,\"column\":%zu,\"slot\":%zu,\"pass\":%zu,\"attempt\":%zu,\"settles\":%d,", purposes[d->purpose],
           d->token, d->row, d->column, d->slot, d->pass, d->attempt, d->settles);
    printf("\"candidate\":%zu,\"code\":%zu,\"codes\":[", d->candidate, k->code);
    for (size_t i = 0; i < d->V; i++) printf("%s%zu", i ? "," : "", k->codes[i]);
    putchar(']');
    put_reals("u", &d->u, 1), put_reals("replace", &d->replace, 1), put_reals("scale", &d->scale, 1);
    for (size_t i = 0; i < VALUES; i++)
        if (i < SOFTMAX ? (i != UNCOND || d->uncond) && (i != EARLIER || d->before) : !greedy) put_reals(names[i], k->values + i * d->V, d->V);
    putchar('}');
}

/* All decisions about code (y, x) of a picture, in their order, and the settings that they were made with. */
void page_code(size_t which, size_t y, size_t x)
{
    const lane *l = &lanes[which];
    const tsar_settings *settings = &l->settings;
    const char *comma = "";
    printf("{\"seed\":\"%" PRIu64 "\",\"top_k\":%zu,\"greedy\":%d,\"schedule\":\"%s\"", settings->seed, settings->top_k, settings->greedy,
           tsar_schedule_names[settings->schedule]);
    put_reals("top_p", &settings->top_p, 1), put_reals("temperature", &settings->temperature, 1), put_reals("cfg", &settings->cfg, 1);
    fputs(",\"decisions\":[", stdout);
    for (size_t i = 0; i < l->n; i++) {
        if (l->decisions[i].d.y != y || l->decisions[i].d.x != x) continue;
        fputs(comma, stdout);
        put_decision(&l->decisions[i], settings->greedy);
        comma = ",";
    }
    fputs("]}", stdout);
    (void)answer(TSAR_OK, NULL);
}
