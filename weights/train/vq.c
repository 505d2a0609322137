/* Training the image tokenizer: VQGAN's encoder, quantizer and decoder (SPEC 4) with the losses of VQ-VAE (arXiv
 * 1711.00937) on unit-length codes (arXiv 2110.04627). See vq.h. */
#include "vq.h"
#include "scenes.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

vq_shape vq_standard(void)
{
    vq_shape shape = { SCENE_SIDE, 16, 4, { 1, 2, 4, 8 }, 1, 64, 512, 8, 4 };
    return shape;
}

/* --------------------------------------------------------------------------------------------------------- network */

#define FORMAT(text, ...) (snprintf(text, sizeof text, __VA_ARGS__), text)

/* x + conv2(swish(norm2(conv1(swish(norm1(x)))))), with a 1 x 1 shortcut where the width changes. */
static size_t resblock(vq_net *net, size_t in, const char *prefix, size_t out_channels)
{
    train_tape *t = &net->tape;
    char name[128];
    size_t C = t->status == TSAR_OK ? t->values[in].C : 0;
    size_t h = train_group_norm(t, in, FORMAT(name, "%s.norm1", prefix), net->shape.groups, 1);
    h = train_conv(t, h, FORMAT(name, "%s.conv1", prefix), out_channels, 3, 1, 1);
    h = train_group_norm(t, h, FORMAT(name, "%s.norm2", prefix), net->shape.groups, 1);
    h = train_conv(t, h, FORMAT(name, "%s.conv2", prefix), out_channels, 3, 1, 1);
    size_t skip = C == out_channels ? in : train_conv(t, in, FORMAT(name, "%s.nin_shortcut", prefix), out_channels, 1, 1, 1);
    return train_add(t, skip, h);
}

/* x + proj_out(attention(q, k, v)) over the positions of each picture, one head. */
static size_t attention_block(vq_net *net, size_t in, const char *prefix)
{
    train_tape *t = &net->tape;
    char name[128];
    size_t C = t->status == TSAR_OK ? t->values[in].C : 0;
    size_t n = train_group_norm(t, in, FORMAT(name, "%s.norm", prefix), net->shape.groups, 0);
    size_t q = train_conv(t, n, FORMAT(name, "%s.q", prefix), C, 1, 1, 0);
    size_t k = train_conv(t, n, FORMAT(name, "%s.k", prefix), C, 1, 1, 0);
    size_t v = train_conv(t, n, FORMAT(name, "%s.v", prefix), C, 1, 1, 0);
    size_t mixed = train_attention(t, q, k, v, 1, &net->ragged, 0, NULL, NULL);
    return train_add(t, in, train_conv(t, mixed, FORMAT(name, "%s.proj_out", prefix), C, 1, 1, 1));
}

static size_t middle(vq_net *net, size_t h, const char *part, size_t width)
{
    char name[128];
    h = resblock(net, h, FORMAT(name, "vq.%s.mid.0", part), width);
    train_name(&net->tape, h, "vq.%s.mid.0", part);
    h = attention_block(net, h, FORMAT(name, "vq.%s.mid.1", part));
    train_name(&net->tape, h, "vq.%s.mid.1", part);
    h = resblock(net, h, FORMAT(name, "vq.%s.mid.2", part), width);
    train_name(&net->tape, h, "vq.%s.mid.2", part);
    return h;
}

static size_t level(vq_net *net, size_t h, const char *part, size_t i, size_t blocks, size_t width, int lowest)
{
    char name[128];
    for (size_t b = 0; b < blocks; b++) {
        h = resblock(net, h, FORMAT(name, "vq.%s.conv_blocks.%zu.res.%zu", part, i, b), width);
        if (lowest) h = attention_block(net, h, FORMAT(name, "vq.%s.conv_blocks.%zu.attn.%zu", part, i, b));
    }
    return h;
}

