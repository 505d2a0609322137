/* job.c - the images of one prompt and their files: their names, the command that makes them again, the text of a PNG, and which of them are
 * there already. */
#include "../tsar.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { GREY = 128 }; /* of what is not decoded yet */

/* -------------------------------------------------------------------------------------------------------- the command */

/* text for a shell, in single quotes where it needs them, appended to out; returns the new end. */
static char *put_quoted(char *out, const char *text)
{
    static const char plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-+./,:=@%";
    const size_t length = strlen(text);
    if (length > 0 && strspn(text, plain) == length) {
        memcpy(out, text, length + 1);
        return out + length;
    }
    *out++ = '\'';
    for (; *text; text++) {
        if (*text == '\'') memcpy(out, "'\\'", 3), out += 3;
        *out++ = *text;
    }
    *out++ = '\'';
    *out = 0;
    return out;
}

/* The command that generates the same again in the same folder: the model, unless it is the shipped one, and every setting. */
tsar_status tsar_job_open(tsar_job *job, tsar_error *err)
{
    enum { QUOTED = 4, REST = 512 }; /* bytes that a byte takes in quotes at most; and of all other settings */
    const tsar_settings *s = job->settings;
    const char *model = job->model_path ? job->model_path : "";
    char cfg[32], temperature[32], top_p[32], order[64];
    size_t size = QUOTED * strlen(model) + REST;
    for (size_t i = 0; i < job->n_flags; i++) size += strlen(job->flags[i]) + 4 + (job->values[i] ? QUOTED * strlen(job->values[i]) : 0);
    job->command = tsar_alloc(size, 1, "the command line", err);
    if (job->command == NULL) return TSAR_ROOM;
    char *end = job->command + sprintf(job->command, "tsar generate%s", job->model_path ? " -m " : "");
    if (job->model_path) end = put_quoted(end, model);
    for (size_t i = 0; i < job->n_flags; i++) {
        end += sprintf(end, " --%s%s", job->flags[i], job->values[i] ? " " : "");
        if (job->values[i]) end = put_quoted(end, job->values[i]);
    }
    (void)snprintf(end, size - (size_t)(end - job->command),
                   " -n %zu --seed %" PRIu64 " --cfg %s --cfg-schedule %s --cfg-interval %" PRId64 " --temperature %s --top-k %zu --top-p %s%s --decode %s",
                   job->images, s->seed, tsar_real_text(cfg, s->cfg), tsar_schedule_names[s->schedule], s->cfg_interval,
                   tsar_real_text(temperature, s->temperature), s->top_k, tsar_real_text(top_p, s->top_p), s->greedy ? " --greedy" : "",
                   tsar_order_text(order, s));
    return TSAR_OK;
}

void tsar_job_close(tsar_job *job)
{
    tsar_free(job->command);
    job->command = NULL;
}

/* ---------------------------------------------------------------------------------------------------------- the files */

/* "out.png" as it is for one image, "out-3.png" for image 3 of several. */
static tsar_status put_number(char out[TSAR_JOB_PATH], const char *path, size_t image, size_t images, tsar_error *err)
{
    const char *name = path + tsar_path_folder(path), *dot = strrchr(name, '.');
    const int stem = dot ? (int)(dot - path) : (int)strlen(path);
    const int length =
        images == 1 ? snprintf(out, TSAR_JOB_PATH, "%s", path) : snprintf(out, TSAR_JOB_PATH, "%.*s-%lu%s", stem, path, (unsigned long)image, path + stem);
    return length > 0 && length < TSAR_JOB_PATH ? TSAR_OK : tsar_fail(err, TSAR_USAGE, "%s: the name is too long (give a shorter one)", path);
}

tsar_status tsar_job_names(tsar_job_files *files, const tsar_job *job, size_t image, tsar_error *err)
{
    tsar_status status = TSAR_OK;
    for (int i = 0; i < TSAR_JOB_KINDS && status == TSAR_OK; i++) {
        if (job->files[i]) status = put_number(files->room[i], job->files[i], image, job->images, err);
        files->paths[i] = job->files[i] ? files->room[i] : NULL;
    }
    return status;
}

/* Whether a file of codes carries this command. */
static int has_command(const char *path, const char *command)
{
    tsar_file *file = NULL;
    const char *theirs = tsar_file_open(&file, path, NULL) == TSAR_OK ? tsar_file_meta(file, "command") : NULL;
    const int same = theirs && strcmp(theirs, command) == 0;
    tsar_file_close(file);
    return same;
}

enum { PLACE = 64 };

/* "3 of 12, from 0" */
static const char *place_of(char place[PLACE], const tsar_job *job, size_t image)
{
    (void)snprintf(place, PLACE, "%zu of %zu, from 0", image, job->images);
    return place;
}

