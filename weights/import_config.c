/* What a config.json says about a model (SPEC 11, Import of the families): a table from its fields to keys, a row a field. */
#include "import.h"

#include <string.h>

enum { MAX_CONFIG = 1 << 22, MAX_FIELDS = 256, FIELD = 64 };

/* A field of the object, one of an object in it as "outer.inner"; a list of numbers with commas between them. */
typedef struct {
    char name[FIELD], value[TSAR_IMPORT_VALUE];
} field;
typedef struct {
    field fields[MAX_FIELDS];
    size_t n;
    const char *path;
} config;

/* ------------------------------------------------------------------------------------------------------------ the table */

enum { TAKEN, POST_NORM, NO_ROPE_SCALING, GATED_GELU, SILU, NO };
#define LLAMA(type, inner) \
    { type, inner "hidden_size", "dim", TAKEN }, { type, inner "num_hidden_layers", "n_layer", TAKEN }, \
        { type, inner "num_attention_heads", "n_head", TAKEN }, { type, inner "num_key_value_heads", "n_kv_head", TAKEN }, \
        { type, inner "intermediate_size", "ffn_hidden", TAKEN }, { type, inner "rms_norm_eps", "norm_eps", TAKEN }, \
        { type, inner "rope_theta", "rope_base", TAKEN }, { type, inner "vocab_size", "vocab_size", TAKEN }, \
        { type, inner "rope_scaling", "", NO_ROPE_SCALING }, { type, inner "hidden_act", "", SILU }, \
    { \
        type, inner "attention_bias", "", NO \
    }

static const struct {
    const char *model_type, *name, *key;
    int rule;
} FIELDS[] = {
    LLAMA("chameleon", ""),
    { "chameleon", "swin_norm", "norm_order", POST_NORM },
    LLAMA("Emu3", ""),
    { "Emu3", "pad_token_id", "pad", TAKEN },
    { "Emu3", "bos_token_id", "bos", TAKEN },
    { "Emu3", "eos_token_id", "eos", TAKEN },
    { "Emu3", "img_token_id", "img", TAKEN },
    { "Emu3", "boi_token_id", "boi", TAKEN },
    { "Emu3", "eoi_token_id", "eoi", TAKEN },
    { "Emu3", "eol_token_id", "eol", TAKEN },
    { "Emu3", "eof_token_id", "eof", TAKEN },
    { "Emu3VisionVQ", "ch", "vq_ch", TAKEN },
    { "Emu3VisionVQ", "ch_mult", "vq_ch_mult", TAKEN },
    { "Emu3VisionVQ", "num_res_blocks", "vq_res_blocks", TAKEN },
    { "Emu3VisionVQ", "z_channels", "vq_z_channels", TAKEN },
    { "Emu3VisionVQ", "embed_dim", "vq_embed_dim", TAKEN },
    { "Emu3VisionVQ", "codebook_size", "codebook_size", TAKEN },
    { "Emu3VisionVQ", "temporal_downsample_factor", "vq_temporal", TAKEN },
    { "Emu3VisionVQ", "double_z", "", NO },
    LLAMA("multi_modality", "language_config."),
    { "t5", "d_model", "t5_dim", TAKEN },
    { "t5", "num_layers", "t5_n_layer", TAKEN },
    { "t5", "num_heads", "t5_n_head", TAKEN },
    { "t5", "d_kv", "t5_head_dim", TAKEN },
    { "t5", "d_ff", "t5_ffn_hidden", TAKEN },
    { "t5", "vocab_size", "t5_vocab", TAKEN },
    { "t5", "relative_attention_num_buckets", "t5_buckets", TAKEN },
    { "t5", "relative_attention_max_distance", "t5_max_distance", TAKEN },
    { "t5", "layer_norm_epsilon", "t5_norm_eps", TAKEN },
    { "t5", "feed_forward_proj", "", GATED_GELU },
};

/* What a model_type makes of the architecture, and what its own defaults are where a field is absent. */
static const struct {
    const char *model_type, *key, *value;
} IMPLIED[] = {
    { "chameleon", "arch", "lumina-mgpt" },
    { "Emu3", "arch", "emu3" },
    { "multi_modality", "arch", "janus" },
    { "multi_modality", "n_head", "32" },
};

/* ----------------------------------------------------------------------------------------------------------- the reader */

static void keep(config *c, const char *outer, const char *name, const char *value)
{
    if (c->n == MAX_FIELDS || strlen(outer) + strlen(name) + 1 >= FIELD || strlen(value) >= TSAR_IMPORT_VALUE) return; /* none of ours */
    field *f = &c->fields[c->n++];
    snprintf(f->name, sizeof f->name, "%s%s%s", outer, *outer ? "." : "", name);
    snprintf(f->value, sizeof f->value, "%s", value);
}

/* A number as a key has it: 10000.0 is 10000. */
static void trim_number(char *text)
{
    char *point = strchr(text, '.');
    if (!point || strpbrk(text, "eE")) return;
    size_t n = strlen(text);
    while (text[n - 1] == '0') n--;
    if (text[n - 1] == '.') n--;
    text[n] = '\0';
}

/* A list of plain numbers as "1,2,4"; any other list as "". */
static tsar_status read_list(tsar_json *json, char *text, size_t room)
{
    const char *number;
    size_t used = 0;
    int more = 0, plain = 1;
    tsar_status status = tsar_json_list(json);
    text[0] = '\0';
    while (status == TSAR_OK) {
        status = tsar_json_item(json, &more);
        if (status != TSAR_OK || !more) break;
        if (tsar_json_peek(json) == TSAR_JSON_NUMBER) {
            status = tsar_json_number(json, &number);
            if (status == TSAR_OK && used < room) used += (size_t)snprintf(text + used, room - used, "%s%s", used ? "," : "", number);
        } else {
            plain = 0;
            status = tsar_json_skip(json);
        }
    }
    if (!plain || used >= room) text[0] = '\0';
    return status;
}

