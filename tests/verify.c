/* Traces and their comparison: is another implementation right, and if not, which tensor went wrong first? A trace is
 * streamed through a tsar_sink. tsar_verify compares every tensor with the other file as it passes and keeps nothing of it
 * but the latent, which tells a near-tie between two codes from an error. */
#include "../tsar.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { PART_GPT = 1, PART_FINE = 2, PART_VQ = 4, PART_ALL = 7 };
static const struct {
    int part;
    const char *prefix;
} parts[] = { { PART_GPT, "gpt." }, { PART_FINE, "fine." }, { PART_VQ, "vq." } };
enum { PARTS = sizeof parts / sizeof parts[0] };

static int has_prefix(const char *name, const char *prefix) { return strncmp(name, prefix, strlen(prefix)) == 0; }

/* ------------------------------------------------------------------------------------------------------------- inputs */

/* Finds a tensor of rank `rank` whose dimensions are `shape` (0: any, but not empty). *tensor is NULL if there is none. */
static tsar_status find_input(const tsar_tensor **tensor, const tsar_file *file, const char *name, int floats, size_t rank, const size_t *shape,
                              tsar_error *err)
{
    const tsar_tensor *t = tsar_file_find(file, name);
    *tensor = t;
    if (!t) return TSAR_OK;
    if (!floats && tsar_dtype_is_float(t->dtype))
        return tsar_fail(err, TSAR_INPUT, "%s: tensor %s is %s, it must be of an integer type", tsar_file_path(file), name,
                         tsar_dtype_name(t->dtype));
    if (t->count > SIZE_MAX / sizeof(double))
        return tsar_fail(err, TSAR_ROOM, "%s: tensor %s is too large for this machine", tsar_file_path(file), name);
    if (t->rank != rank)
        return tsar_fail(err, TSAR_INPUT, "%s: tensor %s has %zu dimensions, it needs %zu", tsar_file_path(file), name, t->rank, rank);
    for (size_t i = 0; i < rank; i++)
        if (t->shape[i] == 0 || (shape[i] && t->shape[i] != shape[i]))
            return tsar_fail(err, TSAR_INPUT, "%s: dimension %zu of tensor %s is %zu, the model needs %zu", tsar_file_path(file), i, name,
                             t->shape[i], shape[i] ? shape[i] : (size_t)1);
    return TSAR_OK;
}

/* The integers of a tensor (NULL in *out if it is absent), each below `limit`. */
static tsar_status read_integers(int64_t **out, const tsar_tensor **tensor, tsar_file *file, const char *name, size_t rank, const size_t *shape,
                                 size_t limit, tsar_error *err)
{
    tsar_status status = find_input(tensor, file, name, 0, rank, shape, err);
    if (status != TSAR_OK || !*tensor) return status;
    const size_t count = (size_t)(*tensor)->count;
    *out = tsar_alloc(count, sizeof **out, name, err);
    if (!*out) return TSAR_ROOM;
    status = tsar_file_read_i64(file, *tensor, 0, count, *out, err);
    for (size_t i = 0; status == TSAR_OK && i < count; i++)
        if ((*out)[i] < 0 || (uint64_t)(*out)[i] >= limit)
            status = tsar_fail(err, TSAR_INPUT, "%s: tensor %s holds %" PRId64 " at index %zu, the model allows 0 ... %zu", tsar_file_path(file),
                               name, (*out)[i], i, limit - 1);
    return status;
}

static tsar_status read_floats(double **out, tsar_file *file, const char *name, size_t rank, const size_t *shape, tsar_error *err)
{
    const tsar_tensor *tensor;
    tsar_status status = find_input(&tensor, file, name, 1, rank, shape, err);
    if (status != TSAR_OK || !tensor) return status;
    *out = tsar_alloc((size_t)tensor->count, sizeof **out, name, err);
    return *out ? tsar_file_read_f64(file, tensor, 0, tensor->count, *out, err) : TSAR_ROOM;
}

static tsar_prompt prompt_of(const tsar_inputs *inputs)
{
    tsar_prompt prompt = {
        .text = inputs->text, .n_text = inputs->n_text, .class_id = inputs->class_id, .caption = inputs->caption, .caption_mask = inputs->caption_mask
    };
    return prompt;
}

static int has_prompt(const tsar_config *config, const tsar_inputs *inputs)
{
    switch (config->arch) {
    case TSAR_TOKEN_SHUFFLE:
        return inputs->text != NULL;
    case TSAR_LLAMAGEN_C2I:
        return inputs->has_class;
    case TSAR_LLAMAGEN_T2I:
        return inputs->caption && inputs->caption_mask;
    default:
        return 0;
    }
}

/* What the transformer is conditioned on: input.text, input.class, or input.caption and input.caption_mask. */
static tsar_status read_prompt(tsar_inputs *inputs, const tsar_model *model, tsar_file *file, tsar_error *err)
{
    const tsar_config *c = &model->config;
    const size_t any[1] = { 0 }, one[1] = { 1 }, caption[2] = { c->cond_tokens, c->caption_dim };
    const tsar_tensor *tensor = NULL;
    int64_t *class_id = NULL;
    tsar_status status = TSAR_OK;
    if (c->arch == TSAR_TOKEN_SHUFFLE) {
        status = read_integers(&inputs->text, &tensor, file, "input.text", 1, any, c->text_vocab, err);
        if (tensor) inputs->n_text = (size_t)tensor->count;
    } else if (c->arch == TSAR_LLAMAGEN_C2I) {
        status = read_integers(&class_id, &tensor, file, "input.class", 1, one, c->num_classes + 1, err);
        if (status == TSAR_OK && tensor) inputs->has_class = 1, inputs->class_id = (size_t)class_id[0];
        tsar_free(class_id);
    } else if (c->arch == TSAR_LLAMAGEN_T2I) {
        status = read_floats(&inputs->caption, file, "input.caption", 2, caption, err);
        if (status == TSAR_OK) status = read_floats(&inputs->caption_mask, file, "input.caption_mask", 1, caption, err);
    }
    if (status != TSAR_OK || !has_prompt(c, inputs)) return status;
    const tsar_prompt prompt = prompt_of(inputs);
    tsar_error reason = { "" };
    status = tsar_prompt_check(model, &prompt, &reason);
    return status == TSAR_OK ? TSAR_OK : tsar_fail(err, status, "%s: %s", tsar_file_path(file), reason.text);
}

