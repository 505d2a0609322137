/* The trainer, compiled here a second time with `real` = double; what is checked is the same code that trains in float.
 * Its forward pass is the oracle's, tensor by tensor to 1e-11, and its gradients are those of that forward pass, by finite differences. */
#define TRAIN_REAL double
#include "../weights/train/ops.c"
#include "../weights/train/tape.c"
#include "../weights/train/run.c"
#include "../weights/train/vq.c"
#include "../weights/train/gpt.c"
#include "../weights/train/merges.c"
#include "../weights/train/codes.c"

#include "test.h"

static double noise(uint64_t *counter) { return (double)(tsar_mix(0x7465737400u + ++*counter) >> 40) * 0x1p-23 - 1.0; }

typedef double (*loss_fn)(void *context);

/* Central differences of the loss along a random direction in each parameter, and along each of a few single elements, against the
 * gradient that `backward` left. */
static void check_gradients(train_tape *tape, loss_fn loss, void *context, double tolerance)
{
    uint64_t counter = 0;
    const double h = 1e-5;
    for (size_t i = 0; i < tape->n_params; i++) {
        train_param *p = &tape->params[i];
        double *keep = tsar_alloc(2 * p->n, sizeof *keep, "test", NULL), *direction = keep + p->n;
        memcpy(keep, p->w, p->n * sizeof *keep);
        for (int trial = 0; trial < 2; trial++) {
            double expected = 0.0, size = 0.0;
            for (size_t k = 0; k < p->n; k++) direction[k] = trial == 0 ? noise(&counter) / sqrt((double)p->n) : 0.0;
            if (trial > 0) direction[tsar_mix(++counter) % p->n] = 1.0;
            for (size_t k = 0; k < p->n; k++) {
                expected += direction[k] * p->g[k];
                size += fabs(direction[k] * p->g[k]);
            }
            double side[2];
            for (int s = 0; s < 2; s++) {
                for (size_t k = 0; k < p->n; k++) p->w[k] = keep[k] + (s ? -h : h) * direction[k];
                side[s] = loss(context);
            }
            memcpy(p->w, keep, p->n * sizeof *keep);
            double measured = (side[0] - side[1]) / (2.0 * h);
            CHECK(fabs(measured - expected) <= tolerance * (size + 1e-3), "%s: gradient %.12g, difference quotient %.12g", p->name, expected,
                  measured);
        }
        tsar_free(keep);
    }
}

/* Moves every parameter off its initial value. */
static void shake(train_tape *tape, uint64_t *counter)
{
    for (size_t i = 0; i < tape->n_params; i++)
        for (size_t k = 0; k < tape->params[i].n; k++) tape->params[i].w[k] += 0.1 * noise(counter);
}

static double vq_test_loss(void *context)
{
    vq_forward(context);
    return vq_loss(context);
}

static void test_vq_gradients(void)
{
    vq_shape shape = { 16, 2, 3, { 1, 2, 3 }, 1, 6, 12, 5, 2 };
    vq_net net;
    tsar_error err;
    uint64_t counter = 1000;
    CHECK(vq_open(&net, &shape, 2, 7, 2, &err) == TSAR_OK, "%s", err.text);
    train_value *image = &net.tape.values[net.image];
    for (size_t b = 0; b < 2; b++)
        for (size_t y = 0; y < 16; y++)
            for (size_t x = 0; x < 3 * 16; x++) image->x[train_at(image, b, (ptrdiff_t)y, 0) + x] = noise(&counter);
    shake(&net.tape, &counter);
    vq_forward(&net);
    net.frozen = 1;
    vq_test_loss(&net);
    vq_backward(&net);
    check_gradients(&net.tape, vq_test_loss, &net, 1e-6);
    vq_close(&net);
}

static double gpt_test_loss(void *context)
{
    gpt_net *net = context;
    train_forward(&net->tape);
    return gpt_loss(net, 1e-2);
}

