/* Training the transformers: Token-Shuffle (arXiv 2504.17789; SPEC 3) and coarse-to-fine (arXiv 2503.16194; SPEC 6). */
#include "gpt.h"
#include "scenes.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TEXT_SHARE 0.1   /* of the text's entropy in the loss */
#define DROP_CAPTION 0.1 /* of captions, for guidance */
#define Z_LOSS 1e-4

/* ----------------------------------------------------------------------------------------------------------- blocks */

/* Bound of a uniform distribution with standard deviation 0.4 / sqrt(inputs). */
static double linear_bound(size_t inputs) { return 0.4 * sqrt(3.0 / (double)inputs); }

static size_t new_matrix(train_tape *t, const char *prefix, const char *name, size_t rows, size_t columns, double bound)
{
    char text[128];
    const size_t shape[2] = { rows, columns };
    snprintf(text, sizeof text, "%s%s", prefix, name);
    return train_param_new(t, text, 2, shape, 0.0, bound);
}

static size_t new_gain(train_tape *t, const char *prefix, const char *name, size_t d)
{
    char text[128];
    snprintf(text, sizeof text, "%s%s", prefix, name);
    return train_param_new(t, text, 1, &d, 1.0, 0.0);
}

static size_t linear(train_tape *t, size_t in, const char *prefix, const char *name, size_t rows, size_t columns, double shrink)
{
    return train_linear(t, in, new_matrix(t, prefix, name, rows, columns, shrink * linear_bound(columns)), 0, rows);
}

typedef struct {
    size_t dim, n_layer, n_head, ffn;
    double eps;
    int causal;
    const train_ragged *ragged;
    const real *cosine, *sine;
} stack_shape;

/* h = x + wo . attention(q, k, v); y = h + w2 . (silu(w1 . n) * (w3 . n)), n_layer times. */
static size_t stack(train_tape *t, size_t x, const char *part, const stack_shape *shape)
{
    double shrink = 1.0 / sqrt(2.0 * (double)shape->n_layer);
    for (size_t i = 0; i < shape->n_layer; i++) {
        char prefix[64];
        snprintf(prefix, sizeof prefix, "%slayers.%zu.", part, i);
        size_t n = train_rms_norm(t, x, new_gain(t, prefix, "attention_norm.weight", shape->dim), shape->eps);
        size_t qkv = linear(t, n, prefix, "attention.wqkv.weight", 3 * shape->dim, shape->dim, 1.0);
        size_t mixed = train_attention(t, qkv, qkv, qkv, shape->n_head, shape->ragged, shape->causal, shape->cosine, shape->sine);
        x = train_add(t, x, linear(t, mixed, prefix, "attention.wo.weight", shape->dim, shape->dim, shrink));
        n = train_rms_norm(t, x, new_gain(t, prefix, "ffn_norm.weight", shape->dim), shape->eps);
        size_t gate = linear(t, n, prefix, "feed_forward.w1.weight", shape->ffn, shape->dim, 1.0);
        size_t up = linear(t, n, prefix, "feed_forward.w3.weight", shape->ffn, shape->dim, 1.0);
        x = train_add(t, x, linear(t, train_swiglu(t, gate, up), prefix, "feed_forward.w2.weight", shape->dim, shape->ffn, shrink));
        train_name(t, x, "%sblock.%zu", part, i);
    }
    return x;
}

/* x + fc2 . gelu(fc1 . rmsnorm(x)), `blocks` times. */
static size_t shuffle_blocks(train_tape *t, size_t x, const char *module, const gpt_shape *shape)
{
    for (size_t b = 0; b < shape->blocks; b++) {
        char prefix[64];
        snprintf(prefix, sizeof prefix, "gpt.%s.blocks.%zu.", module, b);
        size_t n = train_rms_norm(t, x, new_gain(t, prefix, "norm.weight", shape->dim), shape->eps);
        n = train_gelu(t, linear(t, n, prefix, "fc1.weight", shape->hidden, shape->dim, 1.0));
        x = train_add(t, x, linear(t, n, prefix, "fc2.weight", shape->dim, shape->hidden, 0.5));
        train_name(t, x, "gpt.%s.block.%zu", module, b);
    }
    return x;
}

/* ------------------------------------------------------------------------------------------------- rotary positions */

/* A pair of a head is turned by the angle coordinate * base^(-2k/width), k < width/2, where width = hd in one dimension; in two it is
 * hd/2: the first half of the pairs takes one coordinate, the second half the other (SPEC 3). by_place holds cos and sin of all angles,
 * [places][width/2] each; by_row those of each row, [rows][hd/2]. */
static void rotary_open(rotary *r, real *room, size_t places, size_t rows, size_t hd, double base, int two)
{
    r->halves = two ? 2 : 1;
    r->pairs = hd / 2 / r->halves;
    r->by_place[0] = room;
    r->by_place[1] = room + places * r->pairs;
    r->by_row[0] = r->by_place[1] + places * r->pairs;
    r->by_row[1] = r->by_row[0] + rows * (hd / 2);
    for (size_t place = 0; place < places; place++)
        for (size_t k = 0; k < r->pairs; k++) {
            double angle = (double)place * tsar_pow(base, -(double)(2 * k) / (double)(2 * r->pairs));
            r->by_place[0][place * r->pairs + k] = (real)tsar_cos(angle);
            r->by_place[1][place * r->pairs + k] = (real)tsar_sin(angle);
        }
}

/* What rotary_open needs: reals. */
static size_t rotary_room(size_t places, size_t rows, size_t hd) { return (places + rows) * hd; }