/* input.image, U8 [H][W][3], H and W multiples of vq_factor. */
static tsar_status read_image(tsar_inputs *inputs, const tsar_config *c, tsar_file *file, tsar_error *err)
{
    const size_t shape[3] = { 0, 0, 3 };
    const tsar_tensor *tensor;
    tsar_status status = find_input(&tensor, file, "input.image", 0, 3, shape, err);
    if (status != TSAR_OK || !tensor) return status;
    if (tensor->dtype != TSAR_U8)
        return tsar_fail(err, TSAR_INPUT, "%s: tensor input.image is %s, it must be U8", tsar_file_path(file), tsar_dtype_name(tensor->dtype));
    if (tensor->shape[0] % c->vq_factor || tensor->shape[1] % c->vq_factor)
        return tsar_fail(err, TSAR_INPUT, "%s: input.image is %zu x %zu pixels, the model needs multiples of %zu", tsar_file_path(file),
                         tensor->shape[1], tensor->shape[0], c->vq_factor);
    inputs->image = tsar_alloc((size_t)tensor->count, 1, "input.image", err);
    if (!inputs->image) return TSAR_ROOM;
    inputs->H = tensor->shape[0], inputs->W = tensor->shape[1];
    return tsar_file_read(file, tensor, 0, tensor->count, inputs->image, err);
}

tsar_status tsar_inputs_read(tsar_inputs *inputs, const tsar_model *model, tsar_file *file, tsar_error *err)
{
    const tsar_config *c = &model->config;
    const size_t any[2] = { 0, 0 }, grid[2] = { c->grid_h, c->grid_w };
    const int on_grid = !c->has_vq || (c->has_gpt && !c->n_coarse);
    const tsar_tensor *tensor = NULL;
    memset(inputs, 0, sizeof *inputs);
    tsar_status status = read_prompt(inputs, model, file, err);
    if (status == TSAR_OK) status = read_integers(&inputs->codes, &tensor, file, "input.codes", 2, on_grid ? grid : any, c->codebook_size, err);
    if (status == TSAR_OK && c->has_vq) status = read_image(inputs, c, file, err);
    if (status == TSAR_OK && c->has_vq && !inputs->image && !inputs->codes)
        status = read_integers(&inputs->codes, &tensor, file, "vq.codes", 2, any, c->codebook_size, err);
    if (status == TSAR_OK && inputs->codes) inputs->h = tensor->shape[0], inputs->w = tensor->shape[1];
    if (status == TSAR_OK && c->n_coarse) status = read_integers(&inputs->coarse, &tensor, file, "input.coarse", 2, grid, c->n_coarse, err);
    if (status != TSAR_OK) tsar_inputs_close(inputs);
    return status;
}

void tsar_inputs_close(tsar_inputs *inputs)
{
    tsar_free(inputs->text);
    tsar_free(inputs->caption);
    tsar_free(inputs->caption_mask);
    tsar_free(inputs->codes);
    tsar_free(inputs->coarse);
    tsar_free(inputs->image);
    memset(inputs, 0, sizeof *inputs);
}

/* The parts of the model that the inputs feed. */
static int parts_fed(const tsar_config *c, const tsar_inputs *inputs)
{
    const int64_t *tokens = c->n_coarse ? inputs->coarse : inputs->codes;
    const int on_grid = c->n_coarse || (inputs->h == c->grid_h && inputs->w == c->grid_w);
    return (c->has_gpt && has_prompt(c, inputs) && tokens && on_grid ? PART_GPT : 0) | (c->has_fine && inputs->coarse ? PART_FINE : 0) |
           (c->has_vq && (inputs->image || inputs->codes) ? PART_VQ : 0);
}

/* The inputs that a part of the model needs, in words. NULL: the model has no such part. */
static const char *part_needs(const tsar_config *c, int part)
{
    if (part == PART_FINE) return c->has_fine ? "input.coarse" : NULL;
    if (part == PART_VQ) return c->has_vq ? "input.image or input.codes" : NULL;
    switch (c->arch) {
    case TSAR_TOKEN_SHUFFLE:
        return c->n_coarse ? "input.text and input.coarse" : "input.text and input.codes";
    case TSAR_LLAMAGEN_C2I:
        return c->n_coarse ? "input.class and input.coarse" : "input.class and input.codes";
    case TSAR_LLAMAGEN_T2I:
        return c->n_coarse ? "input.caption, input.caption_mask and input.coarse" : "input.caption, input.caption_mask and input.codes";
    default:
        return NULL;
    }
}

/* "SOURCE feeds no part of the model: ..." */
static tsar_status fail_unfed(const tsar_config *c, const char *source, tsar_error *err)
{
    char list[256] = "";
    for (int i = 0; i < PARTS; i++) {
        const char *needs = part_needs(c, parts[i].part);
        size_t used = strlen(list);
        if (needs) (void)snprintf(list + used, sizeof list - used, "%s%s* needs %s", used ? "; " : "", parts[i].prefix, needs);
    }
    return tsar_fail(err, TSAR_INPUT, "%s: feeds no part of the model (%s)", source, list);
}

/* -------------------------------------------------------------------------------------------------------------- trace */