static size_t encoder(vq_net *net, size_t image)
{
    const vq_shape *shape = &net->shape;
    train_tape *t = &net->tape;
    char name[128];
    size_t last = shape->levels - 1, deepest = shape->ch * shape->mult[last];
    size_t h = train_conv(t, image, "vq.encoder.conv_in", shape->ch, 3, 1, 1);
    train_name(t, h, "vq.encoder.conv_in");
    for (size_t i = 0; i <= last; i++) {
        h = level(net, h, "encoder", i, shape->res_blocks, shape->ch * shape->mult[i], i == last);
        if (i < last) h = train_conv(t, h, FORMAT(name, "vq.encoder.conv_blocks.%zu.downsample.conv", i), shape->ch * shape->mult[i], 3, 2, 1);
        train_name(t, h, "vq.encoder.block.%zu", i);
    }
    h = middle(net, h, "encoder", deepest);
    h = train_group_norm(t, h, "vq.encoder.norm_out", shape->groups, 1);
    h = train_conv(t, h, "vq.encoder.conv_out", shape->z, 3, 1, 1);
    train_name(t, h, "vq.encoder.conv_out");
    h = train_conv(t, h, "vq.quant_conv", shape->embed, 1, 1, 0);
    train_name(t, h, "vq.latent");
    return h;
}

static size_t decoder(vq_net *net, size_t h)
{
    const vq_shape *shape = &net->shape;
    train_tape *t = &net->tape;
    char name[128];
    size_t last = shape->levels - 1, deepest = shape->ch * shape->mult[last];
    h = train_conv(t, h, "vq.post_quant_conv", shape->z, 1, 1, 1);
    train_name(t, h, "vq.decoder.post_quant");
    h = train_conv(t, h, "vq.decoder.conv_in", deepest, 3, 1, 1);
    train_name(t, h, "vq.decoder.conv_in");
    h = middle(net, h, "decoder", deepest);
    for (size_t i = 0; i <= last; i++) {
        h = level(net, h, "decoder", i, shape->res_blocks + 1, shape->ch * shape->mult[last - i], i == 0);
        if (i < last)
            h = train_conv(t, train_upsample(t, h), FORMAT(name, "vq.decoder.conv_blocks.%zu.upsample.conv", i), shape->ch * shape->mult[last - i], 3, 1, 1);
        train_name(t, h, "vq.decoder.block.%zu", i);
    }
    h = train_group_norm(t, h, "vq.decoder.norm_out", shape->groups, 1);
    h = train_conv(t, h, "vq.decoder.conv_out", 3, 3, 1, 1);
    train_name(t, h, "vq.decoder.conv_out");
    return h;
}

/* ------------------------------------------------------------------------------------------------------- quantizer */

/* y = x / max(|x|, 1e-12), n vectors x of E; norms [n]. */
static void normalise(real *y, real *norms, const real *x, size_t n, size_t E)
{
    for (size_t i = 0; i < n; i++) {
        real sum = 0;
        for (size_t k = 0; k < E; k++) sum += x[i * E + k] * x[i * E + k];
        norms[i] = (real)sqrt((double)sum);
        norms[i] = norms[i] > (real)1e-12 ? norms[i] : (real)1e-12;
        for (size_t k = 0; k < E; k++) y[i * E + k] = x[i * E + k] / norms[i];
    }
}

/* dx (+)= (dy - y (y . dy)) / |x| for one row. */
static void normalise_backward(real *dx, const real *dy, const real *y, real norm, size_t E)
{
    real along = 0;
    for (size_t k = 0; k < E; k++) along += y[k] * dy[k];
    for (size_t k = 0; k < E; k++) dx[k] += (dy[k] - y[k] * along) / norm;
}

/* The code of each latent: argmin |z|^2 + |e|^2 - 2 z.e, the lower index of equals. */
static void choose_codes(vq_net *net)
{
    size_t E = net->shape.embed, K = net->shape.K;
    TSAR_PARALLEL_FOR(net->tape.threads)
    for (ptrdiff_t i = 0; i < (ptrdiff_t)net->n_codes; i++) {
        const real *z = net->unit + (size_t)i * E;
        real nearest = 1000;
        for (size_t c = 0; c < K; c++) {
            const real *e = net->words + c * E;
            real zz = 0, ee = 0, ze = 0;
            for (size_t k = 0; k < E; k++) {
                zz += z[k] * z[k];
                ee += e[k] * e[k];
                ze += z[k] * e[k];
            }
            real distance = zz + ee - 2 * ze;
            if (distance < nearest) {
                nearest = distance;
                net->codes[i] = (int64_t)c;
            }
        }
    }
}