/* A row stands at these two coordinates; in one dimension the first counts. */
static void rotary_set(rotary *r, size_t row, size_t first, size_t second)
{
    for (size_t part = 0; part < 2; part++)
        for (size_t half = 0; half < r->halves; half++)
            memcpy(r->by_row[part] + (row * r->halves + half) * r->pairs, r->by_place[part] + (half ? second : first) * r->pairs, r->pairs * sizeof(real));
}

/* ---------------------------------------------------------------------------------------------------- Token-Shuffle */

/* The values of a gpt_net come in sections that have the same number of rows. */
enum { ROWS_TEXT, ROWS_CODES, ROWS_FUSED, ROWS_BODY, ROWS_IMAGE, ROWS_LOGITS, ROWS_NEXT, SECTIONS };

/* Embeddings of text and of codes; token-shuffle's input side; one sequence of both. */
static size_t gpt_input(gpt_net *net, size_t table, size_t image_rows, size_t text_rows, size_t rows)
{
    train_tape *t = &net->tape;
    const gpt_shape *shape = &net->shape;
    size_t slots = shape->s * shape->s;
    size_t text = train_lookup(t, table, net->text_index, text_rows);
    net->section[ROWS_TEXT] = t->n_values;
    size_t z = train_lookup(t, table, net->code_index, image_rows * slots);
    if (slots > 1) z = linear(t, z, "gpt.shuffle.", "compress.weight", shape->dim / slots, shape->dim, 2.5);
    if (slots > 1 && t->status == TSAR_OK) {
        train_name(t, z, "gpt.shuffle.compress");
        t->values[z].order = net->raster;
    }
    net->section[ROWS_CODES] = t->n_values;
    if (slots > 1) {
        z = train_view(t, z, image_rows, shape->dim);
        train_name(t, z, "gpt.shuffle.merge");
        z = shuffle_blocks(t, z, "shuffle", shape);
    }
    net->section[ROWS_FUSED] = t->n_values;
    size_t x = train_choose(t, text, z, net->row_index, rows);
    train_name(t, x, "gpt.embed");
    return x;
}

/* Token-unshuffle's output side and the head, for the rows that predict codes; the head alone for those that predict text. */
static void gpt_output(gpt_net *net, size_t x, size_t image_rows, size_t text_rows)
{
    train_tape *t = &net->tape;
    const gpt_shape *shape = &net->shape;
    size_t slots = shape->s * shape->s;
    size_t gain = new_gain(t, "gpt.", "norm.weight", shape->dim);
    size_t head = new_matrix(t, "gpt.", "output.weight", shape->text_vocab + shape->V, shape->dim, linear_bound(shape->dim));
    size_t h = train_choose(t, x, x, net->image_index, image_rows);
    if (slots > 1) h = shuffle_blocks(t, h, "unshuffle", shape);
    net->section[ROWS_IMAGE] = t->n_values;
    if (slots > 1) {
        h = train_view(t, h, image_rows * slots, shape->dim / slots);
        h = linear(t, h, "gpt.unshuffle.", "expand.weight", shape->dim, shape->dim / slots, 2.5);
        train_name(t, h, "gpt.unshuffle.expand");
    }
    h = train_rms_norm(t, h, gain, shape->eps);
    train_name(t, h, "gpt.norm");
    net->logits = train_linear(t, h, head, shape->text_vocab, shape->V);
    train_name(t, net->logits, "gpt.logits");
    for (size_t i = net->section[ROWS_IMAGE]; t->status == TSAR_OK && i < t->n_values; i++) t->values[i].slots = slots;
    net->section[ROWS_LOGITS] = t->n_values;
    h = train_rms_norm(t, train_choose(t, x, x, net->next_index, text_rows), gain, shape->eps);
    net->text_logits = train_linear(t, h, head, 0, shape->text_vocab + shape->V);
    net->section[ROWS_NEXT] = t->n_values;
}

/* Raster index of code c of window t. */
static size_t window_code(const gpt_shape *shape, size_t t, size_t c)
{
    size_t columns = shape->grid / shape->s;
    return (t / columns * shape->s + c / shape->s) * shape->grid + t % columns * shape->s + c % shape->s;
}

/* Room for the indices and targets of a batch; 0 when memory is out. */
static int open_batch(gpt_net *net, size_t B, size_t N, size_t T, tsar_error *err)
{
    const size_t max_text = net->max_text, sizes[7] = { B * max_text + 1, B * N, B * T, B * net->n, B * max_text, B * N, B * max_text };
    int64_t **arrays[7] = { &net->text_index, &net->code_index,  &net->row_index,  &net->image_index,
                            &net->next_index, &net->code_target, &net->text_target };
    int full = 0;
    for (size_t i = 0; i < 7; i++) full |= !(*arrays[i] = tsar_alloc(sizes[i], sizeof(int64_t), "the batch", err));
    full |= train_ragged_open(&net->ragged, B, T, err) != TSAR_OK;
    full |= !(net->raster = tsar_alloc(N, sizeof(size_t), "the batch", err));
    full |= !(net->row_loss = tsar_alloc(B * (N + max_text), 3 * sizeof(double), "the batch", err));
    return !full;
}