static tsar_status emit_inputs(const tsar_model *model, const tsar_inputs *inputs, const tsar_sink *sink, tsar_error *err)
{
    const tsar_config *c = &model->config;
    const size_t text[1] = { inputs->n_text }, one[1] = { 1 }, caption[2] = { c->cond_tokens, c->caption_dim }, codes[2] = { inputs->h, inputs->w },
                 grid[2] = { c->grid_h, c->grid_w }, image[3] = { inputs->H, inputs->W, 3 }, clusters[1] = { c->codebook_size };
    int64_t class_id = (int64_t)inputs->class_id;
    tsar_status status = TSAR_OK;
    if (inputs->text) status = tsar_emit(sink, err, TSAR_I64, inputs->text, 1, text, "input.text");
    if (status == TSAR_OK && inputs->has_class) status = tsar_emit(sink, err, TSAR_I64, &class_id, 1, one, "input.class");
    if (status == TSAR_OK && inputs->caption) status = tsar_emit(sink, err, TSAR_F64, inputs->caption, 2, caption, "input.caption");
    if (status == TSAR_OK && inputs->caption_mask) status = tsar_emit(sink, err, TSAR_F64, inputs->caption_mask, 1, caption, "input.caption_mask");
    if (status == TSAR_OK && inputs->codes) status = tsar_emit(sink, err, TSAR_I64, inputs->codes, 2, codes, "input.codes");
    if (status == TSAR_OK && inputs->coarse) status = tsar_emit(sink, err, TSAR_I64, inputs->coarse, 2, grid, "input.coarse");
    if (status == TSAR_OK && inputs->image) status = tsar_emit(sink, err, TSAR_U8, inputs->image, 3, image, "input.image");
    if (status == TSAR_OK && model->cluster_of) status = tsar_emit(sink, err, TSAR_I64, model->cluster_of, 1, clusters, "ctf.cluster_of");
    return status;
}

/* CTF stage two: fine.embed ... fine.norm, and fine.logits [N][K] before the mask of the label's cluster. */
static tsar_status trace_fine(const tsar_model *model, const int64_t *labels, const tsar_sink *sink, tsar_error *err)
{
    const tsar_config *c = &model->config;
    const size_t N = c->grid_h * c->grid_w, K = c->codebook_size, shape[2] = { N, K };
    double *logits = NULL, *hidden = tsar_alloc(N, c->fine_dim * sizeof *hidden, "fine.norm", err);
    tsar_status status = hidden ? tsar_fine_hidden(model, labels, hidden, sink, err) : TSAR_ROOM;
    if (status == TSAR_OK && !(logits = tsar_alloc(N, K * sizeof *logits, "fine.logits", err))) status = TSAR_ROOM;
    if (status == TSAR_OK) status = tsar_fine_logits(model, hidden, 0, N, logits, err);
    if (status == TSAR_OK) status = tsar_emit(sink, err, TSAR_F64, logits, 2, shape, "fine.logits");
    tsar_free(logits);
    tsar_free(hidden);
    return status;
}

/* The tokenizer: the encoder if there is an image, then the decoder on its codes, or on those given. While the codes pass through
 * the sink, it may put others into *instead (near-ties: those of the other file), which the decoder then takes. */
static tsar_status trace_vq(const tsar_model *model, const tsar_inputs *inputs, const tsar_sink *sink, int64_t *const *instead, tsar_error *err)
{
    const size_t factor = model->config.vq_factor, given[2] = { inputs->h, inputs->w };
    tsar_status status = TSAR_OK;
    if (!inputs->image) {
        status = tsar_emit(sink, err, TSAR_I64, inputs->codes, 2, given, "vq.codes");
        return status == TSAR_OK ? tsar_vq_decode(model, inputs->codes, inputs->h, inputs->w, NULL, sink, err) : status;
    }
    const size_t h = inputs->H / factor, w = inputs->W / factor;
    int64_t *codes = tsar_alloc(h, w * sizeof *codes, "vq.codes", err);
    if (!codes) return TSAR_ROOM;
    status = tsar_vq_encode(model, inputs->image, inputs->H, inputs->W, codes, sink, err);
    if (status == TSAR_OK) status = tsar_vq_decode(model, instead && *instead ? *instead : codes, h, w, NULL, sink, err);
    tsar_free(codes);
    return status;
}

static tsar_status run_parts(const tsar_model *model, const tsar_inputs *inputs, int wanted, const tsar_sink *sink, int64_t *const *instead,
                             tsar_error *err)
{
    tsar_status status = emit_inputs(model, inputs, sink, err);
    if (status == TSAR_OK && (wanted & PART_GPT)) {
        const tsar_prompt prompt = prompt_of(inputs);
        status = tsar_gpt_trace(model, &prompt, model->config.n_coarse ? inputs->coarse : inputs->codes, sink, err);
    }
    if (status == TSAR_OK && (wanted & PART_FINE)) status = trace_fine(model, inputs->coarse, sink, err);
    if (status == TSAR_OK && (wanted & PART_VQ)) status = trace_vq(model, inputs, sink, instead, err);
    return status;
}

tsar_status tsar_trace(const tsar_model *model, const tsar_inputs *inputs, const tsar_sink *sink, tsar_error *err)
{
    const int fed = parts_fed(&model->config, inputs);
    return fed ? run_parts(model, inputs, fed, sink, NULL, err) : fail_unfed(&model->config, "the trace's input", err);
}

/* ------------------------------------------------------------------------------------------------------ a trace file */

typedef struct {
    tsar_values *tensors;
    size_t n, room;
} kept_trace;

/* Doubles the room of a trace. */
static tsar_status widen_trace(kept_trace *trace, tsar_error *err)
{
    const size_t room = trace->room ? 2 * trace->room : 64;
    tsar_values *tensors = tsar_alloc(room, sizeof *tensors, "the list of tensors", err);
    if (!tensors) return TSAR_ROOM;
    if (trace->n) memcpy(tensors, trace->tensors, trace->n * sizeof *tensors);
    tsar_free(trace->tensors);
    trace->tensors = tensors, trace->room = room;
    return TSAR_OK;
}

