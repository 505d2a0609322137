/* The tokenizer of text that lies beside a checkpoint (SPEC 11): byte pairs as tensors tokenizer.*, spiece.model as it is. */
#include "import.h"

#include <inttypes.h>
#include <string.h>

enum { MAX_SPIECE = 1 << 27 };

const char *const tsar_import_beside[] = {
    "config.json", "text_tokenizer.json", "tokenizer.json", "emu3.tiktoken", "emu3_vision_tokens.txt", "spiece.model", NULL
};

/* What the published models call theirs, by arch; the best first. */
static const struct {
    const char *arch, *file;
} TOKENIZERS[] = {
    { "lumina-mgpt", "text_tokenizer.json" },
    { "lumina-mgpt", "tokenizer.json" },
    { "emu3", "emu3.tiktoken" },
    { "janus", "tokenizer.json" },
};

/* The path of a file of this name in the folder of a checkpoint that has, or has not, a T5 encoder beside it; NULL if there is none. */
static tsar_status find_beside(const tsar_importer *im, const char *name, int t5, char **path)
{
    *path = NULL;
    int named = 0; /* a checkpoint of Hugging Face's encoder is there; else a model file of tsar's has it */
    for (size_t i = 0; i < im->n_files; i++) named = named || im->files[i].naming->t5;
    for (size_t i = 0; i < im->n_files; i++) {
        const char *file = im->files[i].checkpoint.path;
        const size_t folder = tsar_path_folder(file);
        if (im->files[i].naming->t5 != (t5 && named)) continue;
        char *candidate = tsar_alloc(folder + strlen(name) + 1, 1, "a path", im->err);
        if (!candidate) return TSAR_ROOM;
        memcpy(candidate, file, folder);
        strcpy(candidate + folder, name);
        if (tsar_path_kind(candidate) == TSAR_PATH_FILE) {
            *path = candidate;
            return TSAR_OK;
        }
        tsar_free(candidate);
    }
    return TSAR_OK;
}

/* A word of a choice, by its number. */
static void choice(char *text, size_t room, const char *key, int number)
{
    const char *words = tsar_key_find(key)->choices;
    for (; number > 0; number--) words += strcspn(words, " ") + 1;
    snprintf(text, room, "%.*s", (int)strcspn(words, " "), words);
}

/* A tensor of the model file that is no tensor of a checkpoint; without elements it is left out. */
static void add(tsar_importer *im, const char *name, tsar_dtype dtype, size_t rank, size_t rows, const void *data)
{
    tsar_values *values = &im->text[im->n_text];
    if (!data) return;
    values->name = name;
    values->dtype = dtype;
    values->rank = rank;
    values->shape[0] = rows;
    values->shape[1] = 2;
    values->data = data;
    im->n_text++;
}

/* SPEC 11: the tensors of a byte-pair tokenizer. */
static void add_bpe(tsar_importer *im)
{
    const tsar_bpe *bpe = &im->bpe;
    add(im, "tokenizer.merges", TSAR_I64, 2, bpe->n_merges, bpe->merges);
    add(im, "tokenizer.merge_ids", TSAR_I64, 1, bpe->n_merges, bpe->merge_ids);
    add(im, "tokenizer.merge_ranks", TSAR_I64, 1, bpe->n_merges, bpe->merge_ranks);
    add(im, "tokenizer.bytes", TSAR_I64, 1, 256, bpe->byte_ids);
    if (bpe->whole.n) {
        add(im, "tokenizer.whole", TSAR_U8, 1, bpe->whole.n_bytes, bpe->whole.bytes);
        add(im, "tokenizer.whole_at", TSAR_I64, 1, bpe->whole.n + 1, bpe->whole.at);
        add(im, "tokenizer.whole_ids", TSAR_I64, 1, bpe->whole.n, bpe->whole.ids);
    }
    if (bpe->special.n) {
        add(im, "tokenizer.special", TSAR_U8, 1, bpe->special.n_bytes, bpe->special.bytes);
        add(im, "tokenizer.special_at", TSAR_I64, 1, bpe->special.n + 1, bpe->special.at);
        add(im, "tokenizer.special_ids", TSAR_I64, 1, bpe->special.n, bpe->special.ids);
        add(im, "tokenizer.special_pass", TSAR_U8, 1, bpe->special.n, bpe->special_pass);
    }
}

