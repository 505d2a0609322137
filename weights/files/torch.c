/* PyTorch checkpoints: the zip and the legacy form of the file around its pickle (pickle.c), and the state dicts in it.
 *
 * A state dict is any dictionary with tensors under names. Which of them is the model's is for the importer to say, who knows the names; here
 * they are found, without recursion: a queue of dictionaries, each visited once. */
#include "files.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_DICTS = 1 << 16, MAX_DICT_DEPTH = 8, MAX_PATH = 256 };

static int big_endian_host(void)
{
    const uint16_t one = 1;
    uint8_t first;
    memcpy(&first, &one, 1);
    return first == 0;
}

/* ------------------------------------------------------------------------------- PyTorch files: where the storages are */

/* One storage of a PyTorch file, whatever number of tensors share it. */
struct tsar_storage {
    const tsar_value *storage; /* any of the persistent ids that name it */
    uint64_t offset;           /* of its first byte in the file */
    int placed;
};

static int by_key(const void *a, const void *b)
{
    return strcmp(((const struct tsar_storage *)a)->storage->text, ((const struct tsar_storage *)b)->storage->text);
}

static struct tsar_storage *find_place(const tsar_checkpoint *checkpoint, const char *key)
{
    tsar_value wanted = { 0 };
    struct tsar_storage pattern = { 0 };
    wanted.text = key;
    pattern.storage = &wanted;
    return checkpoint->n_storages ? bsearch(&pattern, checkpoint->storages, checkpoint->n_storages, sizeof pattern, by_key) : NULL;
}

static const char *type_of(const tsar_value *value) { return value->foreign ? value->foreign : tsar_dtype_name(value->dtype); }

/* Every storage once. */
static tsar_status list_storages(tsar_checkpoint *checkpoint, tsar_error *err)
{
    const tsar_pickle *pickle = &checkpoint->pickle;
    size_t n = 0;
    struct tsar_storage *places = tsar_alloc(pickle->n_storages, sizeof *places, "the list of storages", err);
    if (!places) return TSAR_ROOM;
    checkpoint->storages = places;
    for (const tsar_value *storage = pickle->storages; storage; storage = storage->next) places[n++].storage = storage;
    if (n > 0) qsort(places, n, sizeof *places, by_key);
    for (size_t i = 0; i < n; i++) {
        const tsar_value *last = checkpoint->n_storages ? places[checkpoint->n_storages - 1].storage : NULL, *storage = places[i].storage;
        if (!last || strcmp(last->text, storage->text) != 0)
            places[checkpoint->n_storages++] = places[i];
        else if (last->dtype != storage->dtype || last->foreign != storage->foreign || last->integer != storage->integer)
            return tsar_fail(err, TSAR_INPUT, "%s: storage %.64s is described as %" PRId64 " elements %s and as %" PRId64 " elements %s", checkpoint->path,
                             storage->text, last->integer, type_of(last), storage->integer, type_of(storage));
    }
    return TSAR_OK;
}

/* Bytes of a storage: 0 and an error if they exceed the file. */
static tsar_status storage_bytes(const tsar_checkpoint *checkpoint, const tsar_value *storage, uint64_t *bytes, tsar_error *err)
{
    const size_t size = storage->size;
    *bytes = 0;
    if ((uint64_t)storage->integer > checkpoint->source.size / size)
        return tsar_fail(err, TSAR_INPUT, "%s: storage %.64s claims %" PRId64 " elements %s, more than the file holds", checkpoint->path, storage->text,
                         storage->integer, type_of(storage));
    *bytes = (uint64_t)storage->integer * size;
    return TSAR_OK;
}

/* ------------------------------------------------------------------------------------------------------ the zip form */