/* out = e(code), passed on straight through: out = z + sg(e - z). The codebook's loss: mean |e - sg z|^2 + 0.25 mean |z - sg e|^2
 * over n_codes * embed numbers. When frozen, sg(...) and the codes are those of the last free pass. */
static void quantize_forward(train_tape *tape, train_node *node)
{
    vq_net *net = node->context;
    size_t E = net->shape.embed, n = net->n_codes * E;
    real *out = tape->values[node->out].x;
    normalise(net->unit, net->norms, tape->values[node->in[0]].x, net->n_codes, E);
    normalise(net->words, net->norms + net->n_codes, tape->params[net->codebook].w, net->shape.K, E);
    if (!net->frozen) {
        choose_codes(net);
        memcpy(net->held_unit, net->unit, n * sizeof(real));
        for (size_t i = 0; i < net->n_codes; i++) memcpy(net->held_words + i * E, net->words + (size_t)net->codes[i] * E, E * sizeof(real));
    }
    double codebook = 0.0, commitment = 0.0;
    for (size_t i = 0; i < n; i++) {
        real e = net->words[(size_t)net->codes[i / E] * E + i % E], z = net->unit[i];
        out[i] = net->open ? z : net->frozen ? z + (net->held_words[i] - net->held_unit[i]) : e;
        double a = (double)(e - net->held_unit[i]), b = (double)(z - net->held_words[i]);
        codebook += a * a;
        commitment += b * b;
    }
    net->loss_codebook = net->open ? 0.0 : (codebook + 0.25 * commitment) / (double)n;
    for (size_t i = 0; i < net->n_codes && !net->frozen; i++) net->used[net->codes[i]]++;
}

static void quantize_backward(train_tape *tape, train_node *node)
{
    vq_net *net = node->context;
    size_t E = net->shape.embed;
    train_value *in = &tape->values[node->in[0]];
    const real *dy = tape->values[node->out].g;
    real scale = net->open ? 0 : (real)(2.0 / (double)(net->n_codes * E)), g[64];
    in->has_g = 1;
    memset(in->g, 0, net->n_codes * E * sizeof(real));
    for (size_t i = 0; i < net->n_codes; i++) {
        const real *z = net->unit + i * E, *e = net->words + (size_t)net->codes[i] * E;
        for (size_t k = 0; k < E; k++) g[k] = dy[i * E + k] + (real)0.25 * scale * (z[k] - e[k]);
        normalise_backward(in->g + i * E, g, z, net->norms[i], E);
        for (size_t k = 0; k < E; k++) g[k] = scale * (e[k] - z[k]);
        normalise_backward(tape->params[net->codebook].g + (size_t)net->codes[i] * E, g, e, net->norms[net->n_codes + (size_t)net->codes[i]], E);
    }
}

static size_t quantizer(vq_net *net, size_t latent)
{
    train_tape *t = &net->tape;
    const size_t shape[2] = { net->shape.K, net->shape.embed };
    net->codebook = train_param_new(t, "vq.quantize.embedding.weight", 2, shape, 0.0, 1.0);
    if (t->status != TSAR_OK) return 0;
    train_value like = t->values[latent];
    size_t out = train_value_new(t, like.B, like.H, like.W, like.C, 0);
    train_name(t, out, "vq.quantized");
    train_node *node = train_node_new(t);
    if (!node) return 0;
    node->in[0] = latent;
    node->out = out;
    node->context = net;
    node->forward = quantize_forward;
    node->backward = quantize_backward;
    return out;
}

/* ------------------------------------------------------------------------------------------------- the whole network */