tsar_status gpt_open(gpt_net *net, const gpt_shape *shape, size_t B, size_t max_text, uint64_t seed, size_t threads, tsar_error *err)
{
    memset(net, 0, sizeof *net);
    net->shape = *shape;
    net->B = B;
    net->columns = shape->grid / shape->s;
    net->n = net->columns * net->columns;
    net->max_text = max_text;
    train_tape *t = &net->tape;
    train_tape_open(t, seed, threads);
    const size_t N = shape->grid * shape->grid, T = max_text + net->n + (shape->row_ends ? net->columns : 0), hd = shape->dim / shape->n_head;
    const int room = open_batch(net, B, N, T, err);
    net->code_weight = train_keep(t, B * N + B * max_text + rotary_room(T, B * T, hd));
    if (!room || t->status != TSAR_OK) {
        gpt_close(net);
        return TSAR_ROOM;
    }
    net->text_weight = net->code_weight + B * N;
    rotary_open(&net->turn, net->text_weight + B * max_text, T, B * T, hd, shape->rope_base, shape->rope_2d);
    for (size_t i = 0; i < N; i++) net->raster[window_code(shape, i / (shape->s * shape->s), i % (shape->s * shape->s))] = i;
    stack_shape body = { shape->dim, shape->n_layer, shape->n_head, shape->ffn, shape->eps, 1, &net->ragged, net->turn.by_row[0], net->turn.by_row[1] };
    size_t table = new_matrix(t, "gpt.", "tok_embeddings.weight", shape->text_vocab + shape->V, shape->dim, 0.1);
    size_t x = gpt_input(net, table, B * net->n, B * max_text + 1, B * T);
    x = stack(t, x, "gpt.", &body);
    net->section[ROWS_BODY] = t->n_values;
    gpt_output(net, x, B * net->n, B * max_text);
    if (t->status == TSAR_OK) return TSAR_OK;
    *err = t->err;
    gpt_close(net);
    return TSAR_ROOM;
}

void gpt_close(gpt_net *net)
{
    train_tape_close(&net->tape);
    void *owned[] = { net->text_index,  net->code_index,   net->row_index,     net->image_index, net->next_index, net->code_target,
                      net->text_target, net->raster,     net->row_loss,  net->code_weight };
    train_ragged_close(&net->ragged);
    for (size_t i = 0; i < sizeof owned / sizeof owned[0]; i++) tsar_free(owned[i]);
    memset(net, 0, sizeof *net);
}

/* ----------------------------------------------------------------------------------------------------------- batches */

void gpt_begin(gpt_net *net, size_t feed)
{
    net->feed = feed;
    net->n_text = net->n_next = net->n_rows = 0;
    if (net->shape.row_ends) net->text_index[net->n_text++] = net->shape.eol; /* one lookup for all of them */
}

/* Row `position` of sequence b, which begins at row `start`: fed with row `index` of the lookups (see train_choose), turned by two coordinates. */
static void feed_row(gpt_net *net, size_t start, size_t position, int64_t index, size_t first, size_t second)
{
    net->row_index[start + position] = index;
    rotary_set(&net->turn, start + position, net->shape.rope_2d ? first : position, second);
}

/* Prefix ids at rows 0 ... P-1; each but the last predicts the next where the text is to be learnt. Coordinates: p, p. */
static void feed_text(gpt_net *net, size_t start, const int64_t *text, size_t P, int learn_text)
{
    for (size_t i = 0; i < P; i++) {
        feed_row(net, start, i, (int64_t)(net->n_text + i), i, i);
        net->text_index[net->n_text + i] = text[i];
        if (learn_text && i + 1 < P) {
            net->next_index[net->n_next] = (int64_t)(start + i);
            net->text_target[net->n_next++] = text[i + 1];
        }
    }
    net->n_text += P;
}

/* Window (r, c) at row P + r (C + e) + c, e = 1 with row ends, the end of row r at P + r (C + e) + C; what predicts a window is the row in front
 * of it. Coordinates: P + r, P + c, and P + r, P + C of the row's end (SPEC 3). */
void gpt_sequence(gpt_net *net, size_t b, const int64_t *text, size_t P, const int64_t *codes, int learn_text)
{
    const gpt_shape *shape = &net->shape;
    const size_t slots = shape->s * shape->s, start = net->n_rows, C = net->columns, fed_ends = shape->row_ends ? net->feed / C : 0;
    feed_text(net, start, text, P, learn_text);
    for (size_t t = 0; t < net->n; t++) {
        const size_t r = t / C, c = t % C, position = P + t + (shape->row_ends ? r : 0), fused = b * net->feed + t;
        net->image_index[b * net->n + t] = (int64_t)(start + position) - 1;
        if (t < net->feed) feed_row(net, start, position, -1 - (int64_t)fused, P + r, P + c);
        for (size_t k = 0; k < slots; k++) {
            int64_t code = codes[window_code(shape, t, k)];
            net->code_target[(b * net->n + t) * slots + k] = code;
            if (t < net->feed) net->code_index[fused * slots + k] = (int64_t)shape->text_vocab + code;
        }
    }
    for (size_t r = 0; r < fed_ends; r++) feed_row(net, start, P + r * (C + 1) + C, 0, P + r, P + C);
    net->ragged.start[b] = start;
    net->ragged.length[b] = P + net->feed + fed_ends;
    net->n_rows += net->ragged.length[b];
}

void gpt_end(gpt_net *net)
{
    size_t slots = net->shape.s * net->shape.s, B = net->B;
    const size_t rows[SECTIONS] = { net->n_text, B * net->feed * slots, B * net->feed, net->n_rows, B * net->n, B * net->n * slots, net->n_next };
    size_t section = 0;
    for (size_t i = 0; i < net->tape.n_values; i++) {
        while (i >= net->section[section]) section++;
        train_set_rows(&net->tape, i, rows[section]);
    }
    for (size_t i = 0; i < rows[ROWS_LOGITS]; i++) net->code_weight[i] = (real)(1.0 / (double)rows[ROWS_LOGITS]);
    for (size_t i = 0; i < net->n_next; i++) net->text_weight[i] = (real)(TEXT_SHARE / (double)net->n_next);
}