/* What torch.jit.save writes has code and constants beside the pickle. */
static int is_torchscript(const tsar_zip *zip)
{
    for (size_t i = 0; i < zip->count; i++) {
        const char *slash = strchr(zip->entries[i].name, '/');
        if (slash && (strncmp(slash, "/code/", 6) == 0 || strcmp(slash, "/constants.pkl") == 0)) return 1;
    }
    return 0;
}

/* The archive's one folder: the part of "folder/data.pkl" before the '/'. */
static tsar_status find_folder(const tsar_checkpoint *checkpoint, const char **name, size_t *length, tsar_error *err)
{
    static const char file[] = "/data.pkl";
    *length = 0;
    for (size_t i = 0; i < checkpoint->zip.count; i++) {
        const char *entry = checkpoint->zip.entries[i].name, *slash = strchr(entry, '/');
        if (!slash || strcmp(slash, file) != 0) continue;
        if (*length)
            return tsar_fail(err, TSAR_INPUT, "%s: holds two data.pkl, in %.*s and %.*s; torch.save writes one", checkpoint->path, (int)*length, *name,
                             (int)(slash - entry), entry);
        *name = entry;
        *length = (size_t)(slash - entry);
    }
    if (*length == 0) return tsar_fail(err, TSAR_INPUT, "%s: is a zip archive without data.pkl; give a file that torch.save wrote", checkpoint->path);
    if (is_torchscript(&checkpoint->zip))
        return tsar_fail(err, TSAR_INPUT,
                         "%s: is a TorchScript archive (torch.jit.save), a program with its weights; save the weights alone in Python: "
                         "torch.save(torch.jit.load(FILE).state_dict(), NEW)",
                         checkpoint->path);
    return TSAR_OK;
}

static tsar_status find_entry(const tsar_checkpoint *checkpoint, const char *folder, size_t length, const char *inner, const char *key,
                              const tsar_zip_entry **entry, tsar_error *err)
{
    char name[1024];
    *entry = NULL;
    if (length + strlen(inner) + strlen(key) >= sizeof name)
        return tsar_fail(err, TSAR_INPUT, "%s: a storage's key is longer than any entry's name", checkpoint->path);
    memcpy(name, folder, length);
    strcpy(name + length, inner);
    strcat(name, key);
    *entry = tsar_zip_find(&checkpoint->zip, name);
    return *entry ? tsar_zip_check(*entry, &checkpoint->source, err) : TSAR_OK;
}

/* The entry "byteorder", newer than the rest of the format: little unless it says otherwise. */
static tsar_status read_byteorder(tsar_checkpoint *checkpoint, const char *folder, size_t length, tsar_error *err)
{
    const tsar_zip_entry *entry;
    char order[7] = "";
    tsar_status status = find_entry(checkpoint, folder, length, "/byteorder", "", &entry, err);
    if (status == TSAR_OK && entry && entry->size < sizeof order) status = tsar_source_read(&checkpoint->source, entry->data, order, (size_t)entry->size, err);
    if (status != TSAR_OK) return status;
    int big = strcmp(order, "big") == 0;
    if (entry && !big && strcmp(order, "little") != 0) return tsar_fail(err, TSAR_INPUT, "%s: its byteorder is neither little nor big", checkpoint->path);
    checkpoint->swapped = big != big_endian_host();
    return TSAR_OK;
}