/* Three sequences of unlike lengths, one of them without a caption. */
static void test_gpt_gradients(size_t s, int rope_2d, int row_ends)
{
    gpt_shape shape = { 16, 2, 2, 24, s, 2, 12, 9, 11, 4, 2, 1e-5, 10000.0, rope_2d, row_ends };
    gpt_net net;
    tsar_error err;
    uint64_t counter = 2000;
    int64_t codes[16], text[3][5] = { { 0, 4, 8, 1, 0 }, { 0, 1, 0, 0, 0 }, { 0, 3, 5, 7, 1 } };
    const size_t lengths[3] = { 4, 2, 5 };
    if (!CHECK(gpt_open(&net, &shape, 3, 6, 7, 2, &err) == TSAR_OK, "%s", err.text)) return;
    shake(&net.tape, &counter);
    gpt_begin(&net, s == 2 ? net.n : net.n - 1);
    for (size_t b = 0; b < 3; b++) {
        trace_codes(codes, 16, 11, 50 + b);
        gpt_sequence(&net, b, text[b], lengths[b], codes, b != 1);
    }
    gpt_end(&net);
    gpt_test_loss(&net);
    gpt_backward(&net);
    check_gradients(&net.tape, gpt_test_loss, &net, 1e-6);
    gpt_close(&net);
}

static double fine_test_loss(void *context)
{
    fine_net *net = context;
    train_forward(&net->tape);
    return fine_loss(net, 1e-2);
}

static void test_fine_gradients(void)
{
    const int64_t cluster_of[7] = { 0, 2, 1, 1, 2, 2, 1 };
    fine_shape shape = { 16, 2, 2, 24, 3, 7, 4, 1e-5, 10000.0 };
    fine_net net;
    tsar_error err;
    uint64_t counter = 3000;
    int64_t codes[16];
    if (!CHECK(fine_open(&net, &shape, cluster_of, 2, 7, 2, &err) == TSAR_OK, "%s", err.text)) return;
    shake(&net.tape, &counter);
    for (size_t b = 0; b < 2; b++) {
        trace_codes(codes, 16, 7, 90 + b);
        fine_sequence(&net, b, codes);
    }
    fine_test_loss(&net);
    fine_backward(&net);
    check_gradients(&net.tape, fine_test_loss, &net, 1e-6);
    fine_close(&net);
}

/* ------------------------------------------------------------------------------------------------ against the oracle */

#define MODEL_FILE "test_train.tmp"

/* Rounds the parameters to float, so that a file holds them exactly, and writes them with the keys of `run`. */
static tsar_model *as_model(train_run *run, train_tape *tape, const run_integers *integers, size_t n)
{
    tsar_error err = { "" };
    tsar_model *model = NULL;
    for (size_t i = 0; i < tape->n_params; i++)
        for (size_t k = 0; k < tape->params[i].n; k++) tape->params[i].w[k] = (float)tape->params[i].w[k];
    run->output = MODEL_FILE;
    tsar_status status = run_export(run, tape, TSAR_F32, integers, n, NULL, 0, &err);
    CHECK(status == TSAR_OK && tsar_model_open(&model, MODEL_FILE, TSAR_PART_ALL, 1, &err) == TSAR_OK, "%s", err.text);
    remove(MODEL_FILE);
    return model;
}

static size_t compared;

/* A sink that holds each tensor of the oracle against the value of that name on the tape. */
static tsar_status compare(void *context, const char *name, tsar_dtype dtype, size_t rank, const size_t *shape, void *data, tsar_error *err)
{
    const train_tape *tape = context;
    const double *theirs = data;
    (void)rank, (void)shape, (void)err;
    for (size_t i = 0; i < tape->n_values && dtype == TSAR_F64; i++) {
        const train_value *t = &tape->values[i];
        double worst = 0.0, square = 0.0;
        if (strcmp(t->name, name) != 0) continue;
        for (size_t c = 0; c < t->C; c++)
            for (size_t y = 0; y < t->H; y++)
                for (size_t x = 0; x < t->W; x++) {
                    double a = t->x[train_at(t, 0, (ptrdiff_t)y, (ptrdiff_t)(t->order ? t->order[x] : x)) + c],
                           b = theirs[t->H > 1 ? (c * t->H + y) * t->W + x : x * t->C + c];
                    worst = fabs(a - b) > worst ? fabs(a - b) : worst;
                    square += b * b;
                }
        CHECK(worst <= 1e-11 * sqrt(square / (double)(t->C * t->H * t->W)), "%s differs from the oracle's by %g", name, worst);
        compared++;
    }
    return TSAR_OK;
}