double gpt_loss(gpt_net *net, double z_loss)
{
    train_tape *t = &net->tape;
    train_value *image = &t->values[net->logits], *text = &t->values[net->text_logits];
    size_t right, right_text;
    double loss = op_cross_entropy(image->g, image->x, net->code_target, net->code_weight, image->W, image->C, z_loss, t->threads, net->row_loss,
                                   &net->loss_image, &right);
    loss += op_cross_entropy(text->g, text->x, net->text_target, net->text_weight, text->W, text->C, z_loss, t->threads, net->row_loss,
                             &net->loss_text, &right_text);
    net->right_image = (double)right / (double)image->W;
    return loss;
}

void gpt_backward(gpt_net *net)
{
    const size_t seeds[2] = { net->logits, net->text_logits };
    train_backward(&net->tape, seeds, 2);
}

/* ------------------------------------------------------------------------------------------------ CTF, the fine stage */

tsar_status fine_open(fine_net *net, const fine_shape *shape, const int64_t *cluster_of, size_t B, uint64_t seed, size_t threads, tsar_error *err)
{
    memset(net, 0, sizeof *net);
    net->shape = *shape;
    net->B = B;
    net->cluster_of = cluster_of;
    train_tape *t = &net->tape;
    train_tape_open(t, seed, threads);
    size_t N = shape->grid * shape->grid, hd = shape->dim / shape->n_head;
    const tsar_status room = train_ragged_open(&net->ragged, B, N, err);
    net->label_index = tsar_alloc(B * N, sizeof(int64_t), "the batch", err);
    net->target = tsar_alloc(B * N, sizeof(int64_t), "the batch", err);
    net->row_loss = tsar_alloc(B * N, 3 * sizeof(double), "the batch", err);
    net->weight = train_keep(t, B * N + rotary_room(shape->grid, B * N, hd));
    if (room != TSAR_OK || !net->label_index || !net->target || !net->row_loss || t->status != TSAR_OK) {
        fine_close(net);
        return TSAR_ROOM;
    }
    rotary_open(&net->turn, net->weight + B * N, shape->grid, B * N, hd, shape->rope_base, 1);
    for (size_t i = 0; i < B * N; i++) rotary_set(&net->turn, i, i % N / shape->grid, i % shape->grid);
    for (size_t i = 0; i < B * N; i++) net->weight[i] = (real)(1.0 / (double)(B * N));
    stack_shape body = { shape->dim, shape->n_layer, shape->n_head, shape->ffn, shape->eps, 0, &net->ragged, net->turn.by_row[0], net->turn.by_row[1] };
    size_t x = train_lookup(t, new_matrix(t, "fine.", "coarse_embeddings.weight", shape->n_coarse, shape->dim, 0.1), net->label_index, B * N);
    train_name(t, x, "fine.embed");
    x = stack(t, x, "fine.", &body);
    x = train_rms_norm(t, x, new_gain(t, "fine.", "norm.weight", shape->dim), shape->eps);
    train_name(t, x, "fine.norm");
    net->logits = linear(t, x, "fine.", "output.weight", shape->K, shape->dim, 1.0);
    train_name(t, net->logits, "fine.logits");
    if (t->status == TSAR_OK) return TSAR_OK;
    *err = t->err;
    fine_close(net);
    return TSAR_ROOM;
}

void fine_close(fine_net *net)
{
    train_tape_close(&net->tape);
    void *owned[] = { net->label_index, net->target, net->row_loss, net->weight };
    train_ragged_close(&net->ragged);
    for (size_t i = 0; i < sizeof owned / sizeof owned[0]; i++) tsar_free(owned[i]);
    memset(net, 0, sizeof *net);
}

void fine_sequence(fine_net *net, size_t b, const int64_t *codes)
{
    size_t N = net->shape.grid * net->shape.grid;
    for (size_t i = 0; i < N; i++) {
        net->target[b * N + i] = codes[i];
        net->label_index[b * N + i] = net->cluster_of[codes[i]];
    }
}

/* Cross entropy over the codes of each label's cluster: the others' logits are -infinity, their gradients 0. */
double fine_loss(fine_net *net, double z_loss)
{
    train_tape *t = &net->tape;
    train_value *logits = &t->values[net->logits];
    size_t right, R = logits->W, K = logits->C;
    for (size_t i = 0; i < R; i++)
        for (size_t c = 0; c < K; c++)
            if (net->cluster_of[c] != net->label_index[i]) logits->x[i * K + c] = (real)-1e30;
    double loss = op_cross_entropy(logits->g, logits->x, net->target, net->weight, R, K, z_loss, t->threads, net->row_loss, &net->loss, &right);
    for (size_t i = 0; i < R; i++)
        for (size_t c = 0; c < K; c++)
            if (net->cluster_of[c] != net->label_index[i]) logits->g[i * K + c] = 0;
    net->right = (double)right / (double)R;
    return loss;
}

void fine_backward(fine_net *net) { train_backward(&net->tape, &net->logits, 1); }

/* --------------------------------------------------------------------------------------------------------- training */

/* What both stages start from: codes, merges, the tokenizer's file, the labels. */
typedef struct {
    code_set codes;
    int64_t *cluster_of;
    char *words; /* of the captions */
    tsar_file *vq;
    tsar_model text; /* arch, text_vocab and merges only: what tsar_text_encode looks at */
} corpus;

static void corpus_close(corpus *c)
{
    code_set_close(&c->codes);
    tsar_bpe_close(&c->text.bpe);
    tsar_free(c->words);
    tsar_free(c->cluster_of);
    if (c->vq) tsar_file_close(c->vq);
    memset(c, 0, sizeof *c);
}

static tsar_status cluster_codes(corpus *c, const gpt_plan *plan, tsar_error *err)
{
    tsar_model *model;
    tsar_status status = tsar_model_open(&model, plan->vq, TSAR_PART_ALL, 1, err);
    if (status != TSAR_OK) return status;
    c->cluster_of = tsar_alloc(model->config.codebook_size, sizeof *c->cluster_of, "cluster labels", err);
    status = c->cluster_of ? tsar_cluster(model, plan->n_coarse, plan->seed, c->cluster_of, err) : TSAR_ROOM;
    tsar_model_close(model);
    return status;
}