/* The sink of a trace file: a copy of name and data. */
static tsar_status keep_tensor(void *context, const char *name, tsar_dtype dtype, size_t rank, const size_t *shape, void *data, tsar_error *err)
{
    kept_trace *trace = context;
    if (trace->n == trace->room && widen_trace(trace, err) != TSAR_OK) return TSAR_ROOM;
    tsar_values *kept = &trace->tensors[trace->n];
    const size_t name_size = (strlen(name) + 8) / 8 * 8;
    size_t bytes = tsar_dtype_size(dtype);
    for (size_t i = 0; i < rank; i++) bytes *= shape[i];
    char *copy = tsar_alloc(bytes + name_size, 1, name, err); /* the name, then the data, aligned for double */
    if (!copy) return TSAR_ROOM;
    memcpy(copy, name, strlen(name));
    memcpy(copy + name_size, data, bytes);
    kept->name = copy, kept->dtype = dtype, kept->rank = rank, kept->data = copy + name_size;
    memcpy(kept->shape, shape, rank * sizeof *shape);
    trace->n++;
    return TSAR_OK;
}

static tsar_status put_count(tsar_writer *writer, const char *key, uint64_t value, tsar_error *err)
{
    char text[32];
    (void)snprintf(text, sizeof text, "%" PRIu64, value);
    return tsar_writer_meta(writer, key, text, err);
}

/* The configuration as metadata (SPEC 2): `tsar synth --like` of a trace makes the model again if it was synthetic. */
static tsar_status put_config(tsar_writer *writer, const tsar_config *c, tsar_error *err)
{
    static const char *const archs[] = { NULL, "token-shuffle", "llamagen-c2i", "llamagen-t2i" };
    const int shuffles = c->arch == TSAR_TOKEN_SHUFFLE, stacks = c->has_gpt || c->has_fine;
    const struct {
        const char *key;
        size_t value;
    } counts[] = { { "dim", c->dim },
                   { "n_layer", c->n_layer },
                   { "n_head", c->n_head },
                   { "n_kv_head", c->n_kv_head },
                   { "ffn_hidden", c->ffn_hidden },
                   { "text_vocab", c->text_vocab },
                   { "codebook_size", c->codebook_size },
                   { "grid_h", c->grid_h },
                   { "grid_w", c->grid_w },
                   { "n_coarse", c->n_coarse },
                   { "shuffle", shuffles ? c->shuffle : 0 },
                   { "shuffle_blocks", shuffles ? c->shuffle_blocks : 0 },
                   { "shuffle_hidden", shuffles ? c->shuffle_hidden : 0 },
                   { "num_classes", c->num_classes },
                   { "cond_tokens", c->cond_tokens },
                   { "caption_dim", c->caption_dim },
                   { "vq_ch", c->vq_ch },
                   { "vq_res_blocks", c->vq_res_blocks },
                   { "vq_z_channels", c->vq_z_channels },
                   { "vq_embed_dim", c->vq_embed_dim },
                   { "vq_groups", c->has_vq ? c->vq_groups : 0 },
                   { "fine_dim", c->fine_dim },
                   { "fine_n_layer", c->fine_n_layer },
                   { "fine_n_head", c->fine_n_head },
                   { "fine_ffn_hidden", c->fine_ffn_hidden } };
    char levels[TSAR_MAX_LEVELS * 24] = "", real[32];
    for (size_t i = 0, used = 0; i < c->vq_levels; i++, used = strlen(levels))
        (void)snprintf(levels + used, sizeof levels - used, "%s%zu", i ? "," : "", c->vq_ch_mult[i]);
    tsar_status status = put_count(writer, "seed", c->seed, err);
    for (size_t i = 0; status == TSAR_OK && i < sizeof counts / sizeof counts[0]; i++)
        if (counts[i].value) status = put_count(writer, counts[i].key, counts[i].value, err);
    if (status == TSAR_OK && c->has_gpt) status = tsar_writer_meta(writer, "arch", archs[c->arch], err);
    if (status == TSAR_OK && c->has_gpt) status = tsar_writer_meta(writer, "rope", c->rope_2d ? "2d" : "1d", err);
    if (status == TSAR_OK && stacks) status = tsar_writer_meta(writer, "norm_eps", tsar_real_text(real, c->norm_eps), err);
    if (status == TSAR_OK && stacks) status = tsar_writer_meta(writer, "rope_base", tsar_real_text(real, c->rope_base), err);
    if (status == TSAR_OK && c->has_vq) status = tsar_writer_meta(writer, "vq_ch_mult", levels, err);
    if (status == TSAR_OK && c->has_vq) status = tsar_writer_meta(writer, "vq_l2_norm", c->vq_l2_norm ? "1" : "0", err);
    return status;
}

tsar_status tsar_values_write(tsar_writer *writer, const tsar_values *values, size_t n, tsar_error *err)
{
    const tsar_tensor *next;
    tsar_status status = TSAR_OK;
    for (size_t i = 0; status == TSAR_OK && i < n; i++)
        if (values[i].data) status = tsar_writer_declare(writer, values[i].name, values[i].dtype, values[i].rank, values[i].shape, err);
    while (status == TSAR_OK && (next = tsar_writer_next(writer)) != NULL) {
        size_t i = 0;
        while (!values[i].data || strcmp(values[i].name, next->name) != 0) i++;
        status = tsar_writer_put(writer, values[i].data, next->count, err);
    }
    if (status == TSAR_OK) return tsar_writer_commit(writer, err);
    tsar_writer_abandon(writer);
    return status;
}