tsar_status vq_open(vq_net *net, const vq_shape *shape, size_t B, uint64_t seed, size_t threads, tsar_error *err)
{
    memset(net, 0, sizeof *net);
    net->shape = *shape;
    net->B = B;
    train_tape *t = &net->tape;
    train_tape_open(t, seed, threads);
    size_t h = shape->side >> (shape->levels - 1), E = shape->embed;
    net->n_codes = B * h * h;
    const tsar_status room = train_ragged_open(&net->ragged, B, h * h, err);
    net->codes = tsar_alloc(net->n_codes, sizeof *net->codes, "the tokenizer", err);
    net->used = tsar_alloc(shape->K, sizeof *net->used, "the tokenizer", err);
    net->unit = train_keep(t, (3 * net->n_codes + shape->K) * E + net->n_codes + shape->K);
    if (room != TSAR_OK || !net->codes || !net->used || t->status != TSAR_OK) {
        vq_close(net);
        return tsar_fail(err, TSAR_ROOM, "out of memory for the tokenizer");
    }
    net->words = net->unit + net->n_codes * E;
    net->held_words = net->words + shape->K * E;
    net->held_unit = net->held_words + net->n_codes * E;
    net->norms = net->held_unit + net->n_codes * E;
    net->image = train_value_new(t, B, shape->side, shape->side, 3, 1);
    if (t->status == TSAR_OK) {
        tsar_free(t->values[net->image].g); /* pixels need no gradient */
        t->values[net->image].g = NULL;
    }
    net->latent = encoder(net, net->image);
    net->quantized = quantizer(net, net->latent);
    net->first_decoder_node = t->n_nodes;
    net->output = decoder(net, net->quantized);
    if (t->status == TSAR_OK) return TSAR_OK;
    *err = t->err;
    vq_close(net);
    return TSAR_ROOM;
}

void vq_close(vq_net *net)
{
    train_tape_close(&net->tape);
    train_ragged_close(&net->ragged);
    tsar_free(net->codes);
    tsar_free(net->used);
    tsar_free(net->unit);
    memset(net, 0, sizeof *net);
}

void vq_set_image(vq_net *net, size_t b, const uint8_t *rgb)
{
    train_value *t = &net->tape.values[net->image];
    for (size_t y = 0; y < t->H; y++) {
        real *x = t->x + train_at(t, b, (ptrdiff_t)y, 0);
        for (size_t i = 0; i < t->W * 3; i++) x[i] = (real)((double)rgb[y * t->W * 3 + i] / 127.5 - 1.0);
    }
}

void vq_forward(vq_net *net) { train_forward(&net->tape); }

void vq_encode(vq_net *net)
{
    for (size_t i = 0; i < net->first_decoder_node; i++) net->tape.nodes[i].forward(&net->tape, &net->tape.nodes[i]);
}

/* Squared error and absolute error of every channel value, by rows of pixels, then over rows. */
double vq_loss(vq_net *net)
{
    const train_value *x = &net->tape.values[net->image], *y = &net->tape.values[net->output];
    double count = (double)(y->B * y->H * y->W * 3), square = 0.0, absolute = 0.0;
    const real a = (real)(2.0 / count), b = (real)(0.3 / count);
    for (size_t row = 0; row < y->B * y->H; row++) {
        size_t at = train_at(y, row / y->H, (ptrdiff_t)(row % y->H), 0);
        const real *x_row = x->x + train_at(x, row / y->H, (ptrdiff_t)(row % y->H), 0);
        double square_row = 0.0, absolute_row = 0.0;
        for (size_t i = 0; i < y->W * 3; i++) {
            real d = y->x[at + i] - x_row[i];
            y->g[at + i] = a * d + (d > 0 ? b : d < 0 ? -b : 0);
            square_row += (double)d * (double)d;
            absolute_row += fabs((double)d);
        }
        square += square_row;
        absolute += absolute_row;
    }
    net->loss_square = square / count;
    net->loss_abs = absolute / count;
    return net->loss_square + 0.3 * net->loss_abs + net->loss_codebook;
}

void vq_backward(vq_net *net) { train_backward(&net->tape, &net->output, 1); }

