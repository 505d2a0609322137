/* prompts.c - lists of prompts and how they are spread over machines: one command after the other, with the weights read once. */
#include "files/files.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_IMAGES = 1000000 }; /* of one prompt, as with -n */

struct tsar_prompts {
    char *bytes;               /* the file, its lines ended by 0 */
    tsar_prompt_line *prompts; /* [count] */
    size_t count;
};

/* ------------------------------------------------------------------------------------------------------------- reading */

static int is_blank(const char *line) { return line[strspn(line, " \t")] == '\0'; }

/* A line {"prompt": "a red cube", "seed": 7, "n": 4, ...}: seed and n may be missing, other members are left alone. */
static tsar_status read_json(tsar_prompt_line *p, char *line, const char *path, tsar_error *err)
{
    char where[40];
    const char *key, *text = NULL;
    uint64_t images = p->images;
    int seen_seed = 0, seen_n = 0;
    tsar_json json;
    (void)snprintf(where, sizeof where, "line %zu", p->number + 1);
    tsar_json_open(&json, line, strlen(line), path, where, "one JSON object on each line, with a member \"prompt\"", err);
    tsar_status status = tsar_json_object(&json);
    while (status == TSAR_OK) {
        status = tsar_json_member(&json, &key, NULL);
        if (status != TSAR_OK || key == NULL) break;
        const int twice = (text != NULL && strcmp(key, "prompt") == 0) || (seen_seed && strcmp(key, "seed") == 0) || (seen_n && strcmp(key, "n") == 0);
        if (twice)
            status = tsar_fail(err, TSAR_INPUT, "%s: %s has \"%s\" twice", path, where, key);
        else if (strcmp(key, "prompt") == 0)
            status = tsar_json_string(&json, &text, NULL);
        else if (strcmp(key, "seed") == 0)
            seen_seed = 1, status = tsar_json_u64(&json, &p->seed);
        else if (strcmp(key, "n") == 0)
            seen_n = 1, status = tsar_json_u64(&json, &images);
        else
            status = tsar_json_skip(&json);
    }
    if (status == TSAR_OK) status = tsar_json_end(&json);
    if (status == TSAR_OK && text == NULL) status = tsar_fail(err, TSAR_INPUT, "%s: %s has no member \"prompt\"", path, where);
    if (status == TSAR_OK && (images == 0 || images > MAX_IMAGES))
        status = tsar_fail(err, TSAR_INPUT, "%s: %s wants %llu images; \"n\" is from 1 to %d", path, where, (unsigned long long)images, MAX_IMAGES);
    if (status == TSAR_OK) p->text = text, p->images = (size_t)images;
    return status;
}

/* Cuts the text into lines and takes those of the shard. Whether they are JSON is told by the first that is not blank. */
static tsar_status read_lines(tsar_prompts *list, const char *path, const tsar_prompt_line *absent, size_t shard, size_t shards, tsar_error *err)
{
    char *line = list->bytes;
    int json = -1;
    tsar_status status = TSAR_OK;
    if (strncmp(line, "\xEF\xBB\xBF", 3) == 0) line += 3; /* a byte order mark */
    for (size_t number = 0; status == TSAR_OK && *line != '\0'; number++) {
        size_t length = strcspn(line, "\n");
        char *next = line + length + (line[length] == '\n');
        line[length] = '\0';
        if (length > 0 && line[length - 1] == '\r') line[length - 1] = '\0';
        if (!is_blank(line)) {
            tsar_prompt_line *p = &list->prompts[list->count];
            if (json < 0) json = line[strspn(line, " \t")] == '{';
            *p = *absent;
            p->number = number;
            p->seed = absent->seed + number;
            p->text = line;
            if (json) status = read_json(p, line, path, err);
            list->count += number % shards == shard % shards;
        }
        line = next;
    }
    if (status == TSAR_OK && json < 0) status = tsar_fail(err, TSAR_INPUT, "%s: has no prompts; write one on each line", path);
    return status;
}

tsar_status tsar_prompts_open(tsar_prompts **out, const char *path, uint64_t seed, size_t images, size_t shard, size_t shards, tsar_error *err)
{
    const tsar_prompt_line absent = { NULL, 0, seed, images };
    size_t size = 0, lines = 2; /* the last line, and the one that is read but not taken */
    tsar_prompts *list = tsar_alloc(1, sizeof *list, "a list of prompts", err);
    tsar_status status = list != NULL ? tsar_read_whole(path, "the list of prompts", &list->bytes, &size, err) : TSAR_ROOM;
    if (status == TSAR_OK && memchr(list->bytes, 0, size) != NULL)
        status = tsar_fail(err, TSAR_INPUT, "%s: holds a zero byte; a list of prompts is text, a prompt on each line", path);
    for (size_t i = 0; status == TSAR_OK && i < size; i++) lines += list->bytes[i] == '\n';
    if (status == TSAR_OK && (list->prompts = tsar_alloc(lines, sizeof *list->prompts, "a list of prompts", err)) == NULL) status = TSAR_ROOM;
    if (status == TSAR_OK) status = read_lines(list, path, &absent, shard, shards, err);
    if (status != TSAR_OK) {
        tsar_prompts_close(list);
        return status;
    }
    *out = list;
    return TSAR_OK;
}

void tsar_prompts_close(tsar_prompts *list)
{
    if (list == NULL) return;
    tsar_free(list->bytes);
    tsar_free(list->prompts);
    tsar_free(list);
}

size_t tsar_prompts_count(const tsar_prompts *list) { return list->count; }
const tsar_prompt_line *tsar_prompts_at(const tsar_prompts *list, size_t index) { return &list->prompts[index]; }

/* ----------------------------------------------------------------------------------------------------- shards and names */

tsar_status tsar_shard_parse(size_t *shard, size_t *shards, const char *text, tsar_error *err)
{
    uint64_t value[2] = { 0, 0 };
    const char *p = text;
    int fits = 1;
    for (int i = 0; i < 2 && fits; i++) {
        const char *start = p;
        for (; *p >= '0' && *p <= '9'; p++) value[i] = value[i] < 100000000 ? 10 * value[i] + (uint64_t)(*p - '0') : 1000000000;
        fits = p > start && *p == (i == 0 ? '/' : '\0');
        p += i == 0;
    }
    if (!fits || value[1] == 0 || value[0] > value[1] || value[1] > 999999999)
        return tsar_fail(err, TSAR_USAGE, "--shard %.60s: give I/N, for example 0/4: of every N prompts the one at I, from 0 (N counts as 0)", text);
    *shard = (size_t)(value[0] % value[1]);
    *shards = (size_t)value[1];
    return TSAR_OK;
}

tsar_status tsar_prompts_name(char *name, size_t size, const char *output, const char *ending, size_t number, tsar_error *err)
{
    const char *slash = strrchr(output, '/'), *dot = strrchr(output, '.');
    const size_t length = strlen(output), stem = dot != NULL && (slash == NULL || dot > slash) ? (size_t)(dot - output) : length;
    int written = -1;
    if (length < size && ending != NULL)
        written = snprintf(name, size, "%s%s%05zu%s", output, length > 0 && output[length - 1] != '/' ? "/" : "", number, ending);
    else if (length < size)
        written = snprintf(name, size, "%.*s-%05zu%s", (int)stem, output, number, output + stem);
    return written > 0 && (size_t)written < size ? TSAR_OK : tsar_fail(err, TSAR_USAGE, "%.80s...: the name is too long", output);
}