static tsar_status corpus_open(corpus *c, const gpt_plan *plan, tsar_error *err)
{
    memset(c, 0, sizeof *c);
    tsar_status status = code_set_read(&c->codes, plan->codes, err);
    if (status == TSAR_OK) status = code_set_check(&c->codes, plan->codes, plan->vq, err);
    if (status == TSAR_OK) status = tsar_file_open(&c->vq, plan->vq, err);
    if (status == TSAR_OK) status = train_merges(c->codes.seed, &c->text.bpe.merges, &c->text.bpe.n_merges, err);
    if (status == TSAR_OK) status = train_words(c->codes.seed, &c->words, err);
    if (status == TSAR_OK && plan->n_coarse > 0) status = cluster_codes(c, plan, err);
    c->text.config.arch = TSAR_TOKEN_SHUFFLE;
    c->text.config.text_template = TSAR_TEMPLATE_TSAR;
    c->text.config.text_vocab = TSAR_SPECIALS + 256 + c->text.bpe.n_merges;
    c->text.config.n_ids = c->text.config.text_vocab;
    if (status == TSAR_OK) status = tsar_bpe_open(&c->text.bpe, c->text.config.n_ids, plan->codes, err);
    if (status != TSAR_OK) corpus_close(c);
    return status;
}

/* Codes of picture i (labels where the model is coarse). */
static void corpus_codes(const corpus *c, uint64_t i, int coarse, int64_t *out)
{
    size_t N = c->codes.grid * c->codes.grid;
    for (size_t k = 0; k < N; k++) {
        int64_t code = c->codes.codes[i * N + k];
        out[k] = coarse ? c->cluster_of[code] : code;
    }
}

#define MAX_PREFIX 48 /* ids of a prefix: the longest caption has 21 words */
#define MAX_CODES 4096

/* Sequence b of a batch: the caption of a picture as ids, or <bos> <soi> when it is dropped, and its codes. */
static tsar_status add_picture(gpt_net *net, const corpus *c, uint64_t picture, size_t b, int dropped, tsar_error *err)
{
    int64_t codes[MAX_CODES], *ids, bare[2] = { TSAR_BOS, TSAR_SOI };
    scene s;
    size_t n;
    scene_draw(&s, c->codes.seed, picture, -1, 0);
    corpus_codes(c, picture, c->cluster_of != NULL, codes);
    tsar_status status = tsar_text_encode(&c->text, s.caption, &ids, &n, err);
    if (status != TSAR_OK) return status;
    if (n > net->max_text)
        status = tsar_fail(err, TSAR_INPUT, "the caption '%s' has %zu ids, more than %zu", s.caption, n, net->max_text);
    else
        gpt_sequence(net, b, dropped ? bare : ids, dropped ? 2 : n, codes, !dropped);
    tsar_free(ids);
    return status;
}

/* Sequence b of the step. */
static tsar_status add_sequence(gpt_net *net, const corpus *c, const train_run *run, size_t b, tsar_error *err)
{
    const uint64_t at = run->step * run->batch + b;
    scene_stream stream = scene_stream_open(run->seed ^ UINT64_C(0x44524F5000000000), at);
    return add_picture(net, c, at % c->codes.count, b, scene_uniform(&stream) < DROP_CAPTION, err);
}

static void describe_gpt(train_run *run, const gpt_shape *shape, size_t K)
{
    run_key(run, "arch", "token-shuffle");
    run_key(run, "dim", "%zu", shape->dim);
    run_key(run, "n_layer", "%zu", shape->n_layer);
    run_key(run, "n_head", "%zu", shape->n_head);
    run_key(run, "n_kv_head", "%zu", shape->n_head);
    run_key(run, "ffn_hidden", "%zu", shape->ffn);
    run_key(run, "norm_eps", "%g", shape->eps);
    run_key(run, "rope", shape->rope_2d ? "2d" : "1d");
    run_key(run, "rope_base", "%g", shape->rope_base);
    run_key(run, "text_vocab", "%zu", shape->text_vocab);
    run_key(run, "codebook_size", "%zu", K);
    run_key(run, "grid_h", "%zu", shape->grid);
    run_key(run, "grid_w", "%zu", shape->grid);
    if (shape->row_ends) run_key(run, "eol", "%" PRId64, shape->eol);
    run_key(run, "shuffle", "%zu", shape->s);
    if (shape->s > 1) {
        run_key(run, "shuffle_blocks", "%zu", shape->blocks);
        run_key(run, "shuffle_hidden", "%zu", shape->hidden);
    }
}

static train_run new_run(const char *stage, const gpt_plan *plan)
{
    train_run run;
    memset(&run, 0, sizeof run);
    run.stage = stage;
    run.checkpoint = plan->checkpoint;
    run.output = plan->output;
    run.seed = plan->seed;
    run.steps = plan->steps;
    run.batch = plan->batch;
    run.rate = plan->rate;
    run.rate_end = plan->rate_end;
    run.finish_from = plan->steps / 2; /* the rate stays, then falls */
    run.warm_up = plan->steps / 20 < 400 ? plan->steps / 20 + 1 : 400;
    run.minutes = plan->minutes;
    run.stop_after = plan->stop_after;
    return run;
}

static size_t codebook_size(const corpus *c)
{
    const char *text = tsar_file_meta(c->vq, "codebook_size");
    return text ? (size_t)strtoull(text, NULL, 10) : 0;
}