/* DIR/frame-0007.png, with several images DIR/frame-3-0007.png */
static tsar_status frame_name(char path[TSAR_JOB_PATH], const tsar_job *job, size_t image, size_t frame, tsar_error *err)
{
    char number[32] = "";
    if (job->images > 1) (void)snprintf(number, sizeof number, "%lu-", (unsigned long)image);
    const int length = snprintf(path, TSAR_JOB_PATH, "%s/frame-%s%04lu%s", job->frames, number, (unsigned long)frame, job->ending);
    return length > 0 && length < TSAR_JOB_PATH ? TSAR_OK : tsar_fail(err, TSAR_USAGE, "--frames %s: the name is too long", job->frames);
}

/* "7", "35, the last" */
static const char *frame_text(char text[PLACE], size_t frame, int is_last)
{
    (void)snprintf(text, PLACE, "%lu%s", (unsigned long)frame, is_last ? ", the last" : "");
    return text;
}

/* Every pass decodes a token at least, and stage two of CTF is one more. */
static size_t most_frames(const tsar_job *job) { return job->frames ? job->model->config.tokens + 1 : 0; }

/* Whether a picture is of this image and command. */
static int is_of(const tsar_job *job, const char *picture, size_t image)
{
    char place[PLACE];
    return tsar_image_has_text(picture, "Command", job->command) && tsar_image_has_text(picture, "Image", place_of(place, job, image));
}

/* Whether all frames of an image are there, from the first to the one that says that it is the last. */
static int has_frames(const tsar_job *job, size_t image)
{
    char path[TSAR_JOB_PATH], text[PLACE];
    for (size_t k = 0; k < most_frames(job); k++) {
        if (frame_name(path, job, image, k, NULL) != TSAR_OK || !is_of(job, path, image)) return 0;
        if (tsar_image_has_text(path, "Frame", frame_text(text, k, 1))) return 1;
        if (!tsar_image_has_text(path, "Frame", frame_text(text, k, 0))) return 0;
    }
    return 0;
}

/* Whether all files of an image are there from a run of the same command; a picture without text counts if its codes tell. */
static int is_done(const tsar_job *job, const tsar_job_files *files, size_t image)
{
    const char *picture = files->paths[TSAR_JOB_PICTURE], *codes = files->paths[TSAR_JOB_CODES], *map = files->paths[TSAR_JOB_ORDER_MAP];
    const int told = picture && is_of(job, picture, image);
    if (picture && !told && (tsar_image_keeps_text(picture) || !codes || !tsar_path_is_readable(picture))) return 0;
    if (codes && !has_command(codes, job->command)) return 0;
    return (told || codes) && (!map || tsar_path_is_readable(map)) && (!job->frames || has_frames(job, image));
}

static tsar_status check_frames(const tsar_job *job, const tsar_names *names, size_t image, tsar_error *err)
{
    char path[TSAR_JOB_PATH];
    tsar_status status = TSAR_OK;
    for (size_t k = 0; k < most_frames(job) && status == TSAR_OK; k++) {
        status = frame_name(path, job, image, k, err);
        if (status == TSAR_OK) status = tsar_names_may_write(names, path, err);
        if (status == TSAR_OK && k + 1 == most_frames(job) && (image == 0 || image + 1 == job->images)) status = tsar_output_check(path, err);
    }
    return status;
}

tsar_status tsar_job_check(const tsar_job *job, tsar_names *names, char *done, tsar_error *err)
{
    tsar_job_files *files = tsar_alloc(1, sizeof *files, "names of files", err); /* 12 kB: too much for a small stack */
    tsar_status status = files ? TSAR_OK : TSAR_ROOM;
    for (size_t i = 0; status == TSAR_OK && i < job->images; i++) {
        status = tsar_job_names(files, job, i, err);
        for (int k = 0; k < TSAR_JOB_KINDS && status == TSAR_OK; k++)
            if (files->paths[k]) status = tsar_names_write(names, files->paths[k], err);
        for (int k = 0; k < TSAR_JOB_KINDS && status == TSAR_OK && (i == 0 || i + 1 == job->images); k++) /* the last names are the longest */
            if (files->paths[k]) status = tsar_output_check(files->paths[k], err);
        if (status == TSAR_OK && done != NULL) done[i] = (char)is_done(job, files, i);
    }
    for (size_t i = 0; status == TSAR_OK && i < job->images; i++) status = check_frames(job, names, i, err);
    tsar_free(files);
    return status;
}

/* The text of a PNG: the prompt, every setting, and the command that makes the same bytes again. */
typedef struct {
    const char *keys[TSAR_JOB_FLAGS + 13], *values[TSAR_JOB_FLAGS + 13];
    char titles[TSAR_JOB_FLAGS][24], buffers[8][64];
    size_t n;
} picture_text;

static void add_text(picture_text *t, const char *key, const char *value) { t->keys[t->n] = key, t->values[t->n++] = value; }

/* "prompt-ids" as a key: Prompt-Ids. */
static const char *title(char text[24], const char *flag)
{
    (void)snprintf(text, 24, "%s", flag);
    for (char *p = text; *p; p++)
        if ((p == text || p[-1] == '-') && *p >= 'a' && *p <= 'z') *p = (char)(*p - 'a' + 'A');
    return text;
}

