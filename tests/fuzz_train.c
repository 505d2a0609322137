/* fuzz_train.c - libFuzzer targets for what the trainer reads, built by fuzz.sh with -DTARGET=1 ...: a checkpoint, from which a run of three small
 * parameters and a counter goes on; codes of pictures; an image tokenizer. Nothing is trained. Whatever happens, the trainer must go on, or say one
 * line. Run in a folder of its own, best in memory, with the corpus as the last argument: the seed is put there. */
#include "fuzz.h"

#include "../weights/train/gpt.h"
#include "../weights/train/vq.h"

#include <stdio.h>

#define INPUT "fuzz_train.tmp"

enum { CHECKPOINT = 1, CODES, TOKENIZER };

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned seed);

static int64_t counters[5];

/* A run of three parameters, and what it keeps beside them. */
static void open_run(train_run *run, train_tape *tape)
{
    static const size_t shapes[3][2] = { { 4, 3 }, { 300, 2 }, { 7, 0 } };
    static const char *const names[3] = { "gpt.output.weight", "gpt.tok_embeddings.weight", "gpt.norm.weight" };
    const train_run fresh = { .stage = "gpt", .checkpoint = INPUT, .output = INPUT, .seed = 3, .steps = 20, .batch = 2, .rate = 1e-3 };
    *run = fresh;
    run->rate_steps = 20, run->finish_from = 12, run->warm_up = 2;
    run_key(run, "dim", "%d", 16);
    run->state.name = "train.used", run->state.rank = 1, run->state.shape[0] = 5, run->state.values = counters;
    train_tape_open(tape, 1, 1);
    for (size_t i = 0; i < 3; i++) (void)train_param_new(tape, names[i], i < 2 ? 2 : 1, shapes[i], 0, 1);
    if (tape->status != TSAR_OK) abort();
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned seed) { return fuzz_mutate_header(data, size, room, seed); }

static tsar_status write_codes(const char *path, tsar_error *err)
{
    static const char *const keys[] = { "codes.done", "codes.seed", "codes.tokenizer" };
    static const int16_t codes[2 * 4] = { 0, 1, 2, 3, 3, 2, 1, 0 };
    static const size_t shape[3] = { 2, 2, 2 };
    tsar_writer *writer;
    tsar_status status = tsar_writer_open(&writer, path, err);
    for (size_t i = 0; status == TSAR_OK && i < 3; i++) status = tsar_writer_meta(writer, keys[i], "2", err);
    if (status == TSAR_OK) status = tsar_writer_declare(writer, "codes", TSAR_I16, 3, shape, err);
    if (status == TSAR_OK && tsar_writer_next(writer)) status = tsar_writer_put(writer, codes, 8, err);
    return status == TSAR_OK ? tsar_writer_commit(writer, err) : status;
}

static tsar_status write_tokenizer(const char *path, tsar_error *err)
{
    static const char *const keys[] = { "vq_ch",      "vq_ch_mult", "vq_res_blocks", "vq_z_channels", "vq_embed_dim",
                                        "vq_l2_norm", "vq_groups",  "codebook_size", "seed" };
    static const char *const values[] = { "2", "1,1,1", "1", "2", "2", "1", "1", "4", "2" };
    return tsar_synth(path, keys, values, sizeof keys / sizeof *keys, TSAR_F32, err);
}

static tsar_status write_checkpoint(const char *path, tsar_error *err)
{
    train_run run;
    train_tape tape;
    open_run(&run, &tape);
    run.checkpoint = path, run.step = 5;
    const tsar_status status = run_save(&run, &tape, err);
    train_tape_close(&tape);
    return status;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    char path[512];
    tsar_error err;
    (void)snprintf(path, sizeof path, "%s/seed", (*argv)[*argc - 1]);
    if ((TARGET == CHECKPOINT ? write_checkpoint : TARGET == CODES ? write_codes : write_tokenizer)(path, &err) != TSAR_OK) abort();
    return 0;
}

static tsar_status resume(tsar_error *err)
{
    train_run run;
    train_tape tape;
    open_run(&run, &tape);
    const tsar_status status = run_resume(&run, &tape, err);
    if (status == TSAR_OK && run.step > run.steps) abort();
    train_tape_close(&tape);
    return status;
}

static tsar_status read_codes(tsar_error *err)
{
    code_set set;
    const tsar_status status = code_set_read(&set, INPUT, err);
    if (status != TSAR_OK) return status;
    for (size_t i = 0; i < set.count * set.grid * set.grid; i++) counters[0] += set.codes[i];
    code_set_close(&set);
    return TSAR_OK;
}

static tsar_status open_tokenizer(tsar_error *err)
{
    vq_net net;
    const tsar_status status = vq_open_file(&net, INPUT, 1, 1, err);
    if (status == TSAR_OK) vq_close(&net);
    return status;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    tsar_error err = { "" };
    FILE *file = fopen(INPUT, "wb");
    if (!file || fwrite(data, 1, size, file) != size) abort();
    fclose(file);
    const tsar_status status = TARGET == CHECKPOINT ? resume(&err) : TARGET == CODES ? read_codes(&err) : open_tokenizer(&err);
    if (status != TSAR_OK && (status > TSAR_ROOM || err.text[0] == '\0' || strchr(err.text, '\n'))) abort();
    return 0;
}