/* What a user of the result profits from. */
static void note_result(train_run *run, const gpt_plan *plan, const char *words)
{
    run_note(run, "vq_file", plan->vq_file);
    run_note(run, "known_words", words);
    run_note(run, "default_cfg", plan->cfg);
    run_note(run, "default_cfg_schedule", plan->cfg_schedule);
    run_note(run, "default_temperature", plan->temperature);
    run_note(run, "default_top_k", plan->top_k);
    run_note(run, "default_top_p", plan->top_p);
}

/* What the steps of both stages work on. */
typedef struct {
    const corpus *corpus;
    gpt_net *gpt;
    fine_net *fine;
} stage_context;

static tsar_status gpt_pass(void *context, const train_run *run, double *figure, tsar_error *err)
{
    const stage_context *c = context;
    tsar_status status = TSAR_OK;
    gpt_begin(c->gpt, c->gpt->n - 1);
    for (size_t b = 0; b < run->batch && status == TSAR_OK; b++) status = add_sequence(c->gpt, c->corpus, run, b, err);
    if (status != TSAR_OK) return status;
    gpt_end(c->gpt);
    train_forward(&c->gpt->tape);
    gpt_loss(c->gpt, Z_LOSS);
    gpt_backward(c->gpt);
    figure[0] = c->gpt->loss_image;
    figure[1] = c->gpt->loss_text / TEXT_SHARE;
    figure[2] = c->gpt->right_image;
    return TSAR_OK;
}

static void gpt_report(const void *context, train_run *run, const double *mean, double norm)
{
    (void)context;
    run_report(run, "image %.4f  text %.3f  likeliest %.3f  gradient %.2f", mean[0], mean[1], mean[2], norm);
}

static tsar_status fine_pass(void *context, const train_run *run, double *figure, tsar_error *err)
{
    const stage_context *c = context;
    int64_t codes[MAX_CODES];
    (void)err;
    for (size_t b = 0; b < run->batch; b++) {
        corpus_codes(c->corpus, (run->step * run->batch + b) % c->corpus->codes.count, 0, codes);
        fine_sequence(c->fine, b, codes);
    }
    train_forward(&c->fine->tape);
    fine_loss(c->fine, Z_LOSS);
    fine_backward(c->fine);
    figure[0] = c->fine->loss;
    figure[1] = c->fine->right;
    return TSAR_OK;
}

static void fine_report(const void *context, train_run *run, const double *mean, double norm)
{
    (void)context;
    run_report(run, "fine %.4f  likeliest %.3f  gradient %.2f", mean[0], mean[1], norm);
}

#define BETA2 0.95
#define DECAY 0.05

tsar_status train_gpt(const gpt_plan *plan, tsar_error *err)
{
    corpus c;
    gpt_net net;
    tsar_status status = corpus_open(&c, plan, err);
    if (status != TSAR_OK) return status;
    gpt_shape shape = plan->gpt;
    shape.text_vocab = c.text.config.text_vocab;
    shape.grid = c.codes.grid;
    shape.V = plan->n_coarse > 0 ? plan->n_coarse : codebook_size(&c);
    status = gpt_open(&net, &shape, plan->batch, MAX_PREFIX, plan->seed, plan->threads, err);
    if (status != TSAR_OK) {
        corpus_close(&c);
        return status;
    }
    train_run run = new_run(plan->n_coarse ? "coarse" : "gpt", plan);
    describe_gpt(&run, &shape, codebook_size(&c));
    if (plan->n_coarse > 0) run_key(&run, "n_coarse", "%zu", plan->n_coarse);
    status = run_resume(&run, &net.tape, err);
    stage_context context = { &c, &net, NULL };
    const run_stage stage = { &net.tape, &context, BETA2, DECAY, gpt_pass, gpt_report, NULL };
    if (status == TSAR_OK) status = run_steps(&run, &stage, err);
    if (status == TSAR_OK && run.step >= run.steps) {
        run_integers integers[2] = { { "tokenizer.merges", 2, { c.text.bpe.n_merges, 2 }, c.text.bpe.merges },
                                     { "ctf.cluster_of", 1, { codebook_size(&c), 0 }, c.cluster_of } };
        note_result(&run, plan, c.words);
        status = run_export(&run, &net.tape, plan->dtype, integers, c.cluster_of ? 2 : 1, plan->vq_file ? NULL : c.vq, RUN_TAKE_TOKENIZER, err);
    }
    gpt_close(&net);
    corpus_close(&c);
    return status;
}

static void describe_fine(train_run *run, const fine_shape *shape)
{
    run_key(run, "fine_dim", "%zu", shape->dim);
    run_key(run, "fine_n_layer", "%zu", shape->n_layer);
    run_key(run, "fine_n_head", "%zu", shape->n_head);
    run_key(run, "fine_ffn_hidden", "%zu", shape->ffn);
    run_key(run, "n_coarse", "%zu", shape->n_coarse);
    run_key(run, "codebook_size", "%zu", shape->K);
    run_key(run, "grid_h", "%zu", shape->grid);
    run_key(run, "grid_w", "%zu", shape->grid);
    run_key(run, "norm_eps", "%g", shape->eps);
    run_key(run, "rope_base", "%g", shape->rope_base);
}

