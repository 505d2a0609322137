/* Who says what about a model's configuration: shapes, files, arguments, and what official code fixes. */
#include "import.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------------------------------------------------ the items */

static int by_item(const void *a, const void *b) { return strcmp(((const tsar_item *)a)->name, ((const tsar_item *)b)->name); }

tsar_item *tsar_import_find(const tsar_importer *im, const char *name)
{
    tsar_item wanted = { 0 };
    wanted.name = name;
    return im->count ? bsearch(&wanted, im->items, im->count, sizeof wanted, by_item) : NULL;
}

size_t tsar_import_first(const tsar_importer *im, const char *prefix)
{
    const size_t length = strlen(prefix);
    size_t low = 0, high = im->count;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        if (strncmp(im->items[middle].name, prefix, length) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

int tsar_import_has(const tsar_importer *im, const char *prefix)
{
    for (size_t i = tsar_import_first(im, prefix); i < im->count && strncmp(im->items[i].name, prefix, strlen(prefix)) == 0; i++)
        if (!tsar_import_is_buffer(&im->items[i])) return 1;
    return 0;
}

int tsar_import_drops(const tsar_importer *im, const char *name)
{
    for (size_t i = 0; i < im->n_drop; i++)
        if (strncmp(name, im->drop[i], strlen(im->drop[i])) == 0) return 1;
    return 0;
}

int tsar_import_is_buffer(const tsar_item *item)
{
    static const char *const PATTERNS[] = { ".kv_cache.", "freqs_cis", "causal_mask", "quantize.codebook_used", "num_batches_tracked", ".inv_freq" };
    for (size_t i = 0; i < sizeof PATTERNS / sizeof *PATTERNS; i++)
        if (strstr(item->name, PATTERNS[i])) return 1;
    return 0;
}

/* --------------------------------------------------------------------------------------------------------- the settings */

tsar_setting *tsar_import_setting(const tsar_importer *im, const char *key)
{
    for (size_t i = 0; i < im->n_keys; i++)
        if (strcmp(im->keys[i].name, key) == 0) return &im->settings[i];
    return NULL;
}

const char *tsar_import_get(const tsar_importer *im, const char *key)
{
    const tsar_setting *setting = tsar_import_setting(im, key);
    return setting && setting->from != TSAR_ABSENT ? setting->value : NULL;
}

size_t tsar_import_size(const tsar_importer *im, const char *key)
{
    const char *text = tsar_import_get(im, key);
    size_t value = 0;
    for (; text && *text >= '0' && *text <= '9'; text++) {
        if (value > (SIZE_MAX - 9) / 10) return 0;
        value = value * 10 + (size_t)(*text - '0');
    }
    return text && !*text ? value : 0;
}

tsar_status tsar_import_blame(const tsar_importer *im, const char *key)
{
    const tsar_setting *setting = tsar_import_setting(im, key);
    return setting && setting->from == TSAR_ARGUMENT ? TSAR_USAGE : TSAR_INPUT;
}

tsar_status tsar_import_give(tsar_importer *im, const char *key, const char *value, tsar_origin from, const char *evidence)
{
    tsar_setting *setting = tsar_import_setting(im, key);
    const tsar_status blame = from == TSAR_ARGUMENT ? TSAR_USAGE : TSAR_INPUT;
    if (!setting)
        return tsar_fail(im->err, TSAR_USAGE,
                         "%.60s=%.60s: no such key; the keys are those of a model file's configuration, such as n_head, grid_h and grid_w, and from and drop",
                         key, value);
    int plain = strlen(value) < TSAR_IMPORT_VALUE;
    for (const char *c = value; plain && *c; c++) plain = (unsigned char)*c >= 32;
    if (!plain) return tsar_fail(im->err, blame, "%s: the value of %s is no line of at most %d characters", evidence, key, TSAR_IMPORT_VALUE - 1);
    if (setting->from == from && strcmp(setting->value, value) != 0)
        return tsar_fail(im->err, blame, "%s=%s (%s) contradicts %s=%s (%s)", key, value, evidence, key, setting->value, setting->evidence);
    if (setting->from < from) {
        setting->from = from;
        snprintf(setting->value, sizeof setting->value, "%s", value);
        snprintf(setting->evidence, sizeof setting->evidence, "%s", evidence);
    }
    return TSAR_OK;
}

void tsar_import_infer_text(tsar_importer *im, const char *key, const char *value, const char *evidence)
{
    tsar_setting *setting = tsar_import_setting(im, key);
    if (im->status != TSAR_OK) return;
    if (setting->from > TSAR_ASSUMED && strcmp(setting->value, value) != 0)
        im->status = tsar_fail(im->err, tsar_import_blame(im, key), "%s: tensor %s makes %s=%s, but %s says %s=%s", im->name, evidence, key, value,
                               setting->evidence, key, setting->value);
    setting->from = TSAR_INFERRED;
    snprintf(setting->value, sizeof setting->value, "%s", value);
    snprintf(setting->evidence, sizeof setting->evidence, "%s", evidence);
}

void tsar_import_infer(tsar_importer *im, const char *key, size_t value, const char *evidence)
{
    char text[32];
    snprintf(text, sizeof text, "%lu", (unsigned long)value);
    tsar_import_infer_text(im, key, text, evidence);
}

void tsar_import_assume(tsar_importer *im, const char *key, const char *value, const char *who)
{
    if (im->status == TSAR_OK && !tsar_import_get(im, key)) im->status = tsar_import_give(im, key, value, TSAR_ASSUMED, who);
}

void tsar_import_ask(tsar_importer *im, const char *format, ...)
{
    size_t used = strlen(im->asked);
    va_list arguments;
    if (used > 0) used += (size_t)snprintf(im->asked + used, sizeof im->asked - used, "; and ");
    if (used >= sizeof im->asked) return;
    va_start(arguments, format);
    vsnprintf(im->asked + used, sizeof im->asked - used, format, arguments);
    va_end(arguments);
}
