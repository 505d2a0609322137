/* The model file of a clustering (SPEC 6, coarse-to-fine): a tokenizer and the coarse label of each of its codes. */
#include "../tsar.h"

#include <stdio.h>
#include <string.h>

typedef struct {
    tsar_file *file;
    int keeps_stacks; /* gpt.* and fine.* predict as many labels already */
    size_t K, k;
    const int64_t *cluster_of;
} copier;

/* Whether a key describes the two transformers, or how they are talked to, and nothing else. */
static int is_stack_key(const char *name)
{
    const tsar_key *key = tsar_key_find(name);
    const unsigned dropped = TSAR_PART_GPT | TSAR_PART_FINE | TSAR_PART_TEXT;
    return key ? (key->parts & ~dropped) == 0 : strcmp(name, "known_words") == 0;
}

static int is_kept(const copier *c, const char *name)
{
    if (strcmp(name, "ctf.cluster_of") == 0) return 0;
    return c->keeps_stacks || (strncmp(name, "gpt.", 4) != 0 && strncmp(name, "fine.", 5) != 0 && strncmp(name, "tokenizer.", 10) != 0);
}

static tsar_status declare_all(const copier *c, tsar_writer *writer, tsar_error *err)
{
    char number[32];
    tsar_status status = TSAR_OK;
    for (size_t i = 0; status == TSAR_OK && i < tsar_file_meta_count(c->file); i++) {
        const char *key, *value;
        tsar_file_meta_at(c->file, i, &key, &value);
        if (c->keeps_stacks || !is_stack_key(key)) status = tsar_writer_meta(writer, key, value, err);
    }
    (void)snprintf(number, sizeof number, "%lu", (unsigned long)c->k);
    if (status == TSAR_OK) status = tsar_writer_meta(writer, "n_coarse", number, err);
    for (size_t i = 0; status == TSAR_OK && i < tsar_file_count(c->file); i++) {
        const tsar_tensor *tensor = tsar_file_at(c->file, i);
        if (is_kept(c, tensor->name)) status = tsar_writer_declare(writer, tensor->name, tensor->dtype, tensor->rank, tensor->shape, err);
    }
    return status == TSAR_OK ? tsar_writer_declare(writer, "ctf.cluster_of", TSAR_I64, 1, &c->K, err) : status;
}

static tsar_status write_copy(const copier *c, const char *to, tsar_error *err)
{
    tsar_writer *writer = NULL;
    const tsar_tensor *next;
    tsar_status status = tsar_writer_open(&writer, to, err);
    if (status != TSAR_OK) return status;
    status = declare_all(c, writer, err);
    while (status == TSAR_OK && (next = tsar_writer_next(writer)) != NULL)
        status = strcmp(next->name, "ctf.cluster_of") == 0 ? tsar_writer_put(writer, c->cluster_of, c->K, err)
                                                           : tsar_writer_copy(writer, c->file, tsar_file_find(c->file, next->name), err);
    if (status == TSAR_OK) return tsar_writer_commit(writer, err);
    tsar_writer_abandon(writer);
    return status;
}

tsar_status tsar_cluster_write(const char *from, const char *to, size_t k, uint64_t seed, size_t threads, tsar_note_fn note, void *context,
                               tsar_error *err)
{
    tsar_model *model = NULL;
    int64_t *cluster_of = NULL;
    copier c = { NULL, 0, 0, k, NULL };
    tsar_status status = tsar_model_open(&model, from, TSAR_PART_VQ, threads, err);
    if (status == TSAR_OK && !model->config.has_vq)
        status = tsar_fail(err, TSAR_INPUT, "%s: has no image tokenizer (vq.*), so there are no codewords to cluster", from);
    if (status == TSAR_OK && k > model->config.codebook_size)
        status = tsar_fail(err, TSAR_INPUT, "%zu labels are more than the %zu codes of %s", k, model->config.codebook_size, from);
    if (status == TSAR_OK) {
        c.K = model->config.codebook_size, c.keeps_stacks = model->config.n_coarse == k;
        if (!(cluster_of = tsar_alloc(c.K, sizeof *cluster_of, "ctf.cluster_of", err))) status = TSAR_ROOM;
    }
    if (status == TSAR_OK) status = tsar_cluster(model, k, seed, cluster_of, err);
    if (status == TSAR_OK && note && !c.keeps_stacks && (model->config.has_gpt || model->config.has_fine))
        note(context, "gpt.* and fine.* are left out: they do not predict this number of labels and have to be trained anew");
    tsar_model_close(model);
    c.cluster_of = cluster_of;
    if (status == TSAR_OK) status = tsar_file_open(&c.file, from, err);
    if (status == TSAR_OK) status = write_copy(&c, to, err);
    tsar_file_close(c.file);
    tsar_free(cluster_of);
    return status;
}
