/* Traces: what goes in, the run of the parts that it feeds, and the file. A trace is streamed through a tsar_sink. */
#include "verify.h"

#include "../weights/files/files.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

const struct tsar_named_part tsar_parts[TSAR_PARTS] = {
    { TSAR_PART_T5, "t5." }, { TSAR_PART_GPT, "gpt." }, { TSAR_PART_FINE, "fine." }, { TSAR_PART_VQ, "vq." }
};

int tsar_has_prefix(const char *name, const char *prefix) { return strncmp(name, prefix, strlen(prefix)) == 0; }

/* ------------------------------------------------------------------------------------------------------------- inputs */

/* Finds a tensor of rank `rank` whose dimensions are `shape` (0: any, but not empty). *tensor is NULL if there is none. */
static tsar_status find_input(const tsar_tensor **tensor, const tsar_file *file, const char *name, int floats, size_t rank, const size_t *shape,
                              tsar_error *err)
{
    const tsar_tensor *t = tsar_file_find(file, name);
    *tensor = t;
    if (!t) return TSAR_OK;
    if (!floats && tsar_dtype_is_float(t->dtype))
        return tsar_fail(err, TSAR_INPUT, "%s: tensor %s is %s, it must be of an integer type", tsar_file_path(file), name, tsar_dtype_name(t->dtype));
    if (t->count > SIZE_MAX / sizeof(double)) return tsar_fail(err, TSAR_ROOM, "%s: tensor %s is too large for this machine", tsar_file_path(file), name);
    if (t->rank != rank) return tsar_fail(err, TSAR_INPUT, "%s: tensor %s has %zu dimensions, it needs %zu", tsar_file_path(file), name, t->rank, rank);
    for (size_t i = 0; i < rank; i++)
        if (t->shape[i] == 0 || (shape[i] && t->shape[i] != shape[i]))
            return tsar_fail(err, TSAR_INPUT, "%s: dimension %zu of tensor %s is %zu, the model needs %zu", tsar_file_path(file), i, name, t->shape[i],
                             shape[i] ? shape[i] : (size_t)1);
    return TSAR_OK;
}