static tsar_status open_zip(tsar_checkpoint *checkpoint, tsar_error *err)
{
    const char *folder = NULL;
    const tsar_zip_entry *entry = NULL;
    size_t length = 0;
    tsar_status status = tsar_zip_open(&checkpoint->zip, &checkpoint->source, err);
    if (status == TSAR_OK) status = find_folder(checkpoint, &folder, &length, err);
    if (status == TSAR_OK) status = find_entry(checkpoint, folder, length, "/data.pkl", "", &entry, err);
    if (status == TSAR_OK) status = read_byteorder(checkpoint, folder, length, err);
    if (status != TSAR_OK) return status;
    uint64_t offset = entry->data;
    status = tsar_pickle_load(&checkpoint->pickle, &checkpoint->source, &offset, entry->data + entry->size, &checkpoint->root, err);
    if (status == TSAR_OK) status = list_storages(checkpoint, err);
    for (size_t i = 0; status == TSAR_OK && i < checkpoint->n_storages; i++) {
        struct tsar_storage *place = &checkpoint->storages[i];
        uint64_t bytes = 0;
        status = find_entry(checkpoint, folder, length, "/data/", place->storage->text, &entry, err);
        if (status != TSAR_OK) return status;
        if (!entry) return tsar_fail(err, TSAR_INPUT, "%s: storage %.64s is missing from the archive", checkpoint->path, place->storage->text);
        status = storage_bytes(checkpoint, place->storage, &bytes, err);
        if (status == TSAR_OK && bytes != entry->size)
            return tsar_fail(err, TSAR_INPUT, "%s: storage %.64s has %" PRIu64 " bytes, its tensors claim %" PRIu64, checkpoint->path, place->storage->text,
                             entry->size, bytes);
        place->offset = entry->data;
        place->placed = 1;
    }
    return status;
}

/* --------------------------------------------------------------------------------------------------- the legacy form */

enum { LEGACY_PROTOCOL = 1001 };

/* After the pickles, for each key in their list: the number of elements and the elements, always little-endian. */
static tsar_status place_legacy(tsar_checkpoint *checkpoint, const tsar_value *keys, uint64_t offset, tsar_error *err)
{
    for (size_t i = 0; i < keys->count; i++) {
        uint8_t count[8];
        uint64_t bytes = 0;
        struct tsar_storage *place = keys->items[i]->kind == TSAR_P_TEXT ? find_place(checkpoint, keys->items[i]->text) : NULL;
        if (!place || place->placed) return tsar_fail(err, TSAR_INPUT, "%s: its list of storages names one twice or one that no tensor uses", checkpoint->path);
        tsar_status status = tsar_source_read(&checkpoint->source, offset, count, sizeof count, err);
        if (status == TSAR_OK) status = storage_bytes(checkpoint, place->storage, &bytes, err);
        if (status != TSAR_OK) return status;
        if (tsar_get_u64(count) != (uint64_t)place->storage->integer)
            return tsar_fail(err, TSAR_INPUT, "%s: storage %.64s has %" PRIu64 " elements, its tensors claim %" PRId64, checkpoint->path, place->storage->text,
                             tsar_get_u64(count), place->storage->integer);
        place->offset = offset + 8;
        place->placed = 1;
        if (bytes > checkpoint->source.size - place->offset)
            return tsar_fail(err, TSAR_INPUT, "%s: ends inside storage %.64s; the file is cut", checkpoint->path, place->storage->text);
        offset = place->offset + bytes;
    }
    if (offset != checkpoint->source.size)
        return tsar_fail(err, TSAR_INPUT, "%s: %" PRIu64 " bytes follow its last storage; the file is damaged", checkpoint->path,
                         checkpoint->source.size - offset);
    for (size_t i = 0; i < checkpoint->n_storages; i++)
        if (!checkpoint->storages[i].placed)
            return tsar_fail(err, TSAR_INPUT, "%s: storage %.64s is missing from the file", checkpoint->path, checkpoint->storages[i].storage->text);
    return TSAR_OK;
}