static tsar_status read_bpe(tsar_importer *im, const char *path)
{
    char split[32], normal[32];
    tsar_error why = { "" };
    tsar_status status = tsar_bpe_read(&im->bpe, path, &why);
    if (status != TSAR_OK) return tsar_fail(im->err, status, "%s (drop=tokenizer. imports without it)", why.text);
    choice(split, sizeof split, "text_split", (int)im->bpe.split);
    choice(normal, sizeof normal, "text_normal", im->bpe.nfc);
    tsar_note(im->note, im->context, "%s: kept as the tokenizer of text: %zu merges, %zu added tokens, text_split=%s text_normal=%s", path, im->bpe.n_merges,
              im->bpe.special.n, split, normal);
    status = tsar_import_give(im, "text_split", split, TSAR_CONFIG_JSON, path);
    if (status == TSAR_OK) status = tsar_import_give(im, "text_normal", normal, TSAR_CONFIG_JSON, path);
    if (status == TSAR_OK) add_bpe(im);
    return status;
}

/* The file is kept as it is, once it is known to be one. */
static tsar_status read_spiece(tsar_importer *im, const char *path)
{
    tsar_spiece *spiece = NULL;
    tsar_error why = { "" };
    tsar_status status = tsar_text_file(path, MAX_SPIECE, "a spiece.model", &im->spiece, &im->n_spiece, im->err);
    if (status == TSAR_OK) {
        status = tsar_spiece_open(&spiece, im->spiece, im->n_spiece, path, &why);
        if (status == TSAR_OK) im->n_pieces = tsar_spiece_count(spiece);
        tsar_spiece_close(spiece);
        if (status != TSAR_OK) return tsar_fail(im->err, status, "%s (drop=t5.spiece imports without it)", why.text);
    }
    if (status != TSAR_OK) return status;
    tsar_note(im->note, im->context, "%s: kept as the tokenizer of the text encoder", path);
    add(im, "t5.spiece", TSAR_U8, 1, im->n_spiece, im->spiece);
    return TSAR_OK;
}

tsar_status tsar_import_text(tsar_importer *im)
{
    const char *arch = tsar_import_get(im, "arch");
    char *path = NULL;
    tsar_status status = TSAR_OK;
    for (size_t i = 0; status == TSAR_OK && arch && !path && i < sizeof TOKENIZERS / sizeof *TOKENIZERS; i++)
        if (strcmp(TOKENIZERS[i].arch, arch) == 0 && !tsar_import_has(im, "tokenizer.") && !tsar_import_drops(im, "tokenizer."))
            status = find_beside(im, TOKENIZERS[i].file, 0, &path);
    if (path) status = read_bpe(im, path);
    tsar_free(path);
    path = NULL;
    if (status == TSAR_OK && tsar_import_has(im, "t5.") && !tsar_import_find(im, "t5.spiece") && !tsar_import_drops(im, "t5.spiece"))
        status = find_beside(im, "spiece.model", 1, &path);
    if (path) status = read_spiece(im, path);
    tsar_free(path);
    return status;
}

/* The largest of n ids. */
static int64_t largest(const int64_t *ids, size_t n, int64_t most)
{
    for (size_t i = 0; ids && i < n; i++)
        if (ids[i] > most) most = ids[i];
    return most;
}

tsar_status tsar_import_check_text(const tsar_importer *im, const tsar_config *config)
{
    const tsar_bpe *bpe = &im->bpe;
    if (im->n_pieces > config->t5_vocab)
        return tsar_fail(im->err, TSAR_INPUT, "%s: the spiece.model beside it has %zu pieces, the encoder %zu ids (drop=t5.spiece imports without it)",
                         im->name, im->n_pieces, config->t5_vocab);
    int64_t most = largest(bpe->merge_ids, bpe->n_merges, -1);
    most = largest(bpe->whole.ids, bpe->whole.n, most);
    most = largest(bpe->special.ids, bpe->special.n, most);
    most = largest(bpe->byte_ids, 256, most);
    if (most < 0 || (uint64_t)most < config->n_ids) return TSAR_OK;
    return tsar_fail(im->err, TSAR_INPUT, "%s: the tokenizer beside it has id %" PRId64 ", the model has %zu (drop=tokenizer. imports without it)", im->name,
                     most, config->n_ids);
}

void tsar_import_close_text(tsar_importer *im)
{
    tsar_bpe_close(&im->bpe);
    tsar_free(im->spiece);
}