/* A value that is no object. */
static tsar_status read_value(config *c, tsar_json *json, const char *outer, const char *name)
{
    char text[TSAR_IMPORT_VALUE] = "";
    const char *string = NULL;
    int truth = 0;
    tsar_status status;
    switch (tsar_json_peek(json)) {
    case TSAR_JSON_STRING:
        status = tsar_json_string(json, &string, NULL);
        if (status == TSAR_OK) keep(c, outer, name, string);
        return status;
    case TSAR_JSON_NUMBER:
        status = tsar_json_number(json, &string);
        if (status == TSAR_OK) snprintf(text, sizeof text, "%s", string);
        trim_number(text);
        break;
    case TSAR_JSON_BOOL:
        status = tsar_json_bool(json, &truth);
        snprintf(text, sizeof text, truth ? "true" : "false");
        break;
    case TSAR_JSON_LIST: status = read_list(json, text, sizeof text); break;
    case TSAR_JSON_NULL: return tsar_json_null(json);
    default: return tsar_json_skip(json);
    }
    if (status == TSAR_OK) keep(c, outer, name, text);
    return status;
}

/* An object, and those in it: `outer` is its name, "" for the whole. An object deeper than that is told as "{}". */
static tsar_status read_object(config *c, tsar_json *json, const char *outer)
{
    const char *name;
    char inner[FIELD];
    tsar_status status = tsar_json_object(json);
    while (status == TSAR_OK) {
        status = tsar_json_member(json, &name, NULL);
        if (status != TSAR_OK || !name) break;
        if (tsar_json_peek(json) != TSAR_JSON_OBJECT)
            status = read_value(c, json, outer, name);
        else if (*outer) {
            keep(c, outer, name, "{}");
            status = tsar_json_skip(json);
        } else {
            keep(c, outer, name, "{}");
            snprintf(inner, sizeof inner, "%.*s", (int)sizeof inner - 1, name);
            status = read_object(c, json, inner);
        }
    }
    return status;
}

static const char *find_field(const config *c, const char *name)
{
    for (size_t i = 0; i < c->n; i++)
        if (strcmp(c->fields[i].name, name) == 0) return c->fields[i].value;
    return NULL;
}

/* ------------------------------------------------------------------------------------------------------------ the rules */

/* What a field must be, where it is no value of a key: tsar has no other such models. */
static tsar_status demand(const tsar_importer *im, const config *c, const char *name, const char *value, int rule)
{
    const char *wanted = rule == GATED_GELU ? "gated-gelu" : rule == SILU ? "silu" : rule == NO ? "false" : "null";
    if (strcmp(value, wanted) == 0) return TSAR_OK;
    return tsar_fail(im->err, TSAR_INPUT, "%s: %s is %.60s; only models with %s are covered", c->path, name, value, wanted);
}

static tsar_status take_field(tsar_importer *im, const config *c, const char *name, const char *key, int rule, char *told, size_t room)
{
    const char *value = find_field(c, name);
    if (!value) return TSAR_OK;
    if (rule != TAKEN && rule != POST_NORM) return demand(im, c, name, value, rule);
    if (rule == POST_NORM) value = strcmp(value, "true") == 0 ? "post" : "pre";
    const size_t used = strlen(told);
    if (used < room) snprintf(told + used, room - used, " %s=%s", key, value);
    return tsar_import_give(im, key, value, TSAR_CONFIG_JSON, c->path);
}

static tsar_status take_all(tsar_importer *im, const config *c)
{
    const char *type = find_field(c, "model_type");
    char told[400] = "";
    int known = 0;
    tsar_status status = TSAR_OK;
    for (size_t i = 0; type && status == TSAR_OK && i < sizeof FIELDS / sizeof *FIELDS; i++) {
        if (strcmp(FIELDS[i].model_type, type) != 0) continue;
        known = 1;
        status = take_field(im, c, FIELDS[i].name, FIELDS[i].key, FIELDS[i].rule, told, sizeof told);
    }
    for (size_t i = 0; known && status == TSAR_OK && i < sizeof IMPLIED / sizeof *IMPLIED; i++)
        if (strcmp(IMPLIED[i].model_type, type) == 0 && tsar_import_setting(im, IMPLIED[i].key)->from < TSAR_CONFIG_JSON)
            status = tsar_import_give(im, IMPLIED[i].key, IMPLIED[i].value, TSAR_CONFIG_JSON, c->path);
    if (status == TSAR_OK && known)
        tsar_note(im->note, im->context, "%s: model_type %s:%s", c->path, type, told);
    else if (status == TSAR_OK)
        tsar_note(im->note, im->context, "%s: model_type %.60s is none that is known, left out", c->path, type ? type : "(absent)");
    return status;
}

tsar_status tsar_import_config(tsar_importer *im, const char *path)
{
    char *text = NULL;
    size_t bytes = 0;
    tsar_json json;
    config *c = tsar_alloc(1, sizeof *c, "a config.json", im->err);
    if (!c) return TSAR_ROOM;
    c->path = path;
    tsar_status status = tsar_text_file(path, MAX_CONFIG, "a config.json", &text, &bytes, im->err);
    if (status == TSAR_OK) {
        tsar_json_open(&json, text, bytes, path, "the file", "a config.json is a JSON object", im->err);
        status = read_object(c, &json, "");
    }
    if (status == TSAR_OK) status = tsar_json_end(&json);
    if (status == TSAR_OK) status = take_all(im, c);
    tsar_free(text);
    tsar_free(c);
    return status;
}