/* Opens stage one, which the result is joined with: it must have a transformer, of the labels that stage two is trained on. */
static tsar_status open_stage_one(tsar_file **file, const gpt_plan *plan, const corpus *c, size_t K, tsar_error *err)
{
    tsar_status status = tsar_file_open(file, plan->stage_one, err);
    if (status != TSAR_OK) return status;
    const tsar_tensor *labels = tsar_file_find(*file, "ctf.cluster_of");
    int64_t *theirs = tsar_alloc(K, sizeof *theirs, "cluster labels", err);
    if (!theirs) return TSAR_ROOM;
    const char *n_coarse = tsar_file_meta(*file, "n_coarse");
    if (!labels || labels->count != K || !n_coarse || strtoull(n_coarse, NULL, 10) != plan->n_coarse || !tsar_file_find(*file, "gpt.output.weight"))
        status =
            tsar_fail(err, TSAR_INPUT, "%s: is no stage one of %zu labels for %zu codes; give what train coarse makes", plan->stage_one, plan->n_coarse, K);
    if (status == TSAR_OK) status = tsar_file_read_i64(*file, labels, 0, K, theirs, err);
    if (status == TSAR_OK && memcmp(theirs, c->cluster_of, K * sizeof *theirs) != 0)
        status = tsar_fail(err, TSAR_INPUT, "%s: its labels are not those of --coarse %zu, --seed and --vq here; give stage one's own", plan->stage_one,
                           plan->n_coarse);
    tsar_free(theirs);
    return status;
}

tsar_status train_fine(const gpt_plan *plan, tsar_error *err)
{
    corpus c;
    fine_net net;
    tsar_file *coarse = NULL;
    tsar_status status = corpus_open(&c, plan, err);
    if (status != TSAR_OK) return status;
    fine_shape shape = plan->fine;
    shape.n_coarse = plan->n_coarse;
    shape.K = codebook_size(&c);
    shape.grid = c.codes.grid;
    if (plan->stage_one) status = open_stage_one(&coarse, plan, &c, shape.K, err);
    if (status == TSAR_OK) status = fine_open(&net, &shape, c.cluster_of, plan->batch, plan->seed, plan->threads, err);
    if (status != TSAR_OK) {
        tsar_file_close(coarse);
        corpus_close(&c);
        return status;
    }
    train_run run = new_run("fine", plan);
    describe_fine(&run, &shape);
    status = run_resume(&run, &net.tape, err);
    stage_context context = { &c, NULL, &net };
    const run_stage stage = { &net.tape, &context, BETA2, DECAY, fine_pass, fine_report, NULL };
    if (status == TSAR_OK) status = run_steps(&run, &stage, err);
    if (status == TSAR_OK && run.step >= run.steps) {
        run_part part = plan->vq_file ? RUN_TAKE_ALL_BUT_TOKENIZER : RUN_TAKE_ALL;
        run_note(&run, "vq_file", plan->vq_file);
        status = run_export(&run, &net.tape, plan->dtype, NULL, 0, coarse, part, err);
    }
    tsar_file_close(coarse);
    fine_close(&net);
    corpus_close(&c);
    return status;
}

/* ------------------------------------------------------------------------------------------------------------ traces */

static const char *meta_of_file(const void *file, const char *key) { return tsar_file_meta(file, key); }

/* Codes (or labels) of a trace: any will do. */
static void trace_codes(int64_t *codes, size_t N, size_t V, uint64_t seed)
{
    for (size_t i = 0; i < N; i++) codes[i] = (int64_t)((tsar_mix(seed + i) >> 33) % V);
}

static gpt_shape shape_of(const tsar_config *c)
{
    return (gpt_shape){ c->dim,   c->n_layer, c->n_head, c->ffn_hidden, c->shuffle,   c->shuffle_blocks, c->shuffle_hidden, c->text_vocab,
                        c->vocab, c->grid_h,  c->eol,    c->norm_eps,   c->rope_base, c->rope_2d,        c->eol >= 0 };
}

/* Whether the file has what is trained here: a square grid, and stage two or a token-shuffle transformer. */
static tsar_status check_trained(const tsar_config *c, int fine, const char *path, tsar_error *err)
{
    if (c->grid_h == c->grid_w && c->grid_h * c->grid_w <= MAX_CODES && (fine ? c->has_fine : c->arch == TSAR_TOKEN_SHUFFLE && c->n_kv_head == c->n_head))
        return TSAR_OK;
    return tsar_fail(err, TSAR_INPUT, "%s holds no %s of the kind that is trained here", path, fine ? "stage two" : "token-shuffle transformer");
}

/* Writes the forward pass of the transformer in `file` over `prompt` and some codes. */
static tsar_status trace_gpt(tsar_file *file, const tsar_config *c, const tsar_model *model, const char *prompt, const char *path, size_t threads,
                             tsar_error *err)
{
    gpt_net net;
    const gpt_shape shape = shape_of(c);
    int64_t *ids, codes[MAX_CODES];
    size_t n;
    tsar_status status = tsar_text_encode(model, prompt, &ids, &n, err);
    if (status != TSAR_OK) return status;
    status = gpt_open(&net, &shape, 1, n, 0, threads, err);
    if (status != TSAR_OK) {
        tsar_free(ids);
        return status;
    }
    status = run_load(&net.tape, file, "gpt.", err);
    if (status == TSAR_OK) {
        train_run run = { 0 };
        trace_codes(codes, shape.grid * shape.grid, shape.V, 1);
        gpt_begin(&net, net.n);
        gpt_sequence(&net, 0, ids, n, codes, 1);
        gpt_end(&net);
        train_forward(&net.tape);
        const run_input inputs[2] = { { "input.text", TSAR_I64, 1, { n, 0, 0 }, ids },
                                      { c->n_coarse ? "input.coarse" : "input.codes", TSAR_I64, 2, { shape.grid, shape.grid, 0 }, codes } };
        describe_gpt(&run, &shape, c->codebook_size);
        status = run_trace(&run, &net.tape, path, inputs, 2, err);
    }
    gpt_close(&net);
    tsar_free(ids);
    return status;
}