/* Five pickles in a row: the magic number, the protocol, sizes of C types, the object, the keys of the storages. */
static tsar_status open_legacy(tsar_checkpoint *checkpoint, uint64_t offset, tsar_error *err)
{
    tsar_source *source = &checkpoint->source;
    tsar_value *protocol = NULL, *system = NULL, *keys = NULL, **targets[4];
    targets[0] = &protocol;
    targets[1] = &system;
    targets[2] = &checkpoint->root;
    targets[3] = &keys;
    checkpoint->swapped = big_endian_host();
    for (int i = 0; i < 4; i++) {
        tsar_status status = tsar_pickle_load(&checkpoint->pickle, source, &offset, source->size, targets[i], err);
        if (status != TSAR_OK) return status;
    }
    if (protocol->kind != TSAR_P_INTEGER || protocol->integer != LEGACY_PROTOCOL)
        return tsar_fail(err, TSAR_INPUT, "%s: its legacy protocol is not 1001; save it again with a newer torch", checkpoint->path);
    if (keys->kind != TSAR_P_LIST) return tsar_fail(err, TSAR_INPUT, "%s: its list of storages is missing; the file is damaged", checkpoint->path);
    tsar_status status = list_storages(checkpoint, err);
    return status == TSAR_OK ? place_legacy(checkpoint, keys, offset, err) : status;
}

/* ------------------------------------------------------------------------------------------------- tensors of a state dict */

/* Shape and strides of a rebuilt tensor: not negative, every product and sum below 2^63, every element inside the storage. */
static tsar_status read_geometry(const tsar_checkpoint *checkpoint, tsar_import_tensor *tensor, const tsar_value *value, uint64_t available, tsar_error *err)
{
    const tsar_value *shape = value->items[2], *stride = value->items[3];
    if (shape->count > TSAR_MAX_RANK || shape->count != stride->count || value->items[1]->integer < 0)
        return tsar_fail(err, TSAR_INPUT, "%s: tensor %.128s has a negative offset, or %zu dimensions and %zu strides", checkpoint->path, tensor->name,
                         shape->count, stride->count);
    uint64_t last = 0, dense = 1;
    int overflow = 0;
    tensor->rank = shape->count;
    tensor->count = 1;
    tensor->contiguous = 1;
    for (size_t i = tensor->rank; i-- > 0;) {
        int64_t extent = shape->items[i]->integer, step = stride->items[i]->integer;
        if (extent < 0 || step < 0)
            return tsar_fail(err, TSAR_INPUT, "%s: tensor %.128s has size %" PRId64 " and stride %" PRId64 " in dimension %zu; negative ones are never saved",
                             checkpoint->path, tensor->name, extent, step, i);
        uint64_t n = (uint64_t)extent, s = (uint64_t)step, limit = INT64_MAX;
        overflow |= n > SIZE_MAX || (n > 1 && s > (limit - last) / (n - 1)) || (n > 0 && tensor->count > limit / n);
        if (overflow) break;
        tensor->shape[i] = (size_t)n;
        tensor->stride[i] = s;
        tensor->contiguous &= n == 1 || s == dense;
        last += n ? (n - 1) * s : 0;
        tensor->count *= n;
        dense *= n;
    }
    uint64_t first = (uint64_t)value->items[1]->integer;
    tensor->span = tensor->count ? last + 1 : 0;
    if (overflow || first > available || (tensor->count && tensor->span > available - first))
        return tsar_fail(err, TSAR_INPUT, "%s: tensor %.128s reaches beyond its storage of %" PRIu64 " elements", checkpoint->path, tensor->name, available);
    tensor->contiguous |= tensor->count == 0;
    return TSAR_OK;
}

static tsar_status read_tensor(tsar_checkpoint *checkpoint, tsar_import_tensor *tensor, const tsar_value *value, tsar_error *err)
{
    const tsar_value *storage = value->items[0];
    const struct tsar_storage *place = find_place(checkpoint, storage->text);
    const size_t held = storage->size, size = value->size;
    tensor->dtype = value->dtype;
    tensor->size = size;
    tensor->foreign = value->foreign;
    if (!place) /* every persistent id was listed */
        return tsar_fail(err, TSAR_INPUT, "%s: tensor %.128s has no storage", checkpoint->path, tensor->name);
    tsar_status status = read_geometry(checkpoint, tensor, value, (uint64_t)storage->seen * held / size, err);
    if (status == TSAR_OK) tensor->offset = place->offset + (uint64_t)storage->first * held + (uint64_t)value->items[1]->integer * size;
    return status;
}