/* The integers of a tensor (NULL in *out if it is absent), each below `limit`. */
static tsar_status read_integers(int64_t **out, const tsar_tensor **tensor, tsar_file *file, const char *name, size_t rank, const size_t *shape, size_t limit,
                                 tsar_error *err)
{
    tsar_status status = find_input(tensor, file, name, 0, rank, shape, err);
    if (status != TSAR_OK || !*tensor) return status;
    const size_t count = (size_t)(*tensor)->count;
    *out = tsar_alloc(count, sizeof **out, name, err);
    if (!*out) return TSAR_ROOM;
    status = tsar_file_read_i64(file, *tensor, 0, count, *out, err);
    for (size_t i = 0; status == TSAR_OK && i < count; i++)
        if ((*out)[i] < 0 || (uint64_t)(*out)[i] >= limit)
            status = tsar_fail(err, TSAR_INPUT, "%s: tensor %s holds %" PRId64 " at index %zu, the model allows 0 ... %zu", tsar_file_path(file), name,
                               (*out)[i], i, limit - 1);
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

tsar_prompt tsar_prompt_of(const tsar_inputs *inputs)
{
    tsar_prompt prompt = { .text = inputs->text, .n_text = inputs->n_text, .class_id = inputs->class_id, .caption = inputs->caption,
                           .caption_mask = inputs->caption_mask, .text_uncond = inputs->text_uncond, .n_text_uncond = inputs->n_text_uncond };
    return prompt;
}

int tsar_has_prompt(const tsar_config *config, const tsar_inputs *inputs)
{
    switch (tsar_family_of(config)->prefix) {
    case TSAR_PREFIX_IDS: return inputs->text != NULL;
    case TSAR_PREFIX_CLASS: return inputs->has_class;
    case TSAR_PREFIX_CAPTION: return inputs->caption && inputs->caption_mask;
    case TSAR_PREFIX_NONE: break;
    }
    return 0;
}

/* What the transformer is conditioned on: input.text (and input.text_uncond), input.class, or input.caption and input.caption_mask. */
static tsar_status read_prompt(tsar_inputs *inputs, const tsar_model *model, tsar_file *file, tsar_error *err)
{
    const tsar_config *c = &model->config;
    const tsar_prefix prefix = tsar_family_of(c)->prefix;
    const size_t any[1] = { 0 }, one[1] = { 1 }, caption[2] = { c->cond_tokens, c->caption_dim };
    const tsar_tensor *tensor = NULL;
    int64_t *class_id = NULL;
    tsar_status status = TSAR_OK;
    if (prefix == TSAR_PREFIX_IDS) {
        status = read_integers(&inputs->text, &tensor, file, "input.text", 1, any, c->n_ids, err);
        if (tensor) inputs->n_text = (size_t)tensor->count;
        if (status == TSAR_OK) status = read_integers(&inputs->text_uncond, &tensor, file, "input.text_uncond", 1, any, c->n_ids, err);
        if (status == TSAR_OK && tensor) inputs->n_text_uncond = (size_t)tensor->count;
    } else if (prefix == TSAR_PREFIX_CLASS) {
        status = read_integers(&class_id, &tensor, file, "input.class", 1, one, c->num_classes + 1, err);
        if (status == TSAR_OK && tensor) inputs->has_class = 1, inputs->class_id = (size_t)class_id[0];
        tsar_free(class_id);
    } else if (prefix == TSAR_PREFIX_CAPTION) {
        status = read_floats(&inputs->caption, file, "input.caption", 2, caption, err);
        if (status == TSAR_OK) status = read_floats(&inputs->caption_mask, file, "input.caption_mask", 1, caption, err);
    }
    if (status != TSAR_OK || !tsar_has_prompt(c, inputs)) return status;
    const tsar_prompt prompt = tsar_prompt_of(inputs);
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
        return tsar_fail(err, TSAR_INPUT, "%s: input.image is %zu x %zu pixels, the model needs multiples of %zu", tsar_file_path(file), tensor->shape[1],
                         tensor->shape[0], c->vq_factor);
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
    if (status == TSAR_OK && c->has_t5) {
        status = read_integers(&inputs->t5_ids, &tensor, file, "input.t5_ids", 1, any, c->t5_vocab, err);
        if (status == TSAR_OK && tensor) inputs->n_t5_ids = (size_t)tensor->count;
    }
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
    tsar_free(inputs->text_uncond);
    tsar_free(inputs->t5_ids);
    tsar_free(inputs->caption);
    tsar_free(inputs->caption_mask);
    tsar_free(inputs->codes);
    tsar_free(inputs->coarse);
    tsar_free(inputs->image);
    memset(inputs, 0, sizeof *inputs);
}

/* The parts of the model that the inputs feed. */
int tsar_parts_fed(const tsar_config *c, const tsar_inputs *inputs)
{
    const int64_t *tokens = c->n_coarse ? inputs->coarse : inputs->codes;
    const int on_grid = c->n_coarse || (inputs->h == c->grid_h && inputs->w == c->grid_w);
    return (c->has_gpt && tsar_has_prompt(c, inputs) && tokens && on_grid ? TSAR_PART_GPT : 0) | (c->has_fine && inputs->coarse ? TSAR_PART_FINE : 0) |
           (c->has_vq && (inputs->image || inputs->codes) ? TSAR_PART_VQ : 0) | (c->has_t5 && inputs->t5_ids ? TSAR_PART_T5 : 0);
}

/* The inputs that a part of the model needs, in words. NULL: the model has no such part. */
const char *tsar_part_needs(const tsar_config *c, int part)
{
    if (part == TSAR_PART_T5) return c->has_t5 ? "input.t5_ids" : NULL;
    if (part == TSAR_PART_FINE) return c->has_fine ? "input.coarse" : NULL;
    if (part == TSAR_PART_VQ) return c->has_vq ? "input.image or input.codes" : NULL;
    switch (tsar_family_of(c)->prefix) {
    case TSAR_PREFIX_IDS: return c->n_coarse ? "input.text and input.coarse" : "input.text and input.codes";
    case TSAR_PREFIX_CLASS: return c->n_coarse ? "input.class and input.coarse" : "input.class and input.codes";
    case TSAR_PREFIX_CAPTION:
        return c->n_coarse ? "input.caption, input.caption_mask and input.coarse" : "input.caption, input.caption_mask and input.codes";
    case TSAR_PREFIX_NONE: break;
    }
    return NULL;
}

/* "SOURCE feeds no part of the model: ..." */
tsar_status tsar_fail_unfed(const tsar_config *c, const char *source, tsar_error *err)
{
    char list[256] = "";
    for (int i = 0; i < TSAR_PARTS; i++) {
        const char *needs = tsar_part_needs(c, tsar_parts[i].part);
        size_t used = strlen(list);
        if (needs) (void)snprintf(list + used, sizeof list - used, "%s%s* needs %s", used ? "; " : "", tsar_parts[i].prefix, needs);
    }
    return tsar_fail(err, TSAR_INPUT, "%s: feeds no part of the model (%s)", source, list);
}

/* -------------------------------------------------------------------------------------------------------------- trace */

tsar_status tsar_emit_inputs(const tsar_model *model, const tsar_inputs *inputs, const tsar_sink *sink, tsar_error *err)
{
    const tsar_config *c = &model->config;
    const size_t text[1] = { inputs->n_text }, uncond[1] = { inputs->n_text_uncond }, ids[1] = { inputs->n_t5_ids }, one[1] = { 1 },
                 codes[2] = { inputs->h, inputs->w },
                 caption[2] = { c->cond_tokens, c->caption_dim },
                 grid[2] = { c->grid_h, c->grid_w }, image[3] = { inputs->H, inputs->W, 3 }, clusters[1] = { c->codebook_size };
    int64_t class_id = (int64_t)inputs->class_id;
    tsar_status status = TSAR_OK;
    if (inputs->text) status = tsar_emit(sink, err, TSAR_I64, inputs->text, 1, text, "input.text");
    if (status == TSAR_OK && inputs->text_uncond) status = tsar_emit(sink, err, TSAR_I64, inputs->text_uncond, 1, uncond, "input.text_uncond");
    if (status == TSAR_OK && inputs->t5_ids) status = tsar_emit(sink, err, TSAR_I64, inputs->t5_ids, 1, ids, "input.t5_ids");
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

/* The text encoder: t5.embed ... t5.norm. */
static tsar_status trace_t5(const tsar_model *model, const tsar_inputs *inputs, const tsar_sink *sink, tsar_error *err)
{
    double *out = tsar_alloc(inputs->n_t5_ids, model->config.t5_dim * sizeof *out, "t5.norm", err);
    const tsar_status status = out ? tsar_t5_encode(model, inputs->t5_ids, inputs->n_t5_ids, out, sink, err) : TSAR_ROOM;
    tsar_free(out);
    return status;
}

/* The tokenizer: the encoder if there is an image, then the decoder on its codes, or on those given. What the sink makes of the codes is decoded. */
static tsar_status trace_vq(const tsar_model *model, const tsar_inputs *inputs, const tsar_sink *sink, tsar_error *err)
{
    const size_t factor = model->config.vq_factor, h = inputs->image ? inputs->H / factor : inputs->h, w = inputs->image ? inputs->W / factor : inputs->w;
    const size_t shape[2] = { h, w };
    int64_t *codes = tsar_alloc(h, w * sizeof *codes, "vq.codes", err);
    tsar_status status = codes ? TSAR_OK : TSAR_ROOM;
    if (status == TSAR_OK && inputs->image) status = tsar_vq_encode(model, inputs->image, inputs->H, inputs->W, codes, sink, err);
    if (status == TSAR_OK && !inputs->image) {
        memcpy(codes, inputs->codes, h * w * sizeof *codes);
        status = tsar_emit(sink, err, TSAR_I64, codes, 2, shape, "vq.codes");
    }
    if (status == TSAR_OK) status = tsar_vq_decode(model, codes, h, w, NULL, sink, err);
    tsar_free(codes);
    return status;
}

tsar_status tsar_run_part(const tsar_model *model, const tsar_inputs *inputs, int part, const tsar_sink *sink, tsar_error *err)
{
    const tsar_prompt prompt = tsar_prompt_of(inputs);
    if (part == TSAR_PART_GPT) return tsar_gpt_trace(model, &prompt, model->config.n_coarse ? inputs->coarse : inputs->codes, sink, err);
    if (part == TSAR_PART_T5) return trace_t5(model, inputs, sink, err);
    return part == TSAR_PART_FINE ? trace_fine(model, inputs->coarse, sink, err) : trace_vq(model, inputs, sink, err);
}

tsar_status tsar_trace(const tsar_model *model, const tsar_inputs *inputs, const tsar_sink *sink, tsar_error *err)
{
    const int fed = tsar_parts_fed(&model->config, inputs);
    tsar_status status = fed ? tsar_emit_inputs(model, inputs, sink, err) : tsar_fail_unfed(&model->config, "the trace's input", err);
    for (size_t i = 0; status == TSAR_OK && i < TSAR_PARTS; i++)
        if (fed & tsar_parts[i].part) status = tsar_run_part(model, inputs, tsar_parts[i].part, sink, err);
    return status;
}

/* ------------------------------------------------------------------------------------------------------ a trace file */

/* A trace on its way into a file: the header tells all shapes, so that the numbers wait in a temporary file until the last is known. */
typedef struct {
    tsar_values *tensors; /* data: NULL unless kept in memory */
    uint64_t *places;     /* [n]: where each begins in `waiting` */
    size_t n, room;
    uint64_t used;    /* bytes of `waiting` */
    FILE *waiting;    /* NULL: the system has no temporary files; then memory holds the trace */
    const char *only; /* NULL: all */
} kept_trace;

/* Whether `name` fits a pattern in which * stands for any letters and ? for one. */
static int matches(const char *pattern, const char *name)
{
    if (*pattern == '*') return matches(pattern + 1, name) || (*name && matches(pattern, name + 1));
    return *pattern == 0 ? *name == 0 : *name && (*pattern == '?' || *pattern == *name) && matches(pattern + 1, name + 1);
}

/* Doubles the room of a trace. */
static tsar_status widen_trace(kept_trace *trace, tsar_error *err)
{
    const size_t room = trace->room ? 2 * trace->room : 64;
    tsar_values *tensors = tsar_alloc(room, sizeof *tensors, "the list of tensors", err);
    uint64_t *places = tsar_alloc(room, sizeof *places, "the list of tensors", err);
    if (tensors && places && trace->n) {
        memcpy(tensors, trace->tensors, trace->n * sizeof *tensors);
        memcpy(places, trace->places, trace->n * sizeof *places);
    }
    tsar_free(tensors && places ? trace->tensors : tensors);
    tsar_free(tensors && places ? trace->places : places);
    if (!tensors || !places) return TSAR_ROOM;
    trace->tensors = tensors, trace->places = places, trace->room = room;
    return TSAR_OK;
}

/* The sink of a trace file: a copy of the name; the data into the temporary file. */
static tsar_status keep_tensor(void *context, const char *name, tsar_dtype dtype, size_t rank, const size_t *shape, void *data, tsar_error *err)
{
    kept_trace *trace = context;
    if (trace->only && !tsar_has_prefix(name, "input.") && !matches(trace->only, name)) return TSAR_OK;
    if (trace->n == trace->room && widen_trace(trace, err) != TSAR_OK) return TSAR_ROOM;
    tsar_values *kept = &trace->tensors[trace->n];
    const size_t name_size = (strlen(name) + 8) / 8 * 8;
    size_t bytes = tsar_dtype_size(dtype);
    for (size_t i = 0; i < rank; i++) bytes *= shape[i];
    char *copy = tsar_alloc(name_size + (trace->waiting ? 0 : bytes), 1, name, err); /* the name, then the data, aligned for double */
    if (!copy) return TSAR_ROOM;
    memcpy(copy, name, strlen(name));
    kept->name = copy, kept->dtype = dtype, kept->rank = rank, kept->data = NULL;
    memcpy(kept->shape, shape, rank * sizeof *shape);
    trace->n++;
    if (!trace->waiting) {
        memcpy(copy + name_size, data, bytes);
        kept->data = copy + name_size;
        return TSAR_OK;
    }
    trace->places[trace->n - 1] = trace->used;
    trace->used += bytes;
    if (fwrite(data, 1, bytes, trace->waiting) != bytes)
        return tsar_fail(err, TSAR_ROOM, "the temporary file of a trace cannot take %s: its disk is full; choose fewer tensors with --only", name);
    return TSAR_OK;
}

/* The configuration as metadata (SPEC 2): `tsar synth --like` of a trace makes the model again if it was synthetic. */
static tsar_status put_config(tsar_writer *writer, const tsar_config *c, tsar_error *err)
{
    char text[TSAR_KEY_TEXT];
    size_t n;
    const tsar_key *keys = tsar_keys(&n);
    tsar_status status = TSAR_OK;
    for (size_t i = 0; status == TSAR_OK && i < n; i++)
        if (tsar_key_text(text, c, &keys[i])) status = tsar_writer_meta(writer, keys[i].name, text, err);
    return status;
}

/* Tensor i from the temporary file into the writer, a piece at a time. */
static tsar_status copy_waiting(tsar_writer *writer, const kept_trace *trace, size_t i, uint64_t count, tsar_error *err)
{
    enum { COPIED = 1 << 16 };
    const size_t size = tsar_dtype_size(trace->tensors[i].dtype);
    tsar_status status = TSAR_OK;
    void *piece = tsar_alloc(COPIED, size, "a piece of a trace", err);
    if (!piece) return TSAR_ROOM;
    if (!tsar_system_seek(trace->waiting, trace->places[i])) status = tsar_fail(err, TSAR_ROOM, "the temporary file of a trace cannot be read");
    for (uint64_t at = 0; status == TSAR_OK && at < count; at += COPIED) {
        const size_t n = count - at < COPIED ? (size_t)(count - at) : COPIED;
        status = fread(piece, size, n, trace->waiting) == n ? tsar_writer_put(writer, piece, n, err)
                                                            : tsar_fail(err, TSAR_ROOM, "the temporary file of a trace cannot be read");
    }
    tsar_free(piece);
    return status;
}

/* All tensors of a trace into a writer whose metadata is complete; it is committed, or abandoned on failure. */
static tsar_status write_kept(tsar_writer *writer, const kept_trace *trace, tsar_error *err)
{
    const tsar_tensor *next;
    tsar_status status = TSAR_OK;
    if (!trace->waiting) return tsar_values_write(writer, trace->tensors, trace->n, err);
    for (size_t i = 0; status == TSAR_OK && i < trace->n; i++)
        status = tsar_writer_declare(writer, trace->tensors[i].name, trace->tensors[i].dtype, trace->tensors[i].rank, trace->tensors[i].shape, err);
    while (status == TSAR_OK && (next = tsar_writer_next(writer)) != NULL) {
        size_t i = 0;
        while (strcmp(trace->tensors[i].name, next->name) != 0) i++;
        status = copy_waiting(writer, trace, i, next->count, err);
    }
    if (status == TSAR_OK) return tsar_writer_commit(writer, err);
    tsar_writer_abandon(writer);
    return status;
}

tsar_status tsar_trace_write(const tsar_model *model, const tsar_inputs *inputs, const char *only, int inside, const char *path, tsar_error *err)
{
    kept_trace trace = { .waiting = tsar_system_scratch(), .only = only };
    const tsar_sink sink = { .put = keep_tensor, .context = &trace, .inside = inside };
    tsar_writer *writer = NULL;
    tsar_status status = tsar_trace(model, inputs, &sink, err);
    if (status == TSAR_OK) status = tsar_writer_open(&writer, path, err);
    if (status == TSAR_OK) {
        status = put_config(writer, &model->config, err);
        if (status == TSAR_OK)
            status = write_kept(writer, &trace, err);
        else
            tsar_writer_abandon(writer);
    }
    for (size_t i = 0; i < trace.n; i++) tsar_free((void *)trace.tensors[i].name);
    tsar_free(trace.tensors);
    tsar_free(trace.places);
    if (trace.waiting) (void)fclose(trace.waiting);
    return status;
}