static void test_vq_oracle(void)
{
    vq_shape shape = { 16, 4, 3, { 1, 2, 3 }, 1, 8, 12, 5, 4 };
    vq_net net;
    tsar_error err;
    train_run run = { 0 };
    uint64_t counter = 4000;
    uint8_t rgb[16 * 16 * 3];
    int64_t codes[16];
    if (!CHECK(vq_open(&net, &shape, 1, 7, 1, &err) == TSAR_OK, "%s", err.text)) return;
    shake(&net.tape, &counter);
    describe(&run, &shape);
    tsar_model *model = as_model(&run, &net.tape, NULL, 0);
    for (size_t i = 0; i < sizeof rgb; i++) rgb[i] = (uint8_t)(tsar_mix(i) >> 56);
    vq_set_image(&net, 0, rgb);
    vq_forward(&net);
    tsar_sink sink = { .put = compare, .context = &net.tape };
    compared = 0;
    CHECK(model && tsar_vq_encode(model, rgb, 16, 16, codes, &sink, &err) == TSAR_OK, "%s", err.text);
    CHECK(model && tsar_vq_decode(model, codes, 4, 4, NULL, &sink, &err) == TSAR_OK, "%s", err.text);
    CHECK(compared >= 18, "only %zu tensors compared", compared);
    CHECK(memcmp(codes, net.codes, sizeof codes) == 0, "codes differ from the oracle's");
    tsar_model_close(model);
    vq_close(&net);
}

static void test_gpt_oracle(size_t s, int rope_2d, int row_ends)
{
    gpt_shape shape = { 16, 2, 2, 24, s, 2, 12, 9, 11, 4, 2, 1e-5, 10000.0, rope_2d, row_ends };
    gpt_net net;
    tsar_error err;
    train_run run = { 0 };
    uint64_t counter = 5000;
    const int64_t text[5] = { 0, 4, 8, 6, 1 };
    int64_t codes[16];
    if (!CHECK(gpt_open(&net, &shape, 1, 6, 7, 1, &err) == TSAR_OK, "%s", err.text)) return;
    shake(&net.tape, &counter);
    describe_gpt(&run, &shape, 11);
    tsar_model *model = as_model(&run, &net.tape, NULL, 0);
    trace_codes(codes, 16, 11, 60);
    gpt_begin(&net, net.n);
    gpt_sequence(&net, 0, text, 5, codes, 1);
    gpt_end(&net);
    train_forward(&net.tape);
    tsar_sink sink = { .put = compare, .context = &net.tape };
    tsar_prompt prompt = { 0 };
    prompt.text = text;
    prompt.n_text = 5;
    compared = 0;
    CHECK(model && tsar_gpt_trace(model, &prompt, codes, &sink, &err) == TSAR_OK, "%s", err.text);
    CHECK(compared >= (s == 1 ? 5u : 12u), "only %zu tensors compared", compared);
    tsar_model_close(model);
    gpt_close(&net);
}

static void test_fine_oracle(void)
{
    int64_t cluster_of[7] = { 0, 2, 1, 1, 2, 2, 1 }, codes[16];
    fine_shape shape = { 16, 2, 2, 24, 3, 7, 4, 1e-5, 10000.0 };
    fine_net net;
    tsar_error err;
    train_run run = { 0 };
    uint64_t counter = 6000;
    double hidden[16 * 16];
    if (!CHECK(fine_open(&net, &shape, cluster_of, 1, 7, 1, &err) == TSAR_OK, "%s", err.text)) return;
    shake(&net.tape, &counter);
    describe_fine(&run, &shape);
    const run_integers integers = { "ctf.cluster_of", 1, { 7, 0 }, cluster_of };
    tsar_model *model = as_model(&run, &net.tape, &integers, 1);
    trace_codes(codes, 16, 7, 70);
    fine_sequence(&net, 0, codes);
    train_forward(&net.tape);
    tsar_sink sink = { .put = compare, .context = &net.tape };
    compared = 0;
    CHECK(model && tsar_fine_hidden(model, net.label_index, hidden, &sink, &err) == TSAR_OK, "%s", err.text);
    CHECK(compared >= 4, "only %zu tensors compared", compared);
    tsar_model_close(model);
    fine_close(&net);
}

int main(void)
{
    test_vq_oracle();
    for (size_t s = 1; s <= 4; s *= 2)
        for (int kind = 0; kind < 4; kind++) {
            test_gpt_oracle(s, kind & 1, kind >> 1);
            test_gpt_gradients(s, kind & 1, kind >> 1);
        }
    test_fine_oracle();
    test_vq_gradients();
    test_fine_gradients();
    return test_end();
}