/* Elements 2i and 2i + 1 are key and value; an object of a class that is like a dictionary counts as one. */
static int is_dict(const tsar_value *value) { return value->kind == TSAR_P_DICT || (value->kind == TSAR_P_INERT && value->count > 0); }

const char *tsar_torch_name(const tsar_state_dict *state, size_t *at)
{
    for (; *at < state->dict->count; *at += 2)
        if (state->dict->items[*at]->kind == TSAR_P_TEXT && state->dict->items[*at + 1]->kind == TSAR_P_TENSOR) {
            *at += 2;
            return state->dict->items[*at - 2]->text;
        }
    return NULL;
}

tsar_status tsar_torch_take(tsar_checkpoint *checkpoint, size_t state, tsar_error *err)
{
    const tsar_value *dict = checkpoint->states[state].dict;
    tsar_status status = TSAR_OK;
    checkpoint->tensors = tsar_alloc(dict->count / 2, sizeof *checkpoint->tensors, "the list of tensors", err);
    if (!checkpoint->tensors) return TSAR_ROOM;
    for (size_t i = 0; status == TSAR_OK && i < dict->count; i += 2) {
        const tsar_value *key = dict->items[i], *value = dict->items[i + 1];
        if (key->kind != TSAR_P_TEXT) continue;
        tsar_import_tensor *tensor = &checkpoint->tensors[checkpoint->count++];
        tensor->name = key->text;
        tensor->checkpoint = checkpoint;
        if (value->kind == TSAR_P_TENSOR)
            status = read_tensor(checkpoint, tensor, value, err);
        else
            tensor->foreign = value->kind == TSAR_P_INERT && value->text ? value->text : "no tensor";
    }
    return status;
}

/* -------------------------------------------------------------------------------------------------------- state dicts */

/* Appends a dictionary to the queue, where its parent is not too deep. `parent` is a path, `key` what it stands under. */
static tsar_status push_dict(tsar_checkpoint *checkpoint, size_t *room, tsar_value *dict, const char *parent, const char *key, tsar_error *err)
{
    const size_t length = strlen(parent), wanted = length + strlen(key) + 2;
    size_t depth = 0;
    for (const char *c = parent; *c; c++) depth += *c == '.';
    if (dict->visited || checkpoint->n_states == MAX_DICTS || depth >= MAX_DICT_DEPTH || wanted > MAX_PATH) return TSAR_OK;
    if (checkpoint->n_states == *room) {
        const size_t larger = *room ? 2 * *room : 16;
        tsar_state_dict *copy = tsar_alloc(larger, sizeof *copy, "the list of state dicts", err);
        if (!copy) return TSAR_ROOM;
        if (*room) memcpy(copy, checkpoint->states, *room * sizeof *copy);
        tsar_free(checkpoint->states);
        checkpoint->states = copy;
        *room = larger;
    }
    tsar_state_dict *state = &checkpoint->states[checkpoint->n_states];
    state->path = tsar_alloc(wanted, 1, "the path of a state dict", err);
    if (!state->path) return TSAR_ROOM;
    memcpy(state->path, parent, length);
    if (length) state->path[length] = '.';
    memcpy(state->path + length + (length > 0), key, strlen(key) + 1);
    state->dict = dict;
    dict->visited = 1;
    checkpoint->n_states++;
    return TSAR_OK;
}