tsar_status tsar_trace_write(const tsar_model *model, const tsar_inputs *inputs, const char *path, tsar_error *err)
{
    kept_trace trace = { NULL, 0, 0 };
    const tsar_sink sink = { .put = keep_tensor, .context = &trace };
    tsar_writer *writer = NULL;
    tsar_status status = tsar_trace(model, inputs, &sink, err);
    if (status == TSAR_OK) status = tsar_writer_open(&writer, path, err);
    if (status == TSAR_OK) {
        status = put_config(writer, &model->config, err);
        if (status == TSAR_OK)
            status = tsar_values_write(writer, trace.tensors, trace.n, err);
        else
            tsar_writer_abandon(writer);
    }
    for (size_t i = 0; i < trace.n; i++) tsar_free((void *)trace.tensors[i].name);
    tsar_free(trace.tensors);
    return status;
}

/* ------------------------------------------------------------------------------------------------------------- verify */

enum { CHUNK = 4096 }; /* elements of the other file in memory at a time */

typedef struct {
    const tsar_model *model;
    tsar_file *file;
    double rtol;
    tsar_comparison_fn report;
    void *context;
    unsigned char *seen; /* [tensors of the file]: 1 once the trace has produced it */
    size_t compared;
    int different;
    union {
        double real[CHUNK];
        int64_t integer[CHUNK];
    } theirs;
    double *latent; /* tsar's vq.latent [embed][h*w]; NULL until it has passed */
    double latent_rms;
    int64_t *near_codes; /* [h][w]: the other file's codes, when all mismatches are near-ties */
} verifier;

static double tolerance_of(double rtol, tsar_dtype dtype)
{
    if (!tsar_dtype_is_float(dtype)) return 0;
    if (rtol >= 0) return rtol;
    return dtype == TSAR_F64 ? 1e-10 : dtype == TSAR_F32 ? 1e-4 : 5e-2;
}

static double value_at(const void *data, tsar_dtype dtype, size_t i)
{
    if (dtype == TSAR_F64) return ((const double *)data)[i];
    return dtype == TSAR_I64 ? (double)((const int64_t *)data)[i] : (double)((const uint8_t *)data)[i];
}

/* sqrt(mean(x^2)), scaled by the largest element so that no square overflows. Not finite if an element is not. */
static double rms_of(const void *data, tsar_dtype dtype, size_t n)
{
    double largest = 0, sum = 0;
    for (size_t i = 0; i < n; i++) {
        const double x = fabs(value_at(data, dtype, i));
        if (!(x < INFINITY)) return INFINITY;
        if (x > largest) largest = x;
    }
    if (largest == 0) return 0;
    for (size_t i = 0; i < n; i++) {
        const double x = value_at(data, dtype, i) / largest;
        sum += x * x;
    }
    return largest * sqrt(sum / (double)n);
}

/* Element i: |a - b| against the RMS (against 1 where tsar's tensor is all zero). NaN on either side is a difference, and
 * an infinity agrees with its like only. */
static void compare_element(tsar_comparison *result, size_t i, int equal, double ours, double theirs, double rms)
{
    if (equal) return;
    double difference = fabs(ours - theirs), relative = difference / (rms > 0 ? rms : 1);
    if (!(difference < INFINITY)) difference = INFINITY;
    if (!(difference < INFINITY && rms < INFINITY)) relative = INFINITY;
    if (difference > result->max_abs) result->max_abs = difference;
    if (relative > result->max_rel) result->max_rel = relative;
    if (relative <= result->tolerance && relative < INFINITY) return;
    if (result->bad++) return;
    result->first_bad = i, result->ours = ours, result->theirs = theirs;
}

static tsar_status compare_elements(verifier *v, const tsar_tensor *theirs, tsar_dtype dtype, const void *ours, tsar_comparison *result,
                                    tsar_error *err)
{
    const size_t count = (size_t)theirs->count;
    const double rms = rms_of(ours, dtype, count);
    for (size_t first = 0; first < count; first += CHUNK) {
        const size_t n = count - first < CHUNK ? count - first : CHUNK;
        tsar_status status = dtype == TSAR_F64 ? tsar_file_read_f64(v->file, theirs, first, n, v->theirs.real, err)
                                               : tsar_file_read_i64(v->file, theirs, first, n, v->theirs.integer, err);
        if (status != TSAR_OK) return status;
        for (size_t k = 0; k < n; k++) {
            const size_t i = first + k;
            const double a = value_at(ours, dtype, i);
            if (dtype == TSAR_F64)
                compare_element(result, i, a == v->theirs.real[k], a, v->theirs.real[k], rms);
            else if (dtype == TSAR_U8)
                compare_element(result, i, ((const uint8_t *)ours)[i] == v->theirs.integer[k], a, (double)v->theirs.integer[k], rms);
            else
                compare_element(result, i, ((const int64_t *)ours)[i] == v->theirs.integer[k], a, (double)v->theirs.integer[k], rms);
        }
    }
    return TSAR_OK;
}

/* The unit roundoff of the other implementation's arithmetic on the latent. It is that of the file's type; an --rtol as wide as that of
 * a narrower type says that the numbers were computed in this one, however they are stored. */
static double roundoff_of(double rtol, tsar_dtype dtype)
{
    if (dtype == TSAR_BF16 || rtol >= tolerance_of(-1, TSAR_BF16)) return ldexp(1, -8);
    if (dtype == TSAR_F16) return ldexp(1, -11);
    return dtype == TSAR_F32 || rtol >= tolerance_of(-1, TSAR_F32) ? ldexp(1, -24) : ldexp(1, -53);
}

/* The type that tells how exactly the other implementation computed: that of vq.latent, else the narrowest float among its vq.*. */
static tsar_dtype latent_dtype(const tsar_file *file)
{
    const tsar_tensor *latent = tsar_file_find(file, "vq.latent");
    tsar_dtype narrowest = TSAR_F64; /* the types stand in the order of their precision */
    if (latent && tsar_dtype_is_float(latent->dtype)) return latent->dtype;
    for (size_t i = 0; i < tsar_file_count(file); i++) {
        const tsar_tensor *t = tsar_file_at(file, i);
        if (has_prefix(t->name, "vq.") && tsar_dtype_is_float(t->dtype) && t->dtype > narrowest) narrowest = t->dtype;
    }
    return narrowest;
}