size_t vq_revive(vq_net *net, uint64_t seed, uint64_t step, int all)
{
    size_t E = net->shape.embed, revived = 0;
    train_param *codebook = &net->tape.params[net->codebook];
    scene_stream stream = scene_stream_open(seed ^ UINT64_C(0x5245564956450000), step);
    for (size_t c = 0; c < net->shape.K; c++) {
        if (all || net->used[c] == 0) {
            size_t i = scene_below(&stream, net->n_codes);
            memcpy(codebook->w + c * E, net->unit + i * E, E * sizeof(real));
            memset(codebook->m + c * E, 0, E * sizeof(real));
            memset(codebook->v + c * E, 0, E * sizeof(real));
            revived++;
        }
        net->used[c] = 0;
    }
    return revived;
}

/* --------------------------------------------------------------------------------------------------------- training */

static void describe(train_run *run, const vq_shape *shape)
{
    char list[64] = "";
    for (size_t i = 0; i < shape->levels; i++) snprintf(list + strlen(list), sizeof list - strlen(list), i ? ",%zu" : "%zu", shape->mult[i]);
    run_key(run, "vq_ch", "%zu", shape->ch);
    run_key(run, "vq_ch_mult", "%s", list);
    run_key(run, "vq_res_blocks", "%zu", shape->res_blocks);
    run_key(run, "vq_z_channels", "%zu", shape->z);
    run_key(run, "vq_embed_dim", "%zu", shape->embed);
    run_key(run, "vq_l2_norm", "1");
    run_key(run, "vq_groups", "%zu", shape->groups);
    run_key(run, "codebook_size", "%zu", shape->K);
}

#define REVIVE_EVERY 25

void vq_draw(vq_net *net, uint64_t seed, uint64_t first, int wide)
{
    TSAR_PARALLEL_FOR(net->tape.threads)
    for (ptrdiff_t b = 0; b < (ptrdiff_t)net->B; b++) {
        scene s;
        uint8_t rgb[SCENE_SIDE * SCENE_SIDE * 3];
        if (wide)
            scene_draw_wide(&s, seed, first + (uint64_t)b);
        else
            scene_draw(&s, seed, first + (uint64_t)b, -1, 0);
        scene_render(&s, rgb);
        vq_set_image(net, (size_t)b, rgb);
    }
}

static size_t codes_in_use(const vq_net *net)
{
    size_t n = 0;
    for (size_t c = 0; c < net->shape.K; c++) n += net->used[c] > 0;
    return n;
}

static train_run new_vq_run(const vq_plan *plan, int64_t *used)
{
    train_run run;
    memset(&run, 0, sizeof run);
    run.stage = "vq";
    run.checkpoint = plan->checkpoint;
    run.output = plan->output;
    run.seed = plan->seed;
    run.steps = plan->steps;
    run.batch = plan->batch;
    run.rate = plan->rate;
    run.rate_end = plan->rate_end;
    run.warm_up = 100;
    run.rate_steps = plan->rate_steps ? plan->rate_steps : plan->steps;
    run.finish_from = plan->finish_from ? plan->finish_from : plan->steps;
    run.minutes = plan->minutes;
    run.stop_after = plan->stop_after;
    run.state.name = "train.used";
    run.state.rank = 1;
    run.state.shape[0] = plan->shape.K;
    run.state.values = used;
    return run;
}

typedef struct {
    vq_net net;
    const vq_plan *plan;
    size_t in_use; /* codes that the last 25 steps used */
} vq_context;

static tsar_status vq_pass(void *context, const train_run *run, double *figure, tsar_error *err)
{
    vq_context *c = context;
    (void)err;
    vq_draw(&c->net, run->seed, run->step * c->net.B, 1);
    c->net.open = run->step < c->plan->open_until; /* the codebook is put in when the latents have spread */
    vq_forward(&c->net);
    figure[0] = vq_loss(&c->net);
    figure[1] = c->net.loss_square;
    figure[2] = c->net.loss_codebook;
    vq_backward(&c->net);
    return TSAR_OK;
}