/* Every dictionary that is reached from the top by names, breadth first. */
static tsar_status find_states(tsar_checkpoint *checkpoint, tsar_error *err)
{
    size_t room = 0;
    tsar_status status = is_dict(checkpoint->root) ? push_dict(checkpoint, &room, checkpoint->root, "", "", err) : TSAR_OK;
    for (size_t k = 0; status == TSAR_OK && k < checkpoint->n_states; k++) {
        const tsar_value *dict = checkpoint->states[k].dict;
        for (size_t i = 0; status == TSAR_OK && i + 1 < dict->count; i += 2) {
            tsar_value *key = dict->items[i], *value = dict->items[i + 1];
            if (key->kind != TSAR_P_TEXT) continue;
            if (value->kind == TSAR_P_TENSOR)
                checkpoint->states[k].n_tensors++;
            else if (is_dict(value))
                status = push_dict(checkpoint, &room, value, checkpoint->states[k].path, key->text, err);
        }
    }
    return status;
}

void tsar_torch_describe(const tsar_checkpoint *checkpoint, char *text, size_t room)
{
    enum { KEYS = 5 };
    const tsar_value *root = checkpoint->root;
    size_t used = 0, told = 0, keys = 0, classes = 0;
    text[0] = '\0';
    if (!is_dict(root)) {
        snprintf(text, room, "its top is %s%.128s", root->text && root->kind != TSAR_P_TEXT ? "an object of class " : "no dictionary",
                 root->text && root->kind != TSAR_P_TEXT ? root->text : "");
        return;
    }
    for (size_t i = 0; i < root->count; i += 2) keys += root->items[i]->kind == TSAR_P_TEXT;
    used += (size_t)snprintf(text, room, keys ? "the keys on top are" : "no key on top is a name");
    for (size_t i = 0; i < root->count && told < KEYS && used < room; i += 2) {
        const char *class = root->items[i + 1]->kind == TSAR_P_INERT ? root->items[i + 1]->text : NULL;
        if (root->items[i]->kind != TSAR_P_TEXT) continue;
        used += (size_t)snprintf(text + used, room - used, "%s %.40s", told++ ? "," : "", root->items[i]->text);
        if (class && used < room && classes++ == 0) used += (size_t)snprintf(text + used, room - used, " (an object: %.60s)", class);
    }
    if (keys > KEYS && used < room) snprintf(text + used, room - used, " and %zu more", keys - KEYS);
}

/* Names that have no meaning here, for whoever wants to know what else is in the file. */
static void tell_strangers(const tsar_checkpoint *checkpoint, tsar_note_fn note, void *context)
{
    char names[400] = "";
    size_t used = 0;
    for (const tsar_value *stranger = checkpoint->pickle.strangers; stranger && used < sizeof names; stranger = stranger->next)
        used += (size_t)snprintf(names + used, sizeof names - used, "%s %s", used ? "," : "", stranger->text);
    if (used)
        tsar_note(note, context, "%s: names classes or functions that weights do not need, left out (nothing of a checkpoint is run):%s", checkpoint->path,
                  names);
}

tsar_status tsar_torch_open(tsar_checkpoint *checkpoint, size_t legacy, tsar_note_fn note, void *context, tsar_error *err)
{
    checkpoint->bytes = checkpoint->source.size;
    checkpoint->pickle.limit = checkpoint->bytes > 1 << 24 ? checkpoint->bytes : 1 << 24;
    tsar_status status = legacy ? open_legacy(checkpoint, legacy, err) : open_zip(checkpoint, err);
    if (status == TSAR_OK) status = find_states(checkpoint, err);
    if (status != TSAR_OK) return status;
    tell_strangers(checkpoint, note, context);
    if (checkpoint->zip.behind) tsar_note(note, context, "%s: %" PRIu64 " bytes behind the archive are left out", checkpoint->path, checkpoint->zip.behind);
    return TSAR_OK;
}

void tsar_torch_close(tsar_checkpoint *checkpoint)
{
    for (size_t i = 0; i < checkpoint->n_states; i++) tsar_free(checkpoint->states[i].path);
    tsar_free(checkpoint->states);
    tsar_free(checkpoint->storages);
    tsar_zip_close(&checkpoint->zip);
    tsar_pickle_close(&checkpoint->pickle);
}