/* How far apart codes a (tsar's) and b (theirs) are at one position, in units of what their precision can decide; at most
 * 1 is a near-tie.
 *
 * The quantizer compares d(e) = |z|^2 + |e|^2 - 2 z.e, so d(b) - d(a) = |b|^2 - |a|^2 + 2 z.(a - b). Three things move this gap:
 *
 * 1. The latent. When z moves by D, the gap moves by 2 D.(a - b), at most 2 |D| |a - b|. A vq.latent that passes verification has every
 *    element within delta = tolerance x RMS of tsar's, so the latent vector moves by at most delta sqrt(E) = m, E = embed. With l2_norm
 *    it is z/|z| that counts, and unit vectors of x and y are at most 2 |x - y| / (|x| + |y|) apart (Dunkl and Williams), here
 *    2 m / (2 |z| - m), and never more than 2.
 * 2. The codewords, in a precision of unit roundoff u: an element is off by a part r = u of itself where it is only stored. With l2_norm
 *    square root, division and result round, and a norm summed over E terms is off by E t / 2 (half of its square's), so r = 3u + E t / 2 for
 *    codewords and latent alike. t is the roundoff of the sums: u, but never more than F32's 2^-24, in which half-precision products are added
 *    up. d(e) = |z - e|^2 moves by at most 2 sqrt(d(e)) r |e|; z by r |z| more, which counts as under 1.
 * 3. The distances. |e|^2 and 2 z.e round by u and, being sums of E terms, by E t; |z|^2 is the same number in both; each of the two sums that
 *    make d(e) of the three rounds by u. With 2 |z||e| <= |z|^2 + |e|^2, and d(e) <= |z|^2 + |e|^2 for codewords on the latent's side, this
 *    is at most u (3 |z|^2 + 4 |e|^2) + E t (|z|^2 + 2 |e|^2) each, for both at most (6u + 2 E t) (|z|^2 + |a|^2 + |b|^2).
 *
 * To first order in u. In F64 2. and 3. are about 1e-14 for unit vectors. */
static tsar_status code_margin(const verifier *v, size_t position, size_t positions, double tolerance, double u, const int64_t codes[2], double *z,
                               double *margin, tsar_error *err)
{
    const tsar_config *c = &v->model->config;
    const size_t embed = c->vq_embed_dim;
    const double sums = (double)embed * fmin(u, ldexp(1, -24));
    double *a = z + embed, *b = z + 2 * embed, distance[2], zz = 0, aa = 0, bb = 0, apart = 0;
    for (size_t k = 0; k < embed; k++) z[k] = v->latent[k * positions + position], zz += z[k] * z[k];
    tsar_status status = tsar_vq_distances(v->model, z, codes, 2, distance, err);
    if (status != TSAR_OK) return status;
    tsar_vq_codeword(v->model, (size_t)codes[0], a);
    tsar_vq_codeword(v->model, (size_t)codes[1], b);
    for (size_t k = 0; k < embed; k++) aa += a[k] * a[k], bb += b[k] * b[k], apart += (a[k] - b[k]) * (a[k] - b[k]);
    double move = tolerance * v->latent_rms * sqrt((double)embed), part = u;
    if (c->vq_l2_norm) {
        const double sum = 2 * sqrt(zz) - move;
        part = 3 * u + sums / 2;
        move = (sum > move ? 2 * move / sum : 2) + part;
        zz = 1; /* of z/|z| */
    }
    const double stored = 2 * part * (sqrt(fabs(distance[0]) * aa) + sqrt(fabs(distance[1]) * bb));
    const double rounded = (6 * u + 2 * sums) * (zz + aa + bb);
    const double gap = distance[1] - distance[0], decided = 2 * move * sqrt(apart) + stored + rounded;
    *margin = gap <= 0 ? 0 : decided > 0 ? gap / decided : INFINITY;
    return TSAR_OK;
}

/* Codes that differ: near-ties if every mismatch is one. Then the other file's codes are kept for the decoder. */
static tsar_status judge_codes(verifier *v, const tsar_tensor *theirs, const int64_t *ours, tsar_comparison *result, tsar_error *err)
{
    const tsar_config *c = &v->model->config;
    const size_t positions = (size_t)theirs->count;
    const tsar_dtype dtype = latent_dtype(v->file);
    const double tolerance = tolerance_of(v->rtol, dtype), roundoff = roundoff_of(v->rtol, dtype);
    int64_t *codes = tsar_alloc(positions, sizeof *codes, "vq.codes", err);
    double *scratch = tsar_alloc(3, c->vq_embed_dim * sizeof *scratch, "a latent", err);
    tsar_status status = codes && scratch ? tsar_file_read_i64(v->file, theirs, 0, positions, codes, err) : TSAR_ROOM;
    result->margin = 0;
    for (size_t i = 0; status == TSAR_OK && i < positions; i++) {
        const int64_t pair[2] = { ours[i], codes[i] };
        double margin = INFINITY;
        if (pair[0] == pair[1]) continue;
        if (pair[1] >= 0 && (uint64_t)pair[1] < c->codebook_size)
            status = code_margin(v, i, positions, tolerance, roundoff, pair, scratch, &margin, err);
        if (margin > result->margin) result->margin = margin;
    }
    tsar_free(scratch);
    if (status == TSAR_OK && result->margin <= 1) {
        result->verdict = TSAR_NEAR_TIE;
        v->near_codes = codes;
        return TSAR_OK;
    }
    tsar_free(codes);
    return status;
}