static void describe_picture(picture_text *t, const tsar_job *job, size_t image)
{
    const tsar_settings *settings = job->settings;
    t->n = 0;
    add_text(t, "Software", "tsar " TSAR_VERSION);
    for (size_t i = 0; i < job->n_flags; i++) add_text(t, title(t->titles[i], job->flags[i]), job->values[i] ? job->values[i] : "yes");
    if (job->ids) add_text(t, "Ids", job->ids);
    (void)snprintf(t->buffers[0], 64, "%" PRIu64, settings->seed);
    (void)snprintf(t->buffers[1], 64, "%" PRId64, settings->cfg_interval);
    (void)snprintf(t->buffers[2], 64, "%zu", settings->top_k);
    add_text(t, "Seed", t->buffers[0]);
    add_text(t, "Cfg", tsar_real_text(t->buffers[4], settings->cfg));
    add_text(t, "Cfg-Schedule", tsar_schedule_names[settings->schedule]);
    add_text(t, "Cfg-Interval", t->buffers[1]);
    add_text(t, "Temperature", tsar_real_text(t->buffers[5], settings->temperature));
    add_text(t, "Top-K", t->buffers[2]);
    add_text(t, "Top-P", tsar_real_text(t->buffers[6], settings->top_p));
    add_text(t, "Greedy", settings->greedy ? "yes" : "no");
    add_text(t, "Decode", tsar_order_text(t->buffers[7], settings));
    add_text(t, "Image", place_of(t->buffers[3], job, image));
    add_text(t, "Command", job->command);
}

tsar_status tsar_job_save(const tsar_job *job, const tsar_prompt *prompt, const tsar_result *result, size_t i, const uint8_t *rgb, tsar_error *err)
{
    const tsar_config *c = &job->model->config;
    const size_t image = (size_t)job->settings->first_image + i;
    tsar_job_files files;
    tsar_status status = tsar_job_names(&files, job, image, err);
    if (status == TSAR_OK && files.paths[TSAR_JOB_PICTURE]) {
        picture_text text;
        describe_picture(&text, job, image);
        status = tsar_image_write(files.paths[TSAR_JOB_PICTURE], rgb, c->grid_h * c->vq_factor, c->grid_w * c->vq_factor, text.keys, text.values, text.n, err);
    }
    if (status == TSAR_OK && files.paths[TSAR_JOB_CODES])
        status = tsar_record_write(files.paths[TSAR_JOB_CODES], job->model, prompt, job->settings, result, i, job->command, err);
    if (status == TSAR_OK && files.paths[TSAR_JOB_ORDER_MAP])
        status = tsar_order_map_write(files.paths[TSAR_JOB_ORDER_MAP], result->step_of + i * c->tokens, c->rows, c->columns, err);
    return status;
}

tsar_status tsar_job_draw_frame(const tsar_model *model, const tsar_job_frame *frame, int64_t *room, uint8_t *rgb, tsar_error *err)
{
    const tsar_config *c = &model->config;
    const size_t gw = c->grid_w, factor = c->vq_factor, H = c->grid_h * factor, W = gw * factor;
    const int64_t *codes = frame->codes;
    for (size_t i = 0; i < c->grid_h * gw; i++) {
        size_t code = codes[i] < 0 ? 0 : (size_t)codes[i];
        if (frame->are_labels && codes[i] >= 0) /* its lowest member; no cluster is empty */
            for (code = 0; code + 1 < c->codebook_size && model->cluster_of[code] != codes[i];) code++;
        room[i] = (int64_t)code;
    }
    const tsar_status status = tsar_vq_decode(model, room, c->grid_h, gw, rgb, NULL, err);
    for (size_t y = 0; status == TSAR_OK && y < H; y++)
        for (size_t x = 0; x < gw; x++)
            if (codes[y / factor * gw + x] < 0) memset(rgb + (y * W + x * factor) * 3, GREY, 3 * factor);
    return status;
}

tsar_status tsar_job_save_frame(const tsar_job *job, const tsar_job_frame *frame, int64_t *room, uint8_t *rgb, tsar_error *err)
{
    static const char *const keys[] = { "Software", "Frame", "Image", "Command" };
    const tsar_config *c = &job->model->config;
    char path[TSAR_JOB_PATH], place[PLACE], text[PLACE];
    int is_last = !frame->are_labels;
    for (size_t i = 0; i < c->grid_h * c->grid_w; i++) is_last = is_last && frame->codes[i] >= 0;
    const char *const values[] = { "tsar " TSAR_VERSION, frame_text(text, frame->frame, is_last), place_of(place, job, frame->image), job->command };
    tsar_status status = frame_name(path, job, frame->image, frame->frame, err);
    if (status == TSAR_OK) status = tsar_job_draw_frame(job->model, frame, room, rgb, err);
    return status == TSAR_OK ? tsar_image_write(path, rgb, c->grid_h * c->vq_factor, c->grid_w * c->vq_factor, keys, values, 4, err) : status;
}