static tsar_status trace_fine(tsar_file *file, const tsar_config *c, const int64_t *cluster_of, const char *path, size_t threads, tsar_error *err)
{
    fine_net net;
    fine_shape shape = { c->fine_dim,      c->fine_n_layer, c->fine_n_head, c->fine_ffn_hidden, c->n_coarse,
                     c->codebook_size, c->grid_h,       c->norm_eps,    c->rope_base };
    int64_t codes[MAX_CODES];
    tsar_status status = fine_open(&net, &shape, cluster_of, 1, 0, threads, err);
    if (status != TSAR_OK) return status;
    status = run_load(&net.tape, file, "fine.", err);
    if (status == TSAR_OK) {
        train_run run = { 0 };
        trace_codes(codes, shape.grid * shape.grid, shape.K, 2);
        fine_sequence(&net, 0, codes);
        train_forward(&net.tape);
        const run_input inputs[1] = { { "input.coarse", TSAR_I64, 2, { shape.grid, shape.grid, 0 }, net.label_index } };
        describe_fine(&run, &shape);
        status = run_trace(&run, &net.tape, path, inputs, 1, err);
    }
    fine_close(&net);
    return status;
}

tsar_status train_trace(const char *path, int fine, const char *prompt, const char *output, size_t threads, tsar_error *err)
{
    tsar_file *file;
    tsar_model *model = NULL;
    tsar_config c;
    tsar_status status = tsar_file_open(&file, path, err);
    if (status != TSAR_OK) return status;
    status = tsar_config_read(&c, meta_of_file, file, path, err);
    if (status == TSAR_OK) status = tsar_model_open(&model, path, TSAR_PART_ALL, 1, err);
    if (status == TSAR_OK) status = check_trained(&c, fine, path, err);
    if (status == TSAR_OK)
        status = fine ? trace_fine(file, &c, model->cluster_of, output, threads, err) : trace_gpt(file, &c, model, prompt, output, threads, err);
    if (model) tsar_model_close(model);
    tsar_file_close(file);
    return status;
}

/* ------------------------------------------------------------------------------------------------------------- loss */

/* A mean over pictures, and half the width of its 95 % interval. */
typedef struct {
    double sum, squares;
    size_t n;
} average;

static void average_add(average *a, double x)
{
    a->sum += x;
    a->squares += x * x;
    a->n++;
}

static double average_half(const average *a)
{
    const double n = (double)a->n, variance = n > 1.0 ? (a->squares - a->sum * a->sum / n) / (n - 1.0) : 0.0;
    return variance > 0.0 ? 1.959964 * sqrt(variance / n) : 0.0;
}

/* Cross entropy of a picture's codes, a mean over them in nats. */
static tsar_status picture_loss(gpt_net *net, const corpus *c, uint64_t picture, int dropped, double *loss, tsar_error *err)
{
    gpt_begin(net, net->n - 1);
    tsar_status status = add_picture(net, c, picture, 0, dropped, err);
    if (status != TSAR_OK) return status;
    gpt_end(net);
    train_forward(&net->tape);
    gpt_loss(net, 0.0);
    *loss = net->loss_image;
    return TSAR_OK;
}

/* The last n pictures of the corpus. */
static tsar_status print_losses(gpt_net *net, const corpus *c, size_t n, tsar_error *err)
{
    const double N = (double)(c->codes.grid * c->codes.grid);
    average with = { 0.0, 0.0, 0 }, gain = { 0.0, 0.0, 0 };
    double loss[2] = { 0.0, 0.0 };
    tsar_status status = TSAR_OK;
    for (size_t i = 0; i < n && status == TSAR_OK; i++) {
        for (int dropped = 0; dropped < 2 && status == TSAR_OK; dropped++) status = picture_loss(net, c, c->codes.count - n + i, dropped, &loss[dropped], err);
        average_add(&with, loss[0]);
        average_add(&gain, N * (loss[1] - loss[0]));
    }
    if (status == TSAR_OK)
        printf("%.4f +- %.4f nats a code; its caption tells %.2f +- %.2f nats of a picture (%zu pictures)\n", with.sum / (double)n, average_half(&with),
               gain.sum / (double)n, average_half(&gain), n);
    return status;
}

tsar_status train_loss(const gpt_plan *plan, const char *path, size_t n, tsar_error *err)
{
    corpus c;
    gpt_net net;
    tsar_file *file;
    tsar_config config;
    tsar_status status = tsar_file_open(&file, path, err);
    if (status != TSAR_OK) return status;
    status = tsar_config_read(&config, meta_of_file, file, path, err);
    if (status == TSAR_OK) status = check_trained(&config, 0, path, err);
    if (status == TSAR_OK) status = corpus_open(&c, plan, err);
    if (status != TSAR_OK) {
        tsar_file_close(file);
        return status;
    }
    const gpt_shape shape = shape_of(&config);
    if (shape.grid != c.codes.grid || shape.text_vocab != c.text.config.text_vocab || shape.V != codebook_size(&c))
        status = tsar_fail(err, TSAR_INPUT, "%s is of a grid of %zu with %zu ids and %zu codes (labels), %s of %zu with %zu and %zu", path, shape.grid,
                           shape.text_vocab, shape.V, plan->codes, c.codes.grid, c.text.config.text_vocab, codebook_size(&c));
    if (status == TSAR_OK && (n < 2 || n > c.codes.count))
        status = tsar_fail(err, TSAR_USAGE, "-n is 2 to %zu, the pictures of %s, not %zu", c.codes.count, plan->codes, n);
    if (status == TSAR_OK) status = gpt_open(&net, &shape, 1, MAX_PREFIX, 0, plan->threads, err);
    if (status == TSAR_OK) {
        status = run_load(&net.tape, file, "gpt.", err);
        if (status == TSAR_OK) status = print_losses(&net, &c, n, err);
        gpt_close(&net);
    }
    corpus_close(&c);
    tsar_file_close(file);
    return status;
}