static tsar_status report(verifier *v, tsar_comparison *result, tsar_error *err)
{
    if (result->verdict != TSAR_SAME && result->verdict != TSAR_MISSING) {
        result->first = !v->different;
        v->different = 1;
    }
    if (result->verdict != TSAR_MISSING) v->compared++;
    return v->report ? v->report(v->context, result, err) : TSAR_OK;
}

/* tsar's latent, for the near-ties. */
static tsar_status keep_latent(verifier *v, const size_t *shape, const double *data, tsar_error *err)
{
    const size_t count = shape[0] * shape[1] * shape[2];
    v->latent = tsar_alloc(count, sizeof *v->latent, "vq.latent", err);
    if (!v->latent) return TSAR_ROOM;
    memcpy(v->latent, data, count * sizeof *v->latent);
    v->latent_rms = rms_of(data, TSAR_F64, count);
    return TSAR_OK;
}

static tsar_status compare_tensor(void *context, const char *name, tsar_dtype dtype, size_t rank, const size_t *shape, void *data,
                                  tsar_error *err)
{
    verifier *v = context;
    const tsar_tensor *theirs = tsar_file_find(v->file, name);
    tsar_comparison result = { .name = name,
                               .verdict = TSAR_SAME,
                               .dtype = theirs ? theirs->dtype : dtype,
                               .rank = theirs ? theirs->rank : rank,
                               .our_dtype = dtype,
                               .our_rank = rank };
    tsar_status status = strcmp(name, "vq.latent") == 0 ? keep_latent(v, shape, data, err) : TSAR_OK;
    if (status != TSAR_OK) return status;
    memcpy(result.shape, theirs ? theirs->shape : shape, result.rank * sizeof *shape);
    memcpy(result.our_shape, shape, rank * sizeof *shape);
    if (!theirs) {
        result.verdict = TSAR_MISSING;
        return strcmp(name, "ctf.cluster_of") == 0 ? TSAR_OK : report(v, &result, err);
    }
    v->seen[theirs - tsar_file_at(v->file, 0)] = 1;
    result.tolerance = tolerance_of(v->rtol, theirs->dtype);
    const int is_mask = strcmp(name, "input.caption_mask") == 0; /* 0 and 1 in any type */
    int fits = theirs->rank == rank && (is_mask || (dtype == TSAR_F64) == tsar_dtype_is_float(theirs->dtype));
    for (size_t i = 0; fits && i < rank; i++) fits = theirs->shape[i] == shape[i];
    if (fits) {
        status = compare_elements(v, theirs, dtype, data, &result, err);
        if (result.bad) result.verdict = TSAR_DIFFERS;
        if (status == TSAR_OK && result.bad && v->latent && strcmp(name, "vq.codes") == 0) status = judge_codes(v, theirs, data, &result, err);
    } else {
        result.verdict = TSAR_MISSHAPEN;
    }
    return status == TSAR_OK ? report(v, &result, err) : status;
}

/* The first tensor of the file whose name begins with `prefix`, or NULL. */
static const char *held_name(const tsar_file *file, const char *prefix)
{
    for (size_t i = 0; i < tsar_file_count(file); i++)
        if (has_prefix(tsar_file_at(file, i)->name, prefix)) return tsar_file_at(file, i)->name;
    return NULL;
}

/* Which parts to recompute: those that the file holds tensors of. It must hold what they need, too; the encoder needs a picture. */
static tsar_status choose_parts(const tsar_config *c, const tsar_inputs *inputs, const tsar_file *file, int *wanted, tsar_error *err)
{
    const int fed = parts_fed(c, inputs);
    *wanted = 0;
    if (!fed) return fail_unfed(c, tsar_file_path(file), err);
    for (int p = 0; p < PARTS; p++) {
        const char *needs = part_needs(c, parts[p].part), *held = needs ? held_name(file, parts[p].prefix) : NULL;
        if (held && !(fed & parts[p].part))
            return tsar_fail(err, TSAR_INPUT, "%s: holds %s, but not the %s that it is recomputed from", tsar_file_path(file), held, needs);
        if (held) *wanted |= parts[p].part;
    }
    if ((*wanted & PART_VQ) && !inputs->image) {
        const char *encoder = held_name(file, "vq.encoder."), *latent = held_name(file, "vq.latent");
        if (encoder || latent)
            return tsar_fail(err, TSAR_INPUT, "%s: holds %s, but not the input.image that it is recomputed from", tsar_file_path(file),
                             encoder ? encoder : latent);
    }
    if (!*wanted)
        return tsar_fail(err, TSAR_INPUT, "%s: holds inputs, but no tensor of the model's parts (gpt.*, fine.*, vq.*) to compare",
                         tsar_file_path(file));
    return TSAR_OK;
}

/* Everything else in the file: gpt.*, fine.* and vq.* that the trace did not produce are differences, the rest is left alone. */
static tsar_status report_rest(verifier *v, size_t *ignored, tsar_error *err)
{
    tsar_status status = TSAR_OK;
    *ignored = 0;
    for (size_t i = 0; status == TSAR_OK && i < tsar_file_count(v->file); i++) {
        const tsar_tensor *tensor = tsar_file_at(v->file, i);
        int known = 0;
        for (int p = 0; p < PARTS; p++) known |= has_prefix(tensor->name, parts[p].prefix);
        if (v->seen[i]) continue;
        if (!known) {
            ++*ignored;
            continue;
        }
        tsar_comparison result = { .name = tensor->name, .verdict = TSAR_UNKNOWN, .dtype = tensor->dtype, .rank = tensor->rank };
        memcpy(result.shape, tensor->shape, sizeof result.shape);
        status = report(v, &result, err);
    }
    return status;
}