static void vq_report(const void *context, train_run *run, const double *mean, double norm)
{
    const vq_context *c = context;
    run_report(run, "loss %.5f  PSNR %.2f dB  codebook %.4f  codes %zu  gradient %.3f", mean[0], 20.0 * 0.30102999566 - 10.0 * tsar_log(mean[1]) / 2.302585093,
               mean[2], c->in_use ? c->in_use : codes_in_use(&c->net), norm);
}

static void vq_after(void *context, const train_run *run)
{
    vq_context *c = context;
    if ((run->step + 1) % REVIVE_EVERY == 0) {
        c->in_use = codes_in_use(&c->net);
        if (!c->net.open && (double)run->step < 0.7 * (double)run->steps)
            vq_revive(&c->net, run->seed, run->step, 0);
        else
            memset(c->net.used, 0, c->net.shape.K * sizeof *c->net.used);
    }
    if (run->step + 1 == c->plan->open_until) vq_revive(&c->net, run->seed, run->step, 1);
}

tsar_status train_vq(const vq_plan *plan, tsar_error *err)
{
    vq_context c = { .plan = plan };
    tsar_status status = vq_open(&c.net, &plan->shape, plan->batch, plan->seed, plan->threads, err);
    if (status != TSAR_OK) return status;
    train_run run = new_vq_run(plan, c.net.used);
    const run_stage stage = { &c.net.tape, &c, 0.99, 0.0, vq_pass, vq_report, vq_after };
    describe(&run, &plan->shape);
    status = run_resume(&run, &c.net.tape, err);
    if (status == TSAR_OK) status = run_steps(&run, &stage, err);
    if (status == TSAR_OK && run.step >= run.steps) status = run_export(&run, &c.net.tape, plan->dtype, NULL, 0, NULL, RUN_TAKE_TOKENIZER, err);
    vq_close(&c.net);
    return status;
}

/* ------------------------------------------------------------------------------------------------------ from a file */

static const char *meta_of(const void *file, const char *key) { return tsar_file_meta(file, key); }

tsar_status vq_open_file(vq_net *net, const char *path, size_t B, size_t threads, tsar_error *err)
{
    tsar_file *file;
    tsar_config c;
    memset(net, 0, sizeof *net);
    tsar_status status = tsar_file_open(&file, path, err);
    if (status != TSAR_OK) return status;
    status = tsar_config_read(&c, meta_of, file, path, err);
    if (status == TSAR_OK && (!c.has_vq || !c.vq_l2_norm || c.vq_embed_dim > 64))
        status = tsar_fail(err, TSAR_INPUT, "%s has no image tokenizer with unit-length codes, which the trainer needs", path);
    if (status == TSAR_OK) {
        vq_shape shape = { SCENE_SIDE, c.vq_ch, c.vq_levels, { 0 }, c.vq_res_blocks, c.vq_z_channels, c.codebook_size, c.vq_embed_dim, c.vq_groups };
        memcpy(shape.mult, c.vq_ch_mult, sizeof shape.mult);
        status = vq_open(net, &shape, B, 0, threads, err);
        if (status == TSAR_OK) status = run_load(&net->tape, file, "vq.", err);
        if (status != TSAR_OK) vq_close(net);
    }
    tsar_file_close(file);
    return status;
}

tsar_status train_vq_trace(const char *model, uint64_t seed, uint64_t index, const char *path, size_t threads, tsar_error *err)
{
    vq_net net;
    scene s;
    uint8_t rgb[SCENE_SIDE * SCENE_SIDE * 3];
    tsar_status status = vq_open_file(&net, model, 1, threads, err);
    if (status != TSAR_OK) return status;
    scene_draw(&s, seed, index, -1, 0);
    scene_render(&s, rgb);
    vq_set_image(&net, 0, rgb);
    vq_forward(&net);
    train_run run = { 0 };
    describe(&run, &net.shape);
    size_t h = net.shape.side >> (net.shape.levels - 1);
    const run_input inputs[2] = { { "input.image", TSAR_U8, 3, { SCENE_SIDE, SCENE_SIDE, 3 }, rgb }, { "vq.codes", TSAR_I64, 2, { h, h, 0 }, net.codes } };
    status = run_trace(&run, &net.tape, path, inputs, 2, err);
    vq_close(&net);
    return status;
}