tsar_status tsar_verify(const tsar_model *model, const char *path, double rtol, tsar_comparison_fn report_fn, void *context, size_t *compared,
                        size_t *ignored, tsar_error *err)
{
    tsar_inputs inputs = { 0 };
    tsar_file *file = NULL;
    int wanted = 0;
    *compared = *ignored = 0;
    tsar_status status = tsar_file_open(&file, path, err);
    if (status != TSAR_OK) return status;
    verifier *v = tsar_alloc(1, sizeof *v, "the comparison", err);
    if (!v || !(v->seen = tsar_alloc(tsar_file_count(file), 1, "the list of tensors", err))) status = TSAR_ROOM;
    if (status == TSAR_OK) status = tsar_inputs_read(&inputs, model, file, err);
    if (status == TSAR_OK) status = choose_parts(&model->config, &inputs, file, &wanted, err);
    if (status == TSAR_OK) {
        const tsar_sink sink = { .put = compare_tensor, .context = v };
        v->model = model, v->file = file, v->rtol = rtol, v->report = report_fn, v->context = context;
        status = run_parts(model, &inputs, wanted, &sink, &v->near_codes, err);
    }
    if (status == TSAR_OK) status = report_rest(v, ignored, err);
    if (status == TSAR_OK && v->different) status = TSAR_DIFFERENT;
    if (v) {
        *compared = v->compared;
        tsar_free(v->seen);
        tsar_free(v->latent);
        tsar_free(v->near_codes);
    }
    tsar_free(v);
    tsar_inputs_close(&inputs);
    tsar_file_close(file);
    return status;
}

/* ------------------------------------------------------------------------------------------------------------- reports */

/* Text that grows in a buffer and is cut at its end. */
typedef struct {
    char *text;
    size_t size, used;
} line;

TSAR_FORMAT(2, 3) static void add(line *out, const char *format, ...)
{
    va_list values;
    va_start(values, format);
    const int length = vsnprintf(out->text + out->used, out->size - out->used, format, values);
    va_end(values);
    if (length > 0) out->used += (size_t)length < out->size - out->used ? (size_t)length : out->size - out->used - 1;
}

/* "[3,64]" */
static void add_shape(line *out, size_t rank, const size_t *shape)
{
    add(out, "[");
    for (size_t i = 0; i < rank; i++) add(out, i ? ",%zu" : "%zu", shape[i]);
    add(out, "]");
}

/* Flat index `flat` in a tensor of this shape. */
static void add_index(line *out, size_t rank, const size_t *shape, size_t flat)
{
    size_t index[TSAR_MAX_RANK] = { 0 };
    for (size_t i = rank; i-- > 0; flat /= shape[i]) index[i] = flat % shape[i];
    add_shape(out, rank, index);
}

void tsar_comparison_text(char *text, size_t size, const tsar_comparison *r)
{
    line out = { text, size, 0 };
    add_shape(&out, r->rank, r->shape);
    add(&out, "%*s ", out.used < 16 ? (int)(16 - out.used) : 0, "");
    if (r->verdict <= TSAR_NEAR_TIE)
        add(&out, "%10.3g %10.3g  ", r->max_abs, r->max_rel);
    else
        add(&out, "%10s %10s  ", "-", "-");
    switch (r->verdict) {
    case TSAR_SAME:
        add(&out, "same");
        break;
    case TSAR_DIFFERS:
        add(&out, "DIFFERS: %zu beyond %.3g, first at ", r->bad, r->tolerance);
        add_index(&out, r->rank, r->shape, r->first_bad);
        add(&out, ": %.9g here, %.9g there", r->ours, r->theirs);
        break;
    case TSAR_NEAR_TIE:
        add(&out, "NEAR-TIE: %zu, first at ", r->bad);
        add_index(&out, r->rank, r->shape, r->first_bad);
        add(&out, ": %.0f here, %.0f there; gaps up to %.3g of what the precision can decide", r->ours, r->theirs, r->margin);
        break;
    case TSAR_MISSHAPEN:
        add(&out, "MISSHAPEN: %s, it must be %s of shape ", tsar_dtype_name(r->dtype), tsar_dtype_name(r->our_dtype));
        add_shape(&out, r->our_rank, r->our_shape);
        break;
    case TSAR_UNKNOWN:
        add(&out, "UNKNOWN: the model's trace has no tensor of this name");
        break;
    case TSAR_MISSING:
        add(&out, "missing: the file does not hold it");
        break;
    }
    if (r->first) add(&out, "  <== first divergence");
}

/* ,"key":number; JSON knows no infinity: null. */
static void add_number(line *out, const char *key, double value)
{
    if (fabs(value) < INFINITY)
        add(out, ",\"%s\":%.17g", key, value);
    else
        add(out, ",\"%s\":null", key);
}

void tsar_comparison_json(char *text, size_t size, const tsar_comparison *r)
{
    static const char *const verdicts[] = { "same", "differs", "near-tie", "misshapen", "unknown", "missing" };
    line out = { text, size, 0 };
    add(&out, "\"verdict\":\"%s\",\"dtype\":\"%s\",\"shape\":", verdicts[r->verdict], tsar_dtype_name(r->dtype));
    add_shape(&out, r->rank, r->shape);
    if (r->verdict == TSAR_MISSHAPEN) {
        add(&out, ",\"expected_shape\":");
        add_shape(&out, r->our_rank, r->our_shape);
    }
    if (r->verdict <= TSAR_NEAR_TIE) {
        add_number(&out, "max_abs", r->max_abs);
        add_number(&out, "max_rel", r->max_rel);
        add_number(&out, "tolerance", r->tolerance);
        add(&out, ",\"bad\":%zu", r->bad);
    }
    if (r->bad) {
        add(&out, ",\"first_bad\":%zu", r->first_bad);
        add_number(&out, "ours", r->ours);
        add_number(&out, "theirs", r->theirs);
    }
    if (r->verdict == TSAR_NEAR_TIE) add_number(&out, "margin", r->margin);
    add(&out, ",\"first\":%s", r->first ? "true" : "false");
}
